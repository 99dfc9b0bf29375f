/** ELF vmcores that leave pages out. */

import { join } from 'node:path';
import fc from 'fast-check';
import { pipelinePromise, Readable } from 'streamx';
import t from 'tap';
import { NOT_STORED, type ProgramHeader, PT_LOAD } from '../../lib/formats/elf.js';
import { encodeNote, NOTE_NAME_VMCOREINFO } from '../../lib/formats/notes.js';
import { type ElfLayout, guestLongMode, planElf } from '../../lib/layouts/elf-layout.js';
import type { Chunk } from '../../lib/model/chunk.js';
import { PAGE_SIZE } from '../../lib/model/page-size.js';
import type { MemoryBlock } from '../../lib/model/physical-memory.js';
import { FileSink } from '../../lib/sinks/file-sink.js';
import { openElfCore } from '../../lib/sources/elf/elf-core.js';
import { ElfFramer } from '../../lib/transforms/elf-framer.js';
import { PageFilter } from '../../lib/transforms/page-filter.js';
import { arbitraryRuns, blanked, exclusionOf } from '../exclusion-fixture.js';
import { addressPattern, patternGuest } from '../guest-fixture.js';
import { Collector } from '../kdump-fixture.js';

const pages = (pfn: number, count: number) => ({ base: pfn * PAGE_SIZE, length: count * PAGE_SIZE });

function loadsOf({ programHeaders }: ElfLayout): readonly ProgramHeader[] {
  return programHeaders.filter(({ type }) => type === PT_LOAD);
}

/** PT_LOADs in pages: [physical, pages of memory, pages in the file]. */
function loadPages(layout: ElfLayout): number[][] {
  return loadsOf(layout).map(({ paddr, memsz, filesz }) => [paddr, memsz, filesz].map((n) => n / PAGE_SIZE));
}

t.test('long runs end a segment, and have one of their own that is not in the file; short ones do not', (t) => {
  const exclusion = exclusionOf([
    { start: 10, end: 266 },
    { start: 300, end: 555 },
    { start: 1500, end: 2000 },
  ]);
  const layout = planElf(patternGuest([pages(0, 2000)]), { exclusion });
  t.same(loadPages(layout), [
    [0, 10, 10],
    [10, 256, 0],
    [266, 1234, 1234],
    [1500, 500, 0],
  ]);
  t.same(
    layout.blocks.map(({ offset }) => (offset - layout.memoryOffset) / PAGE_SIZE),
    [0, 10, 10, 1244],
  );
  t.equal(layout.storedBytes, 1244 * PAGE_SIZE);
  t.equal(layout.memoryBytes, 2000 * PAGE_SIZE);
  t.equal(layout.size, layout.memoryOffset + layout.storedBytes);
  t.end();
});

t.test('a block that begins with a gap, and one of which nothing is left', (t) => {
  const exclusion = exclusionOf([
    { start: 0, end: 300 },
    { start: 1000, end: 1400 },
  ]);
  const layout = planElf(patternGuest([pages(0, 400), pages(1000, 400), pages(2000, 1)]), { exclusion });
  t.same(loadPages(layout), [
    [0, 300, 0],
    [300, 100, 100],
    [1000, 400, 0],
    [2000, 1, 1],
  ]);
  t.ok(loadsOf(layout).every(({ offset, filesz }) => offset >= layout.memoryOffset && offset + filesz <= layout.size));
  t.end();
});

t.test('with paging, mappings are cut where segments end, and keep their virtual addresses', (t) => {
  const exclusion = exclusionOf([{ start: 100, end: 400 }]);
  const high = 0xffff_8000_0000_0000n;
  const mappings = [
    { vaddr: high, paddr: 0, length: 500 * PAGE_SIZE },
    { vaddr: 0x1000n, paddr: 200 * PAGE_SIZE, length: 10 * PAGE_SIZE },
    { vaddr: 0x9000n, paddr: 1000 * PAGE_SIZE, length: PAGE_SIZE },
  ];
  const layout = planElf(patternGuest([pages(0, 500)]), { exclusion, mappings });
  t.same(loadPages(layout), [
    [0, 100, 100],
    [100, 300, 0],
    [400, 100, 100],
    [200, 10, 0],
    [1000, 1, 0],
  ]);
  t.same(
    loadsOf(layout).map(({ vaddr }) => vaddr),
    [high, high + BigInt(100 * PAGE_SIZE), high + BigInt(400 * PAGE_SIZE), 0x1000n, 0x9000n],
  );
  t.same(
    loadsOf(layout).map(({ offset }) => offset === NOT_STORED),
    [false, false, false, false, true],
    'only what is no memory has no place in the file',
  );
  t.end();
});

t.test('too many segments are refused', (t) => {
  const runs = Array.from({ length: 2 ** 18 + 2 }, (_, i) => ({ start: i * 300 + 1, end: i * 300 + 257 }));
  const options = { exclusion: exclusionOf(runs) };
  const block = { base: 0, length: 300 * (2 ** 18 + 2) * PAGE_SIZE };
  const guest = { arch: 'x86_64', cpus: [], notes: [], blocks: [block] } as const;
  t.throws(() => planElf(guest, options), { code: 'LIMIT', message: /--keep-layout/ });
  const few = { exclusion: exclusionOf(runs.slice(0, 2 ** 17 - 1)) };
  t.equal(planElf(guest, few).programHeaders.length, 2 ** 18, 'as many as our own reader takes');
  const alias = { vaddr: 0x1000n, paddr: 0, length: block.length };
  t.throws(() => planElf(guest, { ...few, mappings: [alias, alias] }), { code: 'LIMIT' });
  t.end();
});

