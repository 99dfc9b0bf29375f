/**
 * Which pages of a guest a dump leaves out, and why: one bit a page frame (page-set.ts), so that it takes
 * memory by what the guest has and not by what it claims.
 *
 * Decided before the memory streams (transforms/page-filter.ts applies it), but for pages of zeros, which show
 * themselves on the way.
 */

import { type PfnRun, PageSet } from './page-set.js';

export type { PfnRun } from './page-set.js';
import {
  DL_EXCLUDE_CACHE,
  DL_EXCLUDE_CACHE_PRI,
  DL_EXCLUDE_FREE,
  DL_EXCLUDE_USER_DATA,
  DL_EXCLUDE_ZERO,
} from './dump-level.js';

/** What `--exclude` calls the bits of a level. */
export const EXCLUDE_NAMES = {
  zero: DL_EXCLUDE_ZERO,
  cache: DL_EXCLUDE_CACHE,
  'cache-private': DL_EXCLUDE_CACHE_PRI,
  user: DL_EXCLUDE_USER_DATA,
  free: DL_EXCLUDE_FREE,
} as const;

/**
 * Why a page is left out. Poisoned and offline pages have no bit of their own: makedumpfile leaves them out at every
 * level. What is missing was left out of the source by whoever made it.
 */
export const EXCLUDE_REASONS = ['cache', 'cache-private', 'user', 'free', 'hwpoison', 'offline', 'missing'] as const;
/** One of EXCLUDE_REASONS. */
export type ExcludeReason = (typeof EXCLUDE_REASONS)[number];

/** Pages that a source lacks, because it is a dump that left them out. They read as zeros. */
export interface MissingPages {
  /** the level at which they were left out */
  readonly level: number;
  /** how many they are */
  readonly count: number;
  /** which they are, ascending */
  runs(): Iterable<PfnRun>;
}

/** The set of pages that a dump leaves out. */
export class PageExclusion {
  readonly #pages = new PageSet();
  readonly #counts = new Map<ExcludeReason, number>();

  #level: number;

  /** @param level what is left out; DL_EXCLUDE_ZERO in it is for the stages, no zero page is in the set */
  constructor(level: number) {
    this.#level = level;
  }

  /** What is left out, DL_EXCLUDE_* bits. */
  get level(): number {
    return this.#level;
  }

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
    return this.#pages.size;
  }

  /** Leaves out `count` pages from `pfn` on. */
  add(pfn: number, count: number, reason: ExcludeReason): void {
    this.#counts.set(reason, this.count(reason) + this.#pages.add(pfn, count));
  }

  /** Leaves out what the source lacks. */
  addMissing(missing: MissingPages): void {
    this.#level |= missing.level;
    for (const { start, end } of missing.runs()) this.add(start, end - start, 'missing');
  }

  /** Whether a page is left out. */
  has(pfn: number): boolean {
    return this.#pages.has(pfn);
  }

  /** The first page in [from, to) that is left out, or that is not; `to` when there is none. */
  next(from: number, to: number, excluded: boolean): number {
    return this.#pages.next(from, to, excluded);
  }

  /** How many pages of [from, to) are left out. */
  countIn(from: number, to: number): number {
    let count = 0;
    for (const { start, end } of this.runs(from, to, true)) count += end - start;
    return count;
  }

  /** The runs of pages in [from, to) that are left out, or that are not, in order. */
  runs(from: number, to: number, excluded: boolean): Generator<PfnRun, undefined> {
    return this.#pages.runs(from, to, excluded);
  }
}
