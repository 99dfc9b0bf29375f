/**
 * A bitmap of page frames in a file, read in pieces, with an index that tells how many pages come before a page: a
 * kdump has descriptors for the pages that are stored and no others, so a page's place among them is its descriptor's.
 *
 * A bitmap reaches as high as memory does: device memory at 56 TiB makes it 1.8 GiB, all but a few pieces a hole of the
 * file. So holes are skipped, and only pieces that have a bit are kept in the index.
 */

import { VmcoreError } from '../../model/errors.js';
import type { RandomFile } from '../../io/random-file.js';

/** Bytes that are read at a time, and their bits. */
const PIECE_BYTES = 64 * 1024;
const PIECE_BITS = PIECE_BYTES * 8;
/** Bits between two entries of the index, and their bytes. */
const BLOCK_BITS = 4096;
const BLOCK_BYTES = BLOCK_BITS / 8;

/** Number of bits in a byte. */
const POPCOUNT = new Uint8Array(256).map((_, byte) => {
  let count = 0;
  for (let bits = byte; bits !== 0; bits &= bits - 1) count++;
  return count;
});

/** A bitmap in a file, which has to have all of it. */
export interface BitmapPlace {
  readonly file: RandomFile;
  /** file offset of the first byte */
  readonly offset: number;
  /** number of bits, one for each page frame */
  readonly bits: number;
  /** bytes of pieces that have a bit which there may be; without a bound by default */
  readonly maxBytes?: number | undefined;
}

/** A run of bits that are set: [start, end). */
export interface BitRun {
  readonly start: number;
  readonly end: number;
}

/** A piece of a bitmap that has a bit. */
interface Piece {
  /** its place among all pieces of the bitmap */
  readonly number: number;
  /** with the bits behind the bitmap's end cleared; valid until the next piece */
  readonly bytes: Uint8Array;
}

/** The pieces of a bitmap that have a bit, in order. @throws VmcoreError LIMIT, READ, TRUNCATED */
async function* bitmapPieces({ file, offset, bits, maxBytes = Infinity }: BitmapPlace): AsyncGenerator<Piece> {
  const size = Math.ceil(bits / 8);
  const buffer = Buffer.alloc(Math.min(PIECE_BYTES, size));
  let left = maxBytes;
  for (let at = 0; at < size; at += PIECE_BYTES) {
    const data = file.nextData ? file.nextData(offset + at, offset + size) : { start: offset + at };
    if (!data) return;
    const number = Math.floor((data.start - offset) / PIECE_BYTES);
    at = number * PIECE_BYTES;
    const bytes = buffer.subarray(0, Math.min(PIECE_BYTES, size - at));
    await file.read(offset + at, bytes);
    if (at + bytes.length === size) clearBehind(bytes, bits - at * 8);
    if (isZeros(bytes)) continue;
    left -= bytes.length;
    if (left < 0)
      throw new VmcoreError('LIMIT', `${file.name} has bitmaps of more bytes than maxBitmapBytes = ${maxBytes}`);
    yield { number, bytes };
  }
}

function clearBehind(bytes: Uint8Array, bits: number): void {
  if (bits < bytes.length * 8) bytes[bytes.length - 1]! &= (1 << (bits & 7)) - 1;
}

const ZEROS = Buffer.alloc(PIECE_BYTES);

function isZeros(bytes: Buffer): boolean {
  return bytes.equals(ZEROS.subarray(0, bytes.length));
}

/** The runs of bits that are set in a bitmap, in order. @throws VmcoreError LIMIT, READ, TRUNCATED */
export async function* bitRuns(place: BitmapPlace): AsyncGenerator<BitRun, undefined> {
  let start = -1;
  let next = 0;
  for await (const { number, bytes } of bitmapPieces(place)) {
    const firstBit = number * PIECE_BITS;
    if (start >= 0 && firstBit > next) {
      yield { start, end: next };
      start = -1;
    }
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
    next = firstBit + bytes.length * 8;
  }
  if (start >= 0) yield { start, end: Math.min(next, place.bits) };
}

/** What is known of a piece that has a bit. */
interface IndexedPiece {
  /** its place among all pieces of the bitmap */
  readonly number: number;
  /** how many bits are set before it */
  readonly before: number;
  /** how many bits of it are set before each of its blocks, and at last in all */
  readonly counts: Uint32Array;
}

/** Random access to a bitmap. */
export class PageBitmap {
  readonly #place: BitmapPlace;
  /** in order */
  readonly #pieces: readonly IndexedPiece[];
  /** how many bits are set */
  readonly count: number;
  readonly #byNumber: ReadonlyMap<number, IndexedPiece>;
  /** the bytes of the piece that was looked at last, and its number */
  readonly #bytes: Uint8Array;
  #loaded = -1;