async function frame(chunks: Iterable<Chunk>, layout: ElfLayout): Promise<Collector> {
  const sink = new Collector();
  await pipelinePromise(Readable.from([...chunks]), new ElfFramer(layout), sink);
  return sink;
}

t.test('a chunk over several segments is cut, and given back once, with its last bytes', async (t) => {
  const exclusion = exclusionOf([
    { start: 10, end: 300 },
    { start: 400, end: 700 },
  ]);
  const guest = patternGuest([pages(0, 1000)]);
  const layout = planElf(guest, { exclusion });
  const data = addressPattern(1000 * PAGE_SIZE);
  let released = 0;
  const release = () => {
    released++;
  };
  const chunk: Chunk = { kind: 'bytes', paddr: 0, length: data.length, data, release };
  const sink = await frame([chunk], layout);
  t.equal(released, 1);
  t.equal(sink.memory, layout.memoryBytes);
  const kept = [
    data.subarray(0, 10 * PAGE_SIZE),
    data.subarray(300 * PAGE_SIZE, 400 * PAGE_SIZE),
    data.subarray(700 * PAGE_SIZE),
  ];
  t.equal(Buffer.compare(sink.bytes.subarray(layout.memoryOffset), Buffer.concat(kept)), 0);

  const gone: Chunk = {
    kind: 'bytes',
    paddr: 10 * PAGE_SIZE,
    length: PAGE_SIZE,
    data: data.subarray(0, PAGE_SIZE),
    release,
  };
  await t.rejects(frame([gone], layout), { code: 'TRUNCATED' }, 'all of the memory has to come');
  t.equal(released, 2, 'bytes that nobody takes go back, too');
  await t.rejects(frame([{ kind: 'hole', paddr: 999 * PAGE_SIZE, length: 2 * PAGE_SIZE }], layout), {
    code: 'BAD_INPUT',
  });
});

/** What a guest's memory looks like to who opens a file. */
async function firstDifference(path: string, expected: Uint8Array): Promise<string | null> {
  const reader = await openElfCore(path);
  try {
    for (const { base, length } of reader.blocks) {
      const bytes = new Uint8Array(length);
      reader.memory!.read(base, bytes);
      if (Buffer.compare(bytes, expected.subarray(base, base + length)) !== 0) return `block at 0x${base.toString(16)}`;
    }
    return null;
  } finally {
    reader.close();
  }
}

/** The pages that a file lacks. */
async function leftOutPages(path: string): Promise<number[]> {
  const reader = await openElfCore(path);
  reader.close();
  return [...(reader.missing?.runs() ?? [])].flatMap(({ start, end }) => numbers(start, end));
}

/** The pages of which a layout stores nothing. */
function gapPages({ blocks }: ElfLayout): number[] {
  const pagesOf = ({ base, length }: MemoryBlock) =>
    numbers(Math.floor(base / PAGE_SIZE), Math.ceil((base + length) / PAGE_SIZE));
  return blocks.filter(({ stored }) => stored === 0).flatMap(pagesOf);
}

function numbers(start: number, end: number): number[] {
  return Array.from({ length: end - start }, (_, i) => start + i);
}

t.test(
  'property: kept pages are in the file, all others read as zeros, whether the layout is kept or not',
  async (t) => {
    const path = join(t.testdir({}), 'vmcore');
    const guest = patternGuest([pages(0, 600)]);
    const all = addressPattern(600 * PAGE_SIZE);
    const part = fc.record({ base: fc.nat(500 * PAGE_SIZE), length: fc.integer({ min: 1, max: 1 << 21 }) });
    const ranges = fc.option(part, { nil: undefined });
    await fc.assert(
      fc.asyncProperty(arbitraryRuns(600, 500), ranges, fc.boolean(), async (runs, range, keepLayout) => {
        const exclusion = exclusionOf(runs);
        const layout = planElf(guest, { range, ...(keepLayout ? {} : { exclusion }) });
        const sink = new FileSink(path, { force: true });
        const chunks = guest.chunks({ range, skip: exclusion });
        await pipelinePromise(chunks, new PageFilter(exclusion), new ElfFramer(layout), sink);
        t.equal(sink.totals.completed, layout.memoryBytes);
        t.equal(sink.totals.size, layout.size);
        t.equal(await firstDifference(path, blanked(all, exclusion)), null);
        t.strictSame(await leftOutPages(path), gapPages(layout), 'what was left out is told');
      }),
      { numRuns: 30 },
    );
  },
);

t.test('a guest without CPUs is what its kernel is', (t) => {
  const guest = (text: string, arch: 'x86_64' | 'i386') => ({
    arch,
    cpus: [],
    notes: [encodeNote(NOTE_NAME_VMCOREINFO, 0, Buffer.from(text))],
  });
  t.equal(guestLongMode(guest('SYMBOL(_stext)=ffffffff81000000\n', 'i386')), true);
  t.equal(guestLongMode(guest('SYMBOL(_stext)=c1000000\n', 'x86_64')), false);
  t.equal(guestLongMode(guest('SYMBOL(swapper_pg_dir)=c1000000\n', 'x86_64')), false);
  t.equal(guestLongMode(guest('OSRELEASE=6.1.0\n', 'i386')), false);
  t.equal(guestLongMode({ arch: 'x86_64', cpus: [], notes: [] }), true);
  t.end();
});
