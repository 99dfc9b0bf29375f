import fc from 'fast-check';
import t from 'tap';
import { bitRuns, PageBitmap } from '../../lib/sources/kdump/page-bitmap.js';
import type { RandomFile } from '../../lib/io/random-file.js';

/** A file of zeros but for the bytes of a bitmap at `offset`; knows its holes by pages when asked to. */
function fileOf(
  size: number,
  offset: number,
  bits: readonly number[],
  knowsHoles: boolean,
): RandomFile & { read: unknown } {
  const bytes = new Map<number, number>();
  for (const bit of bits) {
    const at = offset + Math.floor(bit / 8);
    bytes.set(at, (bytes.get(at) ?? 0) | (1 << (bit % 8)));
  }
  const pages = [...new Set([...bytes.keys()].map((at) => Math.floor(at / 4096)))].sort((a, b) => a - b);
  const file = {
    name: 'bitmap',
    size,
    readSync(at: number, into: Uint8Array) {
      into.fill(0);
      for (const [place, byte] of bytes) if (place >= at && place < at + into.length) into[place - at] = byte;
    },
    read: async (at: number, into: Uint8Array) => file.readSync(at, into),
    close() {},
  };
  if (!knowsHoles) return file;
  return Object.assign(file, {
    nextData(at: number, end: number) {
      const page = pages.find((page) => (page + 1) * 4096 > at && page * 4096 < end);
      return page === undefined ? null : { start: Math.max(at, page * 4096), end: Math.min(end, (page + 1) * 4096) };
    },
  });
}

/** Runs of sorted numbers, by counting. */
function runsOf(bits: readonly number[]): { start: number; end: number }[] {
  const runs: { start: number; end: number }[] = [];
  for (const bit of bits) {
    const last = runs.at(-1);
    if (last?.end === bit) last.end++;
    else runs.push({ start: bit, end: bit + 1 });
  }
  return runs;
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

/** Bits around the ends of pieces (524288 bits) and blocks (4096), and far away. */
const place = fc.oneof(
  fc.integer({ min: 0, max: 10_000 }),
  fc.integer({ min: 4090, max: 4110 }),
  fc.integer({ min: 524_280, max: 524_300 }),
  fc.integer({ min: 0, max: 3_000_000 }),
);
const runs = fc.array(fc.record({ place, length: fc.integer({ min: 1, max: 40 }) }), { maxLength: 12 });

t.test('property: a bitmap is what its bits are, whether the file knows holes or not', async () => {
  await fc.assert(
    fc.asyncProperty(runs, place, fc.boolean(), fc.nat(100), async (parts, from, knowsHoles, more) => {
      const set = new Set(parts.flatMap(({ place, length }) => Array.from({ length }, (_, i) => place + i)));
      const bits = [...set].sort((a, b) => a - b);
      const count = (bits.at(-1) ?? 0) + 1 + more;
      const bitmap = { file: fileOf(2 ** 20, 512, bits, knowsHoles), offset: 512, bits: count };
      const opened = await PageBitmap.open(bitmap);
      const expected = {
        runs: runsOf(bits),
        count: bits.length,
        rank: bits.filter((bit) => bit < from).length,
        has: set.has(from),
        next: bits.find((bit) => bit >= from) ?? count + from,
      };
      const got = {
        runs: await collect(bitRuns(bitmap)),
        count: opened.count,
        rank: opened.rank(Math.min(from, count)),
        has: opened.has(from),
        next: opened.nextSet(from, count + from),
      };
      return JSON.stringify(got) === JSON.stringify(expected);
    }),
    { numRuns: 300 },
  );
});

t.test('a bitmap of terabytes with holes: what is not there is neither read nor kept', async (t) => {
  const bits = [3, 2 ** 39, 2 ** 39 + 1, 2 ** 40 - 1];
  const file = fileOf(2 ** 37 + 4096, 4096, bits, true);
  const bitmap = { file, offset: 4096, bits: 2 ** 40, maxBytes: 3 * 65536 };
  t.same(await collect(bitRuns(bitmap)), runsOf(bits));
  const opened = await PageBitmap.open(bitmap);
  t.equal(opened.count, 4);
  t.equal(opened.nextSet(4, 2 ** 40), 2 ** 39);
  t.equal(opened.rank(2 ** 40 - 1), 3);
  t.equal(opened.rank(2 ** 38), 1);
  t.equal(opened.has(2 ** 38), false);
  await t.rejects(PageBitmap.open({ ...bitmap, maxBytes: 2 * 65536 }), {
    code: 'LIMIT',
    message: 'bitmap has bitmaps of more bytes than maxBitmapBytes = 131072',
  });
});