  private constructor(place: BitmapPlace, pieces: readonly IndexedPiece[], count: number) {
    this.#place = place;
    this.#pieces = pieces;
    this.count = count;
    this.#byNumber = new Map(pieces.map((piece) => [piece.number, piece]));
    this.#bytes = new Uint8Array(Math.min(PIECE_BYTES, Math.ceil(place.bits / 8)));
  }

  /** Indexes a bitmap; the index takes 4 bytes for 4096 bits. @throws VmcoreError LIMIT, READ, TRUNCATED */
  static async open(place: BitmapPlace): Promise<PageBitmap> {
    const pieces: IndexedPiece[] = [];
    let before = 0;
    for await (const { number, bytes } of bitmapPieces(place)) {
      const counts = countBlocks(bytes);
      pieces.push({ number, before, counts });
      before += counts.at(-1)!;
    }
    return new PageBitmap(place, pieces, before);
  }

  /** Whether a bit is set; none is behind the end. */
  has(bit: number): boolean {
    return bit < this.#place.bits && (this.#byte(Math.floor(bit / 8)) & (1 << (bit % 8))) !== 0;
  }

  /** How many bits are set before `bit`. */
  rank(bit: number): number {
    const piece = this.#byNumber.get(Math.floor(bit / PIECE_BITS));
    if (!piece) return this.#pieceFrom(bit)?.before ?? this.count;
    const block = Math.floor((bit % PIECE_BITS) / BLOCK_BITS);
    let count = piece.before + piece.counts[block]!;
    const last = Math.floor(bit / 8);
    for (let byte = Math.floor(bit / BLOCK_BITS) * BLOCK_BYTES; byte < last; byte++)
      count += POPCOUNT[this.#byte(byte)]!;
    return bit % 8 === 0 ? count : count + POPCOUNT[this.#byte(last) & ((1 << (bit % 8)) - 1)]!;
  }

  /** The first bit in [from, to) that is set; `to` when none is. */
  nextSet(from: number, to: number): number {
    const end = Math.min(to, this.#place.bits);
    for (let bit = from; bit < end;) {
      const piece = this.#byNumber.get(Math.floor(bit / PIECE_BITS));
      if (!piece) {
        const next = this.#pieceFrom(bit);
        if (!next) return to;
        bit = next.number * PIECE_BITS;
        continue;
      }
      const block = Math.floor((bit % PIECE_BITS) / BLOCK_BITS);
      if (piece.counts[block] === piece.counts[block + 1]) bit = (Math.floor(bit / BLOCK_BITS) + 1) * BLOCK_BITS;
      else if (bit % 8 === 0 && this.#byte(bit / 8) === 0) bit += 8;
      else if (this.has(bit)) return bit;
      else bit++;
    }
    return to;
  }

  /** The first piece that has a bit and does not begin before `bit`. */
  #pieceFrom(bit: number): IndexedPiece | undefined {
    let low = 0;
    let high = this.#pieces.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#pieces[middle]!.number * PIECE_BITS < bit) low = middle + 1;
      else high = middle;
    }
    return this.#pieces[low];
  }

  #byte(index: number): number {
    const number = Math.floor(index / PIECE_BYTES);
    if (number !== this.#loaded) {
      if (!this.#byNumber.has(number)) return 0;
      this.#load(number);
    }
    return this.#bytes[index - number * PIECE_BYTES]!;
  }

  #load(number: number): void {
    const { file, offset, bits } = this.#place;
    const at = number * PIECE_BYTES;
    this.#loaded = -1;
    file.readSync(offset + at, this.#bytes.subarray(0, Math.min(PIECE_BYTES, Math.ceil(bits / 8) - at)));
    this.#loaded = number;
  }
}

/** How many bits are set before each block of a piece, and at last in all of it. */
function countBlocks(bytes: Uint8Array): Uint32Array {
  const counts = new Uint32Array(Math.ceil(bytes.length / BLOCK_BYTES) + 1);
  for (let block = 0; block + 1 < counts.length; block++) {
    const from = block * BLOCK_BYTES;
    counts[block + 1] = counts[block]! + countBits(bytes, from, Math.min(from + BLOCK_BYTES, bytes.length));
  }
  return counts;
}

function countBits(bytes: Uint8Array, from: number, to: number): number {
  let count = 0;
  for (let i = from; i < to; i++) count += POPCOUNT[bytes[i]!]!;
  return count;
}
