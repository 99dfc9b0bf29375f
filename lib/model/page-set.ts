/**
 * A set of page frame numbers: one bit a page, in pieces that are made only where some pages are in the set and some are
 * not, so that it takes memory by what is in it and neither by how high the numbers go nor by how long a run is: a vmcore
 * of a few bytes can claim that terabytes were left out.
 */

/** Pages of a piece: 128 MiB of memory, 4 KiB of bits. */
const PIECE_PAGES = 32_768;

/** A piece that is in the set from end to end; one for all. */
const FULL = new Uint32Array(PIECE_PAGES / 32).fill(0xffff_ffff);

/** A run of page frames: [start, end). */
export interface PfnRun {
  readonly start: number;
  readonly end: number;
}

/** Page frame numbers, ascending. */
export class PageSet {
  readonly #pieces = new Map<number, Uint32Array>();
  #size = 0;

  /** How many pages are in the set. */
  get size(): number {
    return this.#size;
  }

  /** Adds `count` pages from `pfn` on. @returns how many of them were not in the set before */
  add(pfn: number, count: number): number {
    let added = 0;
    for (let at = pfn; at < pfn + count;) {
      const end = Math.min(pfn + count, (Math.floor(at / PIECE_PAGES) + 1) * PIECE_PAGES);
      added += end - at === PIECE_PAGES ? this.#fill(at) : setBits(this.#piece(at), at % PIECE_PAGES, end - at);
      at = end;
    }
    this.#size += added;
    return added;
  }

  /** Whether a page is in the set. */
  has(pfn: number): boolean {
    const bits = this.#pieces.get(Math.floor(pfn / PIECE_PAGES));
    const bit = pfn % PIECE_PAGES;
    return bits !== undefined && (bits[bit >>> 5]! & (1 << (bit & 31))) !== 0;
  }

  /** The first page in [from, to) that is in the set, or that is not; `to` when there is none. */
  next(from: number, to: number, included: boolean): number {
    const whole = included ? 0 : -1;
    for (let at = from; at < to;) {
      const bits = this.#pieces.get(Math.floor(at / PIECE_PAGES));
      const bit = at % PIECE_PAGES;
      if (!bits) {
        if (!included) return at;
        at += PIECE_PAGES - bit;
      } else if (bits === FULL) {
        if (included) return at;
        at += PIECE_PAGES - bit;
      } else if ((bit & 31) === 0 && (bits[bit >>> 5]! | 0) === whole) at += 32;
      else if (((bits[bit >>> 5]! & (1 << (bit & 31))) !== 0) === included) return at;
      else at++;
    }
    return to;
  }

  /** The runs of pages in [from, to) that are in the set, or that are not, in order. */
  *runs(from: number, to: number, included: boolean): Generator<PfnRun, undefined> {
    for (let at = from; at < to;) {
      const start = this.next(at, to, included);
      if (start >= to) return;
      const end = this.next(start, to, !included);
      yield { start, end };
      at = end;
    }
  }

  /** Adds a whole piece. @returns how many of its pages were not in the set before */
  #fill(pfn: number): number {
    const index = Math.floor(pfn / PIECE_PAGES);
    let added = PIECE_PAGES;
    for (const { start, end } of this.runs(pfn, pfn + PIECE_PAGES, true)) added -= end - start;
    this.#pieces.set(index, FULL);
    return added;
  }

  #piece(pfn: number): Uint32Array {
    const index = Math.floor(pfn / PIECE_PAGES);
    let bits = this.#pieces.get(index);
    if (!bits) this.#pieces.set(index, (bits = new Uint32Array(PIECE_PAGES / 32)));
    return bits;
  }
}

/** Sets bits that are not set. @returns how many those were */
function setBits(bits: Uint32Array, from: number, count: number): number {
  if (bits === FULL) return 0;
  let added = 0;
  for (let bit = from; bit < from + count;) {
    if ((bit & 31) === 0 && from + count - bit >= 32 && bits[bit >>> 5] === 0) {
      bits[bit >>> 5] = 0xffff_ffff;
      added += 32;
      bit += 32;
      continue;
    }
    const mask = 1 << (bit & 31);
    if ((bits[bit >>> 5]! & mask) === 0) {
      bits[bit >>> 5]! |= mask;
      added++;
    }
    bit++;
  }
  return added;
}
