import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import type { MemoryRegion } from '../../lib/model/physical-memory.js';
import { SlabPool } from '../../lib/model/slab-pool.js';
import { FileBacking } from '../../lib/io/file-backing.js';
import { MemorySource } from '../../lib/sources/memory-source.js';
import { type Chunk, chunkBytes, type DeferredChunk, releaseChunk } from '../../lib/model/stage.js';
import { exclusionOf } from '../exclusion-fixture.js';
import { addressPattern, BufferBacking } from '../guest-fixture.js';

const K = 1024;

async function collect(source: MemorySource): Promise<Chunk[]> {
  const chunks: Chunk[] = [];
  for await (const chunk of source) chunks.push(chunk);
  return chunks;
}

t.test('holes that the backing knows of are passed on unread', async (t) => {
  const backing = new BufferBacking(new Uint8Array(1024 * K).fill(7), [{ start: 512 * K + 5, end: 512 * K + 6 }]);
  const chunks = await collect(new MemorySource([{ base: 0, length: 1024 * K, backing, offset: 0 }]));
  t.same(
    chunks.map(({ kind, paddr, length }) => [paddr, length, kind === 'bytes']),
    [
      [0, 512 * K, false],
      [512 * K, 4 * K, true],
      [516 * K, 508 * K, false],
    ],
  );
});

t.test('a region without a backing is one hole, and a terabyte of it costs nothing', async (t) => {
  const chunks = await collect(new MemorySource([{ base: 0x1000, length: 2 ** 40, backing: null, offset: 0 }]));
  t.ok(chunks.every((chunk) => chunk.kind === 'hole'));
  t.equal(
    chunks.reduce((sum, chunk) => sum + chunk.length, 0),
    2 ** 40,
  );
});

t.test('chunks stay aligned to pages whatever the bases, and never cross a region', async (t) => {
  const region = (base: number, length: number): MemoryRegion => ({
    base,
    length,
    backing: new BufferBacking(addressPattern(length, base)),
    offset: 0,
  });
  const pool = new SlabPool(4, 64 * K);
  const regions = [region(0x800, 300 * K), region(0x800 + 300 * K, 100 * K)];
  const seen: [number, number][] = [];
  for await (const chunk of new MemorySource(regions, { pool })) {
    t.same(chunkBytes(chunk), addressPattern(chunk.length, chunk.paddr));
    seen.push([chunk.paddr, chunk.length]);
    releaseChunk(chunk);
  }
  t.ok(seen.slice(1, 4).every(([paddr]) => paddr % (64 * K) === 0));
  t.ok(
    seen.some(([paddr]) => paddr === 0x800 + 300 * K),
    'the second region begins a chunk',
  );
});

t.test('whole pages of a file come unread to whoever asks for that, and what else there is comes read', async (t) => {
  const file = join(t.testdir({}), 'memory');
  writeFileSync(file, addressPattern(300 * K));
  const inFile = FileBacking.open(file);
  t.teardown(() => inFile.close());
  const regions: MemoryRegion[] = [
    { base: 0, length: 100 * K, backing: inFile, offset: 200 * K },
    { base: 0x8000_0000, length: 6 * K, backing: inFile, offset: 512 },
    { base: 0x9000_0000, length: 8 * K, backing: new BufferBacking(addressPattern(8 * K)), offset: 0 },
  ];
  const chunks = await collect(new MemorySource(regions, { deferred: true, pool: new SlabPool(8, 64 * K) }));
  t.same(
    chunks.map((chunk) => [
      chunk.paddr,
      chunk.length,
      chunk.kind === 'deferred' ? chunk.place.offset : undefined,
      chunk.kind === 'bytes',
    ]),
    [
      [0, 64 * K, 200 * K, false],
      [64 * K, 36 * K, 264 * K, false],
      [0x8000_0000, 6 * K, undefined, true],
      [0x9000_0000, 8 * K, undefined, true],
    ],
  );
  const bytes = new Uint8Array(36 * K);
  const deferred = chunks[1] as DeferredChunk;
  await deferred.read(bytes);
  t.same(bytes, addressPattern(36 * K, 264 * K));
});

t.test('a backing that fails fails the stream, and its slab goes back', async (t) => {
  const pool = new SlabPool(1, 64 * K);
  const backing = new BufferBacking(new Uint8Array(10));
  await t.rejects(collect(new MemorySource([{ base: 0, length: 100, backing, offset: 0 }], { pool })), {
    code: 'TRUNCATED',
  });
  t.ok(await pool.take(), 'the slab is there again');
});

t.test('long runs of pages that are to be skipped are holes, short ones are read along', async (t) => {
  const backing = new BufferBacking(addressPattern(1024 * K));
  const skip = exclusionOf([
    { start: 1, end: 3 },
    { start: 32, end: 64 },
    { start: 70, end: 85 },
    { start: 240, end: 256 },
  ]);
  const region = { base: 0, length: 1024 * K, backing, offset: 0 };
  const chunks = await collect(new MemorySource([region], { skip }));
  t.same(
    chunks.map(({ kind, paddr, length }) => [paddr / K, length / K, kind === 'bytes']),
    [
      [0, 128, true],
      [128, 128, false],
      [256, 704, true],
      [960, 64, false],
    ],
  );
  t.equal(backing.reads, 2);
});

t.test('a source that has read on for long passes on what it has, and looks no further first', async (t) => {
  let looked = 0;
  const nextData = (offset: number, end: number) => {
    looked = Math.max(looked, offset);
    const start = Math.ceil(offset / (64 * K)) * 64 * K;
    return start < end ? { start, end: Math.min(start + 60 * K, end) } : null;
  };
  const backing = { name: 'sieve', nextData, readSync() {}, read: () => Promise.resolve(), close() {} };
  const source = new MemorySource([{ base: 0, length: 2 ** 40, backing, offset: 0 }], { pool: new SlabPool(1) });
  for await (const chunk of source) {
    releaseChunk(chunk);
    break;
  }
  t.ok(looked > 0 && looked <= 2 ** 27, `looked ${looked / K} KiB far`);
});

t.test('property: all bytes of a range come, once and in order', async () => {
  const runs = fc.array(fc.record({ gap: fc.nat(300 * K), length: fc.integer({ min: 1, max: 200 * K }) }), {
    maxLength: 4,
  });
  await fc.assert(
    fc.asyncProperty(runs, fc.nat(800 * K), fc.nat(800 * K), fc.nat(8), async (parts, begin, length, page) => {
      const size = 1024 * K;
      const flat = new Uint8Array(size);
      const data: { start: number; end: number }[] = [];
      let at = 0;
      for (const part of parts) {
        const start = at + part.gap;
        const end = Math.min(start + part.length, size);
        if (start >= end) break;
        flat.fill(0xa5, start, end);
        data.push({ start, end });
        at = end + 1;
      }
      const base = page * 4096;
      const range = { base: begin, length: length + 1 };
      const region = { base, length: size, backing: new BufferBacking(flat, data), offset: 0 };
      let expected = Math.max(base, begin);
      for (const chunk of await collect(new MemorySource([region], { range, pool: new SlabPool(100, 64 * K) }))) {
        if (chunk.paddr !== expected) return false;
        const bytes = chunkBytes(chunk) ?? new Uint8Array(chunk.length);
        const want = flat.subarray(chunk.paddr - base, chunk.paddr - base + chunk.length);
        if (Buffer.compare(bytes, want) !== 0) return false;
        expected += chunk.length;
      }
      return expected === Math.max(Math.min(base + size, begin + length + 1), Math.max(base, begin));
    }),
    { numRuns: 60 },
  );
});
