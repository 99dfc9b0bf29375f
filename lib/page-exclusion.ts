/**
 * Which pages of a guest a dump leaves out, and why: one bit a page frame, held in pieces that are made only where a
 * page is left out, so that it takes memory by what the guest has and not by what it claims.
 *
 * Decided before the memory streams (transforms/page-filter.ts applies it), but for pages of zeros, which show
 * themselves on the way.
 */

import {
  DL_EXCLUDE_CACHE,
  DL_EXCLUDE_CACHE_PRI,
  DL_EXCLUDE_FREE,
  DL_EXCLUDE_USER_DATA,
  DL_EXCLUDE_ZERO,
} from './formats/kdump.js';

/** What `--exclude` calls the bits of a level. */
export const EXCLUDE_NAMES = {
  zero: DL_EXCLUDE_ZERO,
  cache: DL_EXCLUDE_CACHE,
  'cache-private': DL_EXCLUDE_CACHE_PRI,
  user: DL_EXCLUDE_USER_DATA,
  free: DL_EXCLUDE_FREE,
} as const;

/** Why a page is left out. The last two have no bit of their own: makedumpfile leaves them out at every level. */
export const EXCLUDE_REASONS = ['cache', 'cache-private', 'user', 'free', 'hwpoison', 'offline'] as const;
/** One of EXCLUDE_REASONS. */
export type ExcludeReason = (typeof EXCLUDE_REASONS)[number];

/** Pages of a piece of the bitmap: 128 MiB of memory, 4 KiB of bits. */
const PIECE_PAGES = 32_768;

/** A run of page frames: [start, end). */
export interface PfnRun {
  readonly start: number;
  readonly end: number;
}

/** The set of pages that a dump leaves out. */
export class PageExclusion {
  readonly #pieces = new Map<number, Uint32Array>();
  readonly #counts = new Map<ExcludeReason, number>();

  /** @param level what is left out; DL_EXCLUDE_ZERO in it is for the stages, no zero page is in the set */
  constructor(readonly level: number) {}

  /** Whether pages of zeros are left out too. */
  get zeros(): boolean {
    return (this.level & DL_EXCLUDE_ZERO) !== 0;
  }

  /** How many pages are left out for a reason; a page counts for the first that it had. */
  count(reason: ExcludeReason): number {
    return this.#counts.get(reason) ?? 0;
  }

  /** How many pages are left out. */
  get total(): number {
    return EXCLUDE_REASONS.reduce((sum, reason) => sum + this.count(reason), 0);
  }

  /** Leaves out `count` pages from `pfn` on. */
  add(pfn: number, count: number, reason: ExcludeReason): void {
    let added = 0;
    for (let at = pfn; at < pfn + count;) {
      const end = Math.min(pfn + count, (Math.floor(at / PIECE_PAGES) + 1) * PIECE_PAGES);
      added += setBits(this.#piece(at), at % PIECE_PAGES, end - at);
      at = end;
    }
    this.#counts.set(reason, this.count(reason) + added);
  }

  /** Whether a page is left out. */
  has(pfn: number): boolean {
    const bits = this.#pieces.get(Math.floor(pfn / PIECE_PAGES));
    const bit = pfn % PIECE_PAGES;
    return bits !== undefined && (bits[bit >>> 5]! & (1 << (bit & 31))) !== 0;
  }

  /** The first page in [from, to) that is left out, or that is not; `to` when there is none. */
  next(from: number, to: number, excluded: boolean): number {
    const whole = excluded ? 0 : -1;
    for (let at = from; at < to;) {
      const bits = this.#pieces.get(Math.floor(at / PIECE_PAGES));
      const bit = at % PIECE_PAGES;
      if (!bits) {
        if (!excluded) return at;
        at += PIECE_PAGES - bit;
      } else if ((bit & 31) === 0 && (bits[bit >>> 5]! | 0) === whole) at += 32;
      else if (((bits[bit >>> 5]! & (1 << (bit & 31))) !== 0) === excluded) return at;
      else at++;
    }
    return to;
  }

  /** The runs of pages in [from, to) that are left out, or that are not, in order. */
  *runs(from: number, to: number, excluded: boolean): Generator<PfnRun, undefined> {
    for (let at = from; at < to;) {
      const start = this.next(at, to, excluded);
      if (start >= to) return;
      const end = this.next(start, to, !excluded);
      yield { start, end };
      at = end;
    }
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
