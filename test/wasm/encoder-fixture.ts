/** The kernel over a small memory, decoders that are not ours, and pages that are hard on encoders. */

import { inflateSync } from 'node:zlib';
import fc from 'fast-check';
import { unzlibSync } from 'fflate';
import { LZO } from 'lzo-ts';
import snappy from 'snappyjs';
import {
  compileEncoder,
  INPUT_SLACK,
  instantiateEncoder,
  WASM_CODECS,
  KIND_BYTES,
  OUTPUT_SLACK,
  SCRATCH_BYTES,
  SIZE_BYTES,
} from '../../lib/wasm/encoder-module.js';
import { PAGE_SIZE } from '../../lib/model/stage.js';

export type Codec = keyof typeof WASM_CODECS;
export const CODECS = Object.keys(WASM_CODECS) as Codec[];

/** Each codec at each level that makes a difference. */
export const VARIANTS: readonly (readonly [codec: Codec, level: number])[] = [
  ['zlib', 1],
  ['zlib', 2],
  ['zlib', 9],
  ['lzo', 1],
  ['lzo', 2],
  ['snappy', 1],
  ['snappy', 2],
];

/** What fills the gaps between the things in a bench's memory, and has to be there afterwards. */
const CANARY = 0xa5;
const GAP = 256;

/** What a batch came to. */
export interface Batch {
  readonly kinds: Uint8Array;
  readonly sizes: Uint16Array;
  readonly data: Uint8Array;
}

/** Encodes by a kernel of its own, and looks after every call whether something was written where nothing should be. */
export class WasmBench {
  readonly memory: WebAssembly.Memory;
  readonly bytes: Uint8Array;
  readonly kernel = compileEncoder();
  readonly #instance;
  readonly #pages = GAP;
  readonly #out;
  readonly #sizes;
  readonly #kinds;
  readonly #scratch;
  readonly #gaps: readonly (readonly [start: number, end: number])[];

