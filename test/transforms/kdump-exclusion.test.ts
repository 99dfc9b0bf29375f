/** kdumps that leave pages out, by the stages that a dump is made of, and read by the structures alone. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { inflateSync } from 'node:zlib';
import fc from 'fast-check';
import { pipelinePromise, Readable } from 'streamx';
import t from 'tap';
import { decodeKdumpHeader, decodeKdumpSubHeader, decodePageDescriptor } from '../../lib/formats/kdump.js';
import type { Guest } from '../../lib/model/guest.js';
import type { PageExclusion, PfnRun } from '../../lib/model/page-exclusion.js';
import { openKdump } from '../../lib/sources/kdump/kdump-core.js';
import { MemoryGuest } from '../../lib/sources/memory-guest.js';
import { PAGE_SIZE, type PageBatch } from '../../lib/model/stage.js';
import { Flattener } from '../../lib/transforms/flattener.js';
import { KdumpFramer } from '../../lib/transforms/kdump-framer.js';
import { type KdumpLayout, planKdump } from '../../lib/layouts/kdump-layout.js';
import { PageAligner } from '../../lib/transforms/page-aligner.js';
import { PageFilter } from '../../lib/transforms/page-filter.js';
import { arbitraryRuns, blanked, exclusionOf } from '../exclusion-fixture.js';
import { BufferBacking } from '../guest-fixture.js';
import { Collector, encodePages, kdumpBytes, TestCompressor } from '../kdump-fixture.js';

/** Pages filled with their number, every third of zeros. */
function memoryOf(pages: number, firstPfn = 0): Uint8Array {
  const bytes = new Uint8Array(pages * PAGE_SIZE);
  for (let i = 0; i < pages; i++)
    if ((firstPfn + i) % 3 !== 0) bytes.fill((firstPfn + i) % 255, i * PAGE_SIZE, (i + 1) * PAGE_SIZE);
  return bytes;
}

function guestOf(...blocks: readonly [pfn: number, pages: number][]): MemoryGuest {
  const regions = blocks.map(([pfn, pages]) => ({
    base: pfn * PAGE_SIZE,
    length: pages * PAGE_SIZE,
    backing: new BufferBacking(memoryOf(pages, pfn)),
    offset: 0,
  }));
  return new MemoryGuest({ name: 'pages', arch: 'x86_64', regions, cpus: [], notes: [] });
}

async function dumpWithout(guest: Guest, exclusion: PageExclusion, flattened = false): Promise<Collector> {
  const sink = new Collector();
  const stages = [
    guest.chunks({ skip: exclusion }),
    new PageFilter(exclusion),
    new PageAligner(),
    new TestCompressor('zlib'),
    new KdumpFramer(planKdump(guest, { codec: 'zlib', exclusion })),
    ...(flattened ? [new Flattener()] : []),
  ] as const;
  await pipelinePromise(...(stages as unknown as [Readable, PageFilter]), sink);
  return sink;
}

/** What a reader makes of the file: for each page of memory its bytes, null when they were left out. */
function readPages(file: Buffer, layout: KdumpLayout): Map<number, Uint8Array | null> {
  const bit = (bitmap: number, pfn: number) =>
    (file[layout.bitmapOffset + bitmap * layout.bitmapBytes + (pfn >>> 3)]! & (1 << (pfn & 7))) !== 0;
  const view = new DataView(file.buffer, file.byteOffset, file.length);
  const pages = new Map<number, Uint8Array | null>();
  let descriptor = layout.descriptorsOffset;
  for (let pfn = 0; pfn < layout.bitmapBytes * 8; pfn++) {
    if (bit(1, pfn) && !bit(0, pfn)) throw new Error(`page ${pfn} is stored, but no memory`);
    if (!bit(0, pfn)) continue;
    if (!bit(1, pfn)) {
      pages.set(pfn, null);
      continue;
    }
    const { offset, size, flags } = decodePageDescriptor(view, descriptor);
    descriptor += 24;
    const data = file.subarray(offset, offset + size);
    pages.set(pfn, flags === 0 ? data : inflateSync(data));
  }
  if (descriptor !== layout.zeroPageOffset) throw new Error('the table does not end where the pages begin');
  return pages;
}

t.test('pages that are left out have no bit in the second bitmap, no descriptor and no bytes', async (t) => {
  const guest = guestOf([0, 40], [64, 8]);
  const exclusion = exclusionOf([
    { start: 1, end: 3 },
    { start: 10, end: 35 },
    { start: 68, end: 80 },
  ]);
  const layout = planKdump(guest, { codec: 'zlib', exclusion });
  t.equal(layout.pageCount, 48);
  t.equal(layout.excludedCount, 2 + 25 + 4);
  const sink = await dumpWithout(guest, exclusion);
  const pages = readPages(sink.bytes, layout);
  t.equal(pages.size, 48);
  for (const [pfn, page] of pages) {
    if (exclusion.has(pfn)) t.equal(page, null, `page ${pfn} is left out`);
    else t.equal(Buffer.compare(page!, memoryOf(1, pfn)), 0, `page ${pfn}`);
  }
  t.equal(sink.memory, layout.memoryBytes, 'it counts as done nevertheless');
});

