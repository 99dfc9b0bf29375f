import fc from 'fast-check';
import { pipelinePromise, Readable, Writable } from 'streamx';
import t from 'tap';
import { PhysicalMemory } from '../../lib/model/physical-memory.js';
import type { Chunk } from '../../lib/model/stage.js';
import { MemoryOverlay } from '../../lib/transforms/memory-overlay.js';
import { addressPattern, BufferBacking } from '../guest-fixture.js';
import { chunkOf, plain } from '../plain-chunk.js';
import { OverlaidMemory } from '../../lib/model/overlaid-memory.js';

async function through(chunks: readonly Chunk[], pages: ReadonlyMap<number, Uint8Array>): Promise<Chunk[]> {
  const out: Chunk[] = [];
  await pipelinePromise(
    Readable.from([...chunks]),
    new MemoryOverlay(pages),
    new Writable({
      write(chunk, callback) {
        out.push(chunk as Chunk);
        callback(null);
      },
    }),
  );
  return out;
}

t.test('replaced pages, whatever the chunks; bytes are given back once, when the last piece is', async (t) => {
  const bytes = addressPattern(16 * 4096);
  const cuts = fc.uniqueArray(fc.integer({ min: 1, max: bytes.length - 1 }), { maxLength: 6 });
  const pfns = fc.uniqueArray(fc.nat(20), { maxLength: 6 });
  await fc.assert(
    fc.asyncProperty(cuts, pfns, fc.nat(63), async (cuts, pfns, holes) => {
      const pages = new Map(pfns.map((pfn) => [pfn, new Uint8Array(4096).fill(pfn + 1)]));
      const ends = [...cuts.sort((a, b) => a - b), bytes.length];
      const released = new Map<number, number>();
      const chunks = ends.map((end, i): Chunk => {
        const paddr = i === 0 ? 0 : ends[i - 1]!;
        const length = end - paddr;
        if ((holes >> i) & 1) return chunkOf({ paddr, length });
        const release = () => released.set(paddr, (released.get(paddr) ?? 0) + 1);
        return chunkOf({ paddr, length, data: bytes.subarray(paddr, end), release });
      });
      const out = await through(chunks, pages);
      t.equal(released.size, chunks.filter((chunk) => chunk.kind === 'bytes' && allReplaced(chunk, pages)).length);

      const expected = Uint8Array.from(bytes);
      for (const { kind, paddr, length } of chunks) if (kind === 'hole') expected.fill(0, paddr, paddr + length);
      for (const [pfn, page] of pages) if (pfn < 16) expected.set(page, pfn * 4096);
      let at = 0;
      for (const { paddr, length, data } of out.map(plain)) {
        t.equal(paddr, at);
        t.equal(Buffer.compare(data ?? new Uint8Array(length), expected.subarray(at, at + length)), 0);
        at += length;
      }
      t.equal(at, bytes.length);
      for (const { release } of out.map(plain)) release();
      for (const { kind, paddr } of chunks) t.equal(released.get(paddr), kind === 'bytes' ? 1 : undefined);
    }),
    { numRuns: 100 },
  );
  t.same(bytes, addressPattern(16 * 4096), 'nothing was written');
});

function allReplaced({ paddr, length }: Omit<Chunk, 'release'>, pages: ReadonlyMap<number, Uint8Array>): boolean {
  for (let pfn = Math.floor(paddr / 4096); pfn * 4096 < paddr + length; pfn++) if (!pages.has(pfn)) return false;
  return true;
}

t.test('overlaid memory reads what was written, and leaves what is under it', async (t) => {
  const bytes = addressPattern(4 * 4096);
  const memory = new PhysicalMemory([
    { base: 0x1000, length: bytes.length, backing: new BufferBacking(bytes), offset: 0 },
  ]);
  const overlaid = new OverlaidMemory(memory);
  overlaid.write(0x1ffc, Uint8Array.of(1, 2, 3, 4));
  overlaid.write(0x2000, Uint8Array.of(5, 6));
  const read = new Uint8Array(8);
  t.equal(overlaid.read(0x1ffa, read), true);
  t.same(read, [...bytes.subarray(0xffa, 0xffc), 1, 2, 3, 4, 5, 6]);
  t.same([...overlaid.pages.keys()], [1, 2]);
  t.equal(overlaid.read(0x4ffc, read), false, 'the end of memory is where it was');
  t.same(bytes, addressPattern(4 * 4096));
});
