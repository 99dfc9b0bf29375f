/**
 * A bitmap of page frames in a file, read in pieces, with an index that tells how many pages come before a page: a
 * kdump has descriptors for the pages that are stored and no others, so a page's place among them is its descriptor's.
 */

import type { RandomFile } from './random-file.js';

/** Bytes that are read at a time. */
const PIECE_BYTES = 64 * 1024;
/** Bits between two entries of the index. */
const BLOCK_BITS = 4096;
const BLOCK_BYTES = BLOCK_BITS / 8;

/** Number of bits in a byte. */
const POPCOUNT = new Uint8Array(256).map((_, byte) => {
  let count = 0;
  for (let bits = byte; bits !== 0; bits &= bits - 1) count++;
  return count;
});

/** A run of bits that are set: [start, end). */
export interface BitRun {
  readonly start: number;
  readonly end: number;
}

/** The pieces of a bitmap of `bits` bits, with the bits behind its end cleared. The bytes are valid until the next. */
export async function* bitmapPieces(
  file: RandomFile,
  offset: number,
  bits: number,
): AsyncGenerator<{ firstBit: number; bytes: Uint8Array }, undefined> {
  const size = Math.ceil(bits / 8);
  const buffer = new Uint8Array(Math.min(PIECE_BYTES, size));
  for (let at = 0; at < size; at += PIECE_BYTES) {
    const bytes = buffer.subarray(0, Math.min(PIECE_BYTES, size - at));
    await file.read(offset + at, bytes);
    if (at + bytes.length === size) clearBehind(bytes, bits - at * 8);
    yield { firstBit: at * 8, bytes };
  }
}

function clearBehind(bytes: Uint8Array, bits: number): void {
  if (bits < bytes.length * 8) bytes[bytes.length - 1]! &= (1 << (bits & 7)) - 1;
}

/** The runs of bits that are set in a bitmap, in order. */
export async function* bitRuns(file: RandomFile, offset: number, bits: number): AsyncGenerator<BitRun, undefined> {
  let start = -1;
  for await (const { firstBit, bytes } of bitmapPieces(file, offset, bits)) {
    for (let i = 0; i < bytes.length; i++) {
      const byte = bytes[i]!;
      if (byte === (start < 0 ? 0 : 0xff)) continue;
      for (let bit = 0; bit < 8; bit++) {
        const isSet = (byte & (1 << bit)) !== 0;
        if (isSet === start >= 0) continue;
        const at = firstBit + i * 8 + bit;
        if (!isSet) yield { start, end: at };
        start = isSet ? at : -1;
      }
    }
  }
  if (start >= 0) yield { start, end: bits };
}

/** Random access to a bitmap. */
export class PageBitmap {
  readonly #file: RandomFile;
  readonly #offset: number;
  readonly #bits: number;
  /** how many bits are set before each block of BLOCK_BITS, and at last in all */
  readonly #before: Float64Array;
  readonly #piece: Uint8Array;
  #pieceStart = -1;

  private constructor(file: RandomFile, offset: number, bits: number, before: Float64Array) {
    this.#file = file;
    this.#offset = offset;
    this.#bits = bits;
    this.#before = before;
    this.#piece = new Uint8Array(Math.min(PIECE_BYTES, Math.ceil(bits / 8)));
  }

  /**
   * Indexes a bitmap; the index takes 8 bytes for 4096 bits.
   * @param offset file offset of the bitmap, which the file has to have whole
   * @param bits   number of bits, one for each page frame
   */
  static async open(file: RandomFile, offset: number, bits: number): Promise<PageBitmap> {
    const before = new Float64Array(Math.ceil(bits / BLOCK_BITS) + 1);
    let count = 0;
    for await (const { firstBit, bytes } of bitmapPieces(file, offset, bits))
      for (let at = 0; at < bytes.length; at += BLOCK_BYTES) {
        count += countBits(bytes, at, Math.min(at + BLOCK_BYTES, bytes.length));
        before[(firstBit + at * 8) / BLOCK_BITS + 1] = count;
      }
    return new PageBitmap(file, offset, bits, before);
  }

  /** How many bits are set. */
  get count(): number {
    return this.#before.at(-1)!;
  }

  /** Whether a bit is set; none is behind the end. */
  has(bit: number): boolean {
    return bit < this.#bits && (this.#byte(Math.floor(bit / 8)) & (1 << (bit % 8))) !== 0;
  }

  /** How many bits are set before `bit`. */
  rank(bit: number): number {
    const block = Math.floor(bit / BLOCK_BITS);
    let count = this.#before[block]!;
    const last = Math.floor(bit / 8);
    for (let byte = block * BLOCK_BYTES; byte < last; byte++) count += POPCOUNT[this.#byte(byte)]!;
    return bit % 8 === 0 ? count : count + POPCOUNT[this.#byte(last) & ((1 << (bit % 8)) - 1)]!;
  }

  /** The first bit in [from, to) that is set; `to` when none is. */
  nextSet(from: number, to: number): number {
    const end = Math.min(to, this.#bits);
    for (let bit = from; bit < end;) {
      const block = Math.floor(bit / BLOCK_BITS);
      if (this.#before[block] === this.#before[block + 1]) bit = (block + 1) * BLOCK_BITS;
      else if (bit % 8 === 0 && this.#byte(bit / 8) === 0) bit += 8;
      else if (this.has(bit)) return bit;
      else bit++;
    }
    return to;
  }

  #byte(index: number): number {
    if (index < this.#pieceStart || index >= this.#pieceStart + PIECE_BYTES || this.#pieceStart < 0) {
      this.#pieceStart = index - (index % PIECE_BYTES);
      const size = Math.min(PIECE_BYTES, Math.ceil(this.#bits / 8) - this.#pieceStart);
      this.#file.readSync(this.#offset + this.#pieceStart, this.#piece.subarray(0, size));
    }
    return this.#piece[index - this.#pieceStart]!;
  }
}

function countBits(bytes: Uint8Array, from: number, to: number): number {
  let count = 0;
  for (let i = from; i < to; i++) count += POPCOUNT[bytes[i]!]!;
  return count;
}