  constructor(capacity: number) {
    const pagesEnd = this.#pages + capacity * PAGE_SIZE;
    this.#out = pagesEnd + INPUT_SLACK + GAP;
    const outEnd = this.#out + capacity * PAGE_SIZE + OUTPUT_SLACK;
    this.#sizes = outEnd + GAP;
    const sizesEnd = this.#sizes + capacity * SIZE_BYTES;
    this.#kinds = sizesEnd + GAP;
    const kindsEnd = this.#kinds + capacity * KIND_BYTES;
    this.#scratch = Math.ceil((kindsEnd + GAP) / 16) * 16;
    const scratchEnd = this.#scratch + SCRATCH_BYTES;
    const units = Math.ceil((scratchEnd + GAP) / 65_536);
    this.memory = new WebAssembly.Memory({ initial: units, maximum: units, shared: true });
    this.bytes = new Uint8Array(this.memory.buffer);
    this.#gaps = [
      [0, this.#pages],
      [pagesEnd, this.#out],
      [outEnd, this.#sizes],
      [sizesEnd, this.#kinds],
      [kindsEnd, this.#scratch],
      [scratchEnd, this.bytes.length],
    ];
    for (const [start, end] of this.#gaps) this.bytes.fill(CANARY, start, end);
    this.#instance = instantiateEncoder(this.kernel, this.memory);
    this.forget();
  }

  /** Makes the scratch as if nothing had been encoded. */
  forget(): void {
    this.bytes.fill(0, this.#scratch, this.#scratch + SCRATCH_BYTES);
    this.#instance.init(this.#scratch);
  }

  /** Encodes up to a page, whether that helps or not. */
  encode(codec: Codec, level: number, input: Uint8Array): Buffer {
    this.bytes.set(input, this.#pages);
    const { length } = input;
    const size = this.#instance.encodePage(WASM_CODECS[codec], this.#pages, length, this.#out, this.#scratch, level);
    this.#check(input);
    return Buffer.from(this.bytes.subarray(this.#out, this.#out + size));
  }

  /** Encodes pages as a batch. */
  encodeBatch(codec: Codec, level: number, pages: Uint8Array): Batch {
    this.bytes.set(pages, this.#pages);
    const count = pages.length / PAGE_SIZE;
    const size = this.#instance.encodeBatch(
      WASM_CODECS[codec],
      this.#pages,
      count,
      this.#out,
      this.#sizes,
      this.#kinds,
      this.#scratch,
      level,
    );
    this.#check(pages);
    return {
      sizes: new Uint16Array(this.bytes.slice(this.#sizes, this.#sizes + count * SIZE_BYTES).buffer),
      kinds: this.bytes.slice(this.#kinds, this.#kinds + count * KIND_BYTES),
      data: this.bytes.slice(this.#out, this.#out + size),
    };
  }

  #check(input: Uint8Array): void {
    for (const [start, end] of this.#gaps)
      for (let at = start; at < end; at++)
        if (this.bytes[at] !== CANARY) throw new Error(`the kernel wrote at ${at}, outside of ${start}-${end}`);
    if (Buffer.compare(input, this.bytes.subarray(this.#pages, this.#pages + input.length)))
      throw new Error('the kernel changed its input');
  }
}

const DECODERS: Readonly<Record<Codec, readonly ((encoded: Uint8Array) => Uint8Array)[]>> = {
  zlib: [(encoded) => inflateSync(encoded), (encoded) => unzlibSync(encoded)],
  lzo: [(encoded) => LZO.decompress(encoded)],
  snappy: [(encoded) => snappy.uncompress(encoded)],
};

/** Whether every decoder gives the input back. */
export function decodesTo(codec: Codec, encoded: Uint8Array, input: Uint8Array): boolean {
  return DECODERS[codec].every((decode) => Buffer.compare(decode(encoded), input) === 0);
}

/** Bytes without a pattern, the same ones for the same seed. */
export function noise(length: number, seed: number): Uint8Array {
  let state = seed | 1;
  return Uint8Array.from({ length }, () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state & 255;
  });
}

const TEXT = Buffer.from(
  'A page of text has words that come again, and words that do not: the encoder finds the former and counts the ' +
    'latter. Kernel memory has pointers (ffffffff81000000), counters, names such as kworker/u4:2 and much that is zero. ',
);

/** Text that repeats itself, but not soon. */
export function text(length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, at) => TEXT[(at + (at >> 8) * 31) % TEXT.length]!);
}

/** Bytes that repeat with a period. */
export function periodic(length: number, period: number): Uint8Array {
  const pattern = noise(period, period * 7919);
  return Uint8Array.from({ length }, (_, at) => pattern[at % period]!);
}

/** A page of little-endian 32-bit values. */
export function words(value: (index: number) => number): Uint8Array {
  return new Uint8Array(Uint32Array.from({ length: PAGE_SIZE / 4 }, (_, index) => value(index)).buffer);
}

/** A page of noise where `length` bytes at `at` repeat those `distance` before. */
export function oneMatch(at: number, distance: number, length: number): Uint8Array {
  const page = noise(PAGE_SIZE, at * 31 + distance * 17 + length);
  for (let i = at; i < Math.min(at + length, PAGE_SIZE); i++) page[i] = page[i - distance]!;
  return page;
}

/** A page whose bytes occur as often as Fibonacci's numbers say, which makes the deepest Huffman trees. */
export function fibonacci(): Uint8Array {
  const page = new Uint8Array(PAGE_SIZE).fill(255);
  const order = noise(PAGE_SIZE, 5);
  let [at, count, next] = [0, 1, 1];
  for (let byte = 0; at < PAGE_SIZE; byte++) {
    page.fill(byte, at, at + count);
    at += count;
    [count, next] = [next, count + next];
  }
  // Shuffled, so that matches do not take the counts away.
  for (let i = PAGE_SIZE - 1; i > 0; i--) {
    const j = (order[i]! * 256 + order[i - 1]!) % (i + 1);
    [page[i], page[j]] = [page[j]!, page[i]!];
  }
  return page;
}

/** Pages by name, each of which has an encoder at one of its limits. */
export function* hardPages(): Generator<readonly [name: string, page: Uint8Array]> {
  yield ['zeros', new Uint8Array(PAGE_SIZE)];
  yield ['ones', new Uint8Array(PAGE_SIZE).fill(255)];
  yield ['byte that hashes like an empty slot', new Uint8Array(PAGE_SIZE).fill(0x9d)];
  yield ['noise', noise(PAGE_SIZE, 1)];
  yield ['text', text(PAGE_SIZE)];
  yield ['fibonacci', fibonacci()];
  yield ['all bytes in turn', Uint8Array.from({ length: PAGE_SIZE }, (_, at) => at)];
  yield ['noise of two bytes', noise(PAGE_SIZE, 3).map((byte) => byte & 1)];
  yield ['noise of four bytes', noise(PAGE_SIZE, 3).map((byte) => byte & 3)];
  yield ['noise of 64 bytes', noise(PAGE_SIZE, 3).map((byte) => byte & 63)];
  yield ['counter', words((index) => index)];
  yield ['table of near values', words((index) => 0x82a30a48 + index * 24)];
  yield ['pointers', words((index) => (index & 1 ? 0xffff8880 : index * 0x1140))];
  yield ['half noise, half zeros', noise(PAGE_SIZE, 9).fill(0, PAGE_SIZE / 2)];
  yield ['half zeros, half noise', noise(PAGE_SIZE, 9).fill(0, 0, PAGE_SIZE / 2)];
  for (const at of [
    0, 1, 2, 3, 4, 7, 8, 15, 16, 63, 64, 65, 2047, 2048, 4031, 4032, 4080, 4084, 4092, 4093, 4094, 4095,
  ]) {
    const page = new Uint8Array(PAGE_SIZE);
    page[at] = 1;
    yield [`zeros but for byte ${at}`, page];
  }
  for (let period = 1; period <= 70; period++) yield [`period ${period}`, periodic(PAGE_SIZE, period)];
  for (const period of [127, 128, 129, 255, 256, 257, 511, 512, 1023, 1024, 2047, 2048, 2049, 3000, 4000, 4088, 4092])
    yield [`period ${period}`, periodic(PAGE_SIZE, period)];
  for (const distance of [1, 2, 3, 4, 5, 8, 63, 64, 65, 1024, 2047, 2048, 2049, 3072])
    for (const length of [3, 4, 5, 8, 9, 11, 12, 16])
      yield [`match of ${length} at distance ${distance}`, oneMatch(3080, distance, length)];
  for (const length of [
    17, 33, 34, 60, 61, 64, 65, 67, 68, 128, 132, 257, 258, 259, 260, 261, 262, 288, 289, 515, 516, 519,
  ])
    yield [`match of ${length}`, oneMatch(1000, 700, length)];
  for (const length of [3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 17, 31, 32, 64, 300])
    yield [`match of the last ${length}`, oneMatch(PAGE_SIZE - length, 1500, length)];
  for (const distance of [4080, 4084, 4088, 4092, 4093])
    yield [`match with the first bytes, ${distance} back`, oneMatch(distance, distance, 16)];
  for (const run of [
    1, 2, 3, 4, 5, 17, 18, 19, 59, 60, 61, 62, 237, 238, 239, 255, 256, 257, 258, 272, 273, 274, 527, 528, 529,
  ])
    yield [`runs of ${run} literals`, runsOf(run)];
}

/** A page of runs of noise with zeros between. */
function runsOf(length: number): Uint8Array {
  const page = noise(PAGE_SIZE, length);
  for (let at = length; at < PAGE_SIZE; at += length + 8) page.fill(0, at, at + 8);
  return page;
}

/** Random inputs of long copies and tables of near values between them: places that the zlib encoder skips and uses. */
export function anyTables(): fc.Arbitrary<Uint8Array> {
  const copy = fc.record({ distance: fc.integer({ min: 1, max: 200 }), length: fc.integer({ min: 60, max: 300 }) });
  const table = fc.record({ first: fc.nat(), step: fc.nat({ max: 400 }), length: fc.integer({ min: 3, max: 40 }) });
  return fc.array(fc.tuple(table, copy), { minLength: 20, maxLength: 20 }).map((steps) => {
    const bytes: number[] = [];
    for (const [{ first, step, length }, copied] of steps) {
      const values = Uint32Array.from({ length }, (_, index) => first + index * step);
      bytes.push(...new Uint8Array(values.buffer));
      for (let i = 0; i < copied.length; i++) bytes.push(bytes[bytes.length - copied.distance] ?? 7);
    }
    return Uint8Array.from({ length: PAGE_SIZE }, (_, at) => bytes[at % bytes.length]!);
  });
}

/** Random inputs of the shapes that encoders look for: literals, copies of earlier bytes, runs of a byte. */
export function anyInput(maxLength: number): fc.Arbitrary<Uint8Array> {
  const literals = fc
    .uint8Array({ minLength: 1, maxLength: 40 })
    .map((bytes) => ({ kind: 'literals', bytes }) as const);
  const copy = fc
    .record({ distance: fc.integer({ min: 1, max: maxLength }), length: fc.integer({ min: 1, max: 300 }) })
    .map((value) => ({ kind: 'copy', ...value }) as const);
  const run = fc
    .record({ byte: fc.integer({ min: 0, max: 255 }), length: fc.integer({ min: 1, max: 600 }) })
    .map((value) => ({ kind: 'run', ...value }) as const);
  const steps = fc.array(fc.oneof(literals, copy, run), { maxLength: 120 });
  return steps.map((list) => {
    const bytes: number[] = [];
    for (const step of list) {
      if (step.kind === 'literals') bytes.push(...step.bytes);
      else
        for (let i = 0; i < step.length; i++)
          bytes.push(step.kind === 'run' ? step.byte : (bytes[bytes.length - step.distance] ?? 7));
      if (bytes.length >= maxLength) break;
    }
    return Uint8Array.from(bytes.slice(0, maxLength));
  });
}
