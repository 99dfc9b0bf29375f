import fc from 'fast-check';
import { pipelinePromise, Readable } from 'streamx';
import t from 'tap';
import { decodePageDescriptor } from '../../lib/formats/kdump.js';
import { MemoryGuest } from '../../lib/sources/memory-guest.js';
import { PAGE_SIZE, type PageBatch } from '../../lib/model/stage.js';
import { KdumpFramer } from '../../lib/transforms/kdump-framer.js';
import { type KdumpLayout, planKdump } from '../../lib/layouts/kdump-layout.js';
import { Collector, encodePages } from '../kdump-fixture.js';

function layoutOf(...blocks: readonly [pfn: number, count: number][]): KdumpLayout {
  const regions = blocks.map(([pfn, count]) => ({
    base: pfn * PAGE_SIZE,
    length: count * PAGE_SIZE,
    backing: null,
    offset: 0,
  }));
  const guest = new MemoryGuest({ name: 'layout', arch: 'x86_64', regions, cpus: [], notes: [] });
  return planKdump(guest, { codec: 'zlib' });
}

async function frame(layout: KdumpLayout, batches: readonly PageBatch[]): Promise<Collector> {
  const sink = new Collector();
  await pipelinePromise(Readable.from([...batches]), new KdumpFramer(layout), sink);
  return sink;
}

/** Pages as a batch; each is filled with its number, 0 for a zero page. */
function batchOf(pfn: number, values: readonly number[], release?: () => void): PageBatch {
  const pages = new Uint8Array(values.length * PAGE_SIZE);
  values.forEach((value, i) => {
    pages.fill(value, i * PAGE_SIZE, (i + 1) * PAGE_SIZE);
  });
  const memory = pages.length;
  return { paddr: pfn * PAGE_SIZE, count: values.length, memory, release, ...encodePages(pages, 'zlib') };
}

const zeros = (pfn: number, count: number): PageBatch => ({
  paddr: pfn * PAGE_SIZE,
  count,
  memory: count * PAGE_SIZE,
});

t.test('each page has its descriptor, zero pages share one page, data are back to back', async (t) => {
  const layout = layoutOf([0, 4], [8, 2]);
  const sink = await frame(layout, [batchOf(0, [1, 0, 2, 0]), zeros(8, 1), batchOf(9, [3])]);
  const file = sink.bytes;
  const view = new DataView(file.buffer, file.byteOffset, file.length);
  const pages = Array.from({ length: 6 }, (_, i) => decodePageDescriptor(view, layout.descriptorsOffset + 24 * i));
  const zero = { offset: layout.zeroPageOffset, size: PAGE_SIZE, flags: 0 };
  t.strictSame([pages[1], pages[3], pages[4]], [zero, zero, zero]);
  t.equal(pages[0]!.offset, layout.zeroPageOffset + PAGE_SIZE);
  t.equal(pages[2]!.offset, pages[0]!.offset + pages[0]!.size);
  t.equal(pages[5]!.offset, pages[2]!.offset + pages[2]!.size);
  t.equal(file.length, pages[5]!.offset + pages[5]!.size);
  t.equal(pages[0]!.flags, 1);
});

t.test('a page that does not shrink is stored with flags 0', async (t) => {
  const layout = layoutOf([0, 1]);
  const page = new Uint8Array(PAGE_SIZE).map(() => Math.floor(Math.random() * 256));
  const sink = await frame(layout, [{ paddr: 0, count: 1, memory: PAGE_SIZE, ...encodePages(page, 'zlib') }]);
  const view = new DataView(sink.bytes.buffer, sink.bytes.byteOffset);
  t.match(decodePageDescriptor(view, layout.descriptorsOffset), { size: PAGE_SIZE, flags: 0 });
  t.equal(Buffer.compare(sink.bytes.subarray(-PAGE_SIZE), page), 0);
});

t.test('a batch is released once, when its data have been taken, or at once when it has none', async (t) => {
  let released = 0;
  const release = () => released++;
  await frame(layoutOf([0, 6]), [
    batchOf(0, [1, 2], release),
    batchOf(2, [0, 0], release),
    batchOf(4, [3, 0], release),
  ]);
  t.equal(released, 3);
});

t.test('long runs of zero pages are not encoded one by one', async (t) => {
  const count = 200_000;
  const layout = layoutOf([0, count + 2]);
  const sink = await frame(layout, [batchOf(0, [5]), zeros(1, count), batchOf(count + 1, [6])]);
  t.equal(sink.memory, layout.memoryBytes);
  const file = sink.bytes;
  const view = new DataView(file.buffer, file.byteOffset);
  for (let i = 1; i <= count; i += 997)
    t.equal(decodePageDescriptor(view, layout.descriptorsOffset + 24 * i).offset, layout.zeroPageOffset);
  t.not(decodePageDescriptor(view, layout.descriptorsOffset + 24 * (count + 1)).offset, layout.zeroPageOffset);
});

t.test('pages that are missing, come twice or out of order are refused', async (t) => {
  const layout = layoutOf([0, 2], [4, 2]);
  const all = [batchOf(0, [1, 2]), batchOf(4, [3, 4])];
  await frame(layout, all);
  await t.rejects(frame(layout, all.slice(0, 1)), { code: 'TRUNCATED', message: /2 of 4 pages/ });
  await t.rejects(frame(layout, []), { code: 'TRUNCATED' });
  await t.rejects(frame(layout, all.toReversed()), { code: 'BAD_INPUT', message: /at 0x4000 came .* those at 0x0/ });
  await t.rejects(frame(layout, [...all, zeros(6, 1)]), { code: 'BAD_INPUT', message: /no more/ });
  await t.rejects(frame(layout, [zeros(0, 3)]), { code: 'BAD_INPUT' });
});

t.test('property: extents stand for all of the memory, and none overlaps another', async () => {
  const runs = fc.array(
    fc.record({ gap: fc.integer({ min: 1, max: 9 }), values: fc.array(fc.nat(2), { minLength: 1, maxLength: 9 }) }),
    { minLength: 1, maxLength: 5 },
  );
  await fc.assert(
    fc.asyncProperty(runs, fc.boolean(), async (parts, holes) => {
      let pfn = 0;
      const blocks: [number, number][] = [];
      const batches: PageBatch[] = [];
      for (const { gap, values } of parts) {
        pfn += gap;
        blocks.push([pfn, values.length]);
        const hole = holes && values.every((value) => value === 0);
        batches.push(hole ? zeros(pfn, values.length) : batchOf(pfn, values));
        pfn += values.length;
      }
      const layout = layoutOf(...blocks);
      const sink = await frame(layout, batches);
      const sorted = sink.extents.filter(({ length }) => length > 0).sort((a, b) => a.offset - b.offset);
      const apart = sorted.every(
        (extent, i) => i === 0 || sorted[i - 1]!.offset + sorted[i - 1]!.length <= extent.offset,
      );
      return apart && sink.memory === layout.memoryBytes;
    }),
    { numRuns: 60 },
  );
});