t.test('the header says the level, and both bitmaps', async (t) => {
  const guest = guestOf([0, 4]);
  const file = (await dumpWithout(guest, exclusionOf([{ start: 1, end: 2 }], 17))).bytes;
  t.equal(decodeKdumpSubHeader(file.subarray(PAGE_SIZE), 2, 6).dumpLevel, 17);
  t.equal(decodeKdumpHeader(file, 2).bitmapBlocks, 2);
});

t.test('leaving out zeros alone is what a dump does anyway: the same bytes', async (t) => {
  const guest = guestOf([3, 40], [64, 8]);
  const without = await kdumpBytes(guest, { codec: 'zlib' });
  t.equal(Buffer.compare((await dumpWithout(guest, exclusionOf([], 1))).bytes, without), 0);
});

t.test('a dump of which nothing is left, and a set beyond the memory', async (t) => {
  const guest = guestOf([8, 8]);
  const exclusion = exclusionOf([{ start: 0, end: 100_000 }]);
  const layout = planKdump(guest, { codec: 'zlib', exclusion });
  t.equal(layout.excludedCount, 8);
  const pages = readPages((await dumpWithout(guest, exclusion)).bytes, layout);
  t.same([...pages.values()], Array(8).fill(null));
});

t.test('a page that is left out and comes with data is refused', async (t) => {
  const guest = guestOf([0, 4]);
  const layout = planKdump(guest, { codec: 'zlib', exclusion: exclusionOf([{ start: 2, end: 3 }]) });
  const batch: PageBatch = { paddr: 0, count: 4, memory: 4 * PAGE_SIZE, ...encodePages(memoryOf(4), 'zlib') };
  await t.rejects(pipelinePromise(Readable.from([batch]), new KdumpFramer(layout), new Collector()), {
    code: 'BAD_INPUT',
    message: /page 0x2000 .* put a PageFilter first/,
  });
});

t.test('a terabyte of which every other 128 MiB is left out takes memory by its pages that are not zero', async (t) => {
  const pages = 2 ** 28;
  const regions = [{ base: 0, length: pages * PAGE_SIZE, backing: null, offset: 0 }];
  const guest = new MemoryGuest({ name: 'tera', arch: 'x86_64', regions, cpus: [], notes: [] });
  const runs: PfnRun[] = [];
  for (let start = 0; start < pages; start += 65_536) runs.push({ start, end: start + 32_768 });
  const exclusion = exclusionOf(runs);
  const layout = planKdump(guest, { codec: 'lzo', exclusion });
  t.equal(layout.excludedCount, pages / 2);
  const framer = new KdumpFramer(layout);
  const held = new Set<ArrayBufferLike>();
  let [bitmap, descriptors] = [0, 0];
  const zeros: PageBatch[] = [];
  for (let pfn = 0; pfn < pages; pfn += 16_384)
    zeros.push({ paddr: pfn * PAGE_SIZE, count: 16_384, memory: 16_384 * PAGE_SIZE });
  Readable.from(zeros).pipe(framer);
  for await (const { offset, length, data } of framer) {
    if (offset >= layout.descriptorsOffset && offset < layout.zeroPageOffset) descriptors += length;
    else if (offset >= layout.bitmapOffset + layout.bitmapBytes && offset < layout.descriptorsOffset) bitmap += length;
    if (data && offset >= layout.descriptorsOffset) held.add(data.buffer);
  }
  t.equal(descriptors, (pages / 2) * 24);
  t.equal(bitmap, layout.bitmapBytes);
  t.ok(held.size < 10, `the descriptors are views of ${held.size} buffers`);
});

t.test('property: kept pages are the memory, others are gone; flattened or not; our reader agrees', async (t) => {
  const folder = t.testdir({});
  await fc.assert(
    fc.asyncProperty(arbitraryRuns(96, 40), fc.integer({ min: 1, max: 30 }), async (runs, gap) => {
      const guest = guestOf([2, 40], [42 + gap, 20]);
      const exclusion = exclusionOf(runs);
      const layout = planKdump(guest, { codec: 'zlib', exclusion });
      const file = (await dumpWithout(guest, exclusion)).bytes;
      for (const [pfn, page] of readPages(file, layout)) {
        const same = page ? Buffer.compare(page, memoryOf(1, pfn)) === 0 : exclusion.has(pfn);
        if (!same || (page && exclusion.has(pfn))) throw new Error(`page ${pfn}`);
      }
      for (const flattened of [false, true]) {
        const path = join(folder, 'vmcore');
        writeFileSync(path, flattened ? (await dumpWithout(guest, exclusion, true)).bytes : file);
        const reader = await openKdump(path);
        const bytes = new Uint8Array(20 * PAGE_SIZE);
        reader.memory.read((42 + gap) * PAGE_SIZE, bytes);
        reader.close();
        const expected = blanked(memoryOf(20, 42 + gap), exclusion, 42 + gap);
        if (Buffer.compare(bytes, expected) !== 0) throw new Error('the reader has other memory');
        if (reader.pageCounts.excluded !== layout.excludedCount) throw new Error('the reader counts otherwise');
      }
    }),
    { numRuns: 60 },
  );
  t.pass();
});
