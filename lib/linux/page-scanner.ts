/**
 * Decides page by page what a dump leaves out, as makedumpfile does (makedumpfile.c, __exclude_unnecessary_pages), from
 * an array of `struct page`.
 *
 * It decides as makedumpfile on a healthy guest, and trusts less: members of a struct page that say the same thing twice
 * have to agree, or the page is kept and counted as undecided. So a bit that has flipped shows, where the kernel's own
 * redundancy lets it:
 *   - a free block is aligned, has no references, and neither have its pages, none of which begins another;
 *   - the pages of a compound page refer to its first;
 *   - a page of the page cache or of a process has references, no page type, and a pointer to what it is mapped by, or
 *     is on a list;
 *   - huge pages have the sizes that x86 has, and are on no list of the page cache's.
 *
 * It is the loop over all pages of a guest: no allocation, no bigint, 64-bit members as two halves.
 */

import type { ExcludeReason, PageExclusion } from '../model/page-exclusion.js';
import type { PageSet } from '../model/page-set.js';
import type { BitMask, PageLayout } from './page-layout.js';
import { DL_EXCLUDE_CACHE, DL_EXCLUDE_CACHE_PRI, DL_EXCLUDE_FREE, DL_EXCLUDE_USER_DATA } from '../model/dump-level.js';

/** Bit 0 of compound_head: a page of a compound page that is not the first (PageTail) */
const TAIL = 1;
/** Bit 0 of mapping: a page of a process, or one that is shared by content (PAGE_MAPPING_ANON, PAGE_MAPPING_KSM) */
const MAPPING_ANON = 1;
/** A bit of mapping that is no flag and that no object of the kernel's has in its address: they are aligned to 8. */
const MISALIGNED = 4;
/** _mapcount of a page that is mapped nowhere; what is below is a page type, which pages of files and processes have not. */
const NO_TYPE = -1;
/** Compound pages are smaller than this on any machine; what is above is no order. */
const MAX_COMPOUND_ORDER = 18;

/** What becomes of a page. */
type Verdict = ExcludeReason | 'keep' | 'undecided';

/** Pages that belong together and are left out together, as far as each of them agrees. */
interface Group {
  /** one past its last page frame; 0 when there is none */
  end: number;
  reason: ExcludeReason;
  /** pages of a compound page refer to its first struct page: its address with TAIL, in halves; 0 for a free block */
  low: number;
  high: number;
  /** of a huge page, Linux may keep but one page of struct pages and map it again and again (HVO) */
  huge: boolean;
}

/** Struct pages that follow one another. */
export interface PageArray {
  /** little-endian, as in the guest */
  readonly words: Int32Array;
  readonly bytes: Uint8Array;
  /** virtual address of the first */
  readonly vaddr: bigint;
  /** its page frame */
  readonly firstPfn: number;
  readonly count: number;
}

/** Free blocks by order, as the kernel lists them: page frames of their first pages. Orders that are absent are not checked. */
export type ListedBlocks = ReadonlyMap<number, PageSet>;

/** Goes through struct pages in ascending order of page frames. */
export class PageScanner {
  readonly #layout: PageLayout;
  readonly #exclusion: PageExclusion;
  readonly #level: number;
  readonly #listed: ListedBlocks;
  readonly #group: Group = { end: 0, reason: 'free', low: 0, high: 0, huge: false };
  #words: Int32Array = new Int32Array(0);
  #bytes: Uint8Array = new Uint8Array(0);
  #vaddrLow = 0;
  /** words from a long to its upper half: 1, or 0 where longs are of 32 bits */
  readonly #high: number;
  readonly #pointerFloor: number;
  readonly #run = { start: 0, end: 0, reason: 'free' as ExcludeReason };

  /** pages that contradict themselves and are kept */
  undecided = 0;
  /** free blocks that were found, by order */
  readonly freeBlocks: number[];

  /**
   * @param pointerFloor KernelMemory.pointerFloor
   * @param listed       free blocks of some orders, the only ones that are left out
   */
  constructor(layout: PageLayout, exclusion: PageExclusion, pointerFloor: number, listed: ListedBlocks) {
    this.#layout = layout;
    this.#pointerFloor = pointerFloor;
    this.#high = layout.long / 4 - 1;
    this.#exclusion = exclusion;
    this.#level = exclusion.level;
    this.#listed = listed;
    this.freeBlocks = Array.from({ length: layout.freeOrders }, () => 0);
  }

  /** Decides the pages of an array. @returns how many of them contradict themselves */
  scan(pages: PageArray): number {
    const { firstPfn, count } = pages;
    const before = this.undecided;
    this.#words = pages.words;
    this.#bytes = pages.bytes;
    this.#vaddrLow = Number(BigInt.asIntN(32, pages.vaddr));
    const stride = this.#layout.size / 4;
    const group = this.#group;
    for (let index = 0, at = 0; index < count; index++, at += stride) {
      const pfn = firstPfn + index;
      if (pfn < group.end) {
        if (this.#belongs(at)) {
          this.#exclude(pfn, group.reason);
          continue;
        }
        this.undecided++;
        group.end = 0;
      }
      const verdict = this.#decide(at, pfn, pages);
      if (verdict === 'undecided') this.undecided++;
      else if (verdict !== 'keep') this.#exclude(pfn, verdict);
    }
    return this.undecided - before;
  }

  /** What was decided is in the exclusion when this has been called. */
  finish(): void {
    const run = this.#run;
    if (run.end > run.start) this.#exclusion.add(run.start, run.end - run.start, run.reason);
    run.start = run.end = 0;
  }

  /** Forgets what the last page was part of: the next to come are others. */
  skip(): void {
    this.#group.end = 0;
  }

  #exclude(pfn: number, reason: ExcludeReason): void {
    const run = this.#run;
    if (pfn === run.end && reason === run.reason) run.end++;
    else {
      this.finish();
      run.start = pfn;
      run.end = pfn + 1;
      run.reason = reason;
    }
  }

  /** The order of questions is makedumpfile's. */
  #decide(at: number, pfn: number, pages: PageArray): Verdict {
    const layout = this.#layout;
    const words = this.#words;
    if ((words[at + layout.compoundHead / 4]! & TAIL) !== 0) return 'keep';
    const mapcount = words[at + layout.mapcount / 4]!;
    const slab = mapcount === layout.slab || this.#has(at, layout.slabFlag);
    if ((this.#level & DL_EXCLUDE_FREE) !== 0) {
      if (mapcount === layout.buddy && !slab) return this.#freeBlock(at, pfn);
      if (mapcount === layout.unaccepted) return this.#unaccepted(pfn);
    }
    const anon = (words[at + layout.mapping / 4]! & MAPPING_ANON) !== 0 && !slab;
    const cache = anon ? null : this.#cacheReason(at);
    if (cache !== null)
      return !slab && this.#agreesAsCache(at, mapcount) ? this.#compound(at, pfn, cache, pages) : 'undecided';
    if ((this.#level & DL_EXCLUDE_USER_DATA) !== 0) {
      if (!slab && this.#isHuge(at, mapcount)) return this.#hugePage(at, pfn, pages);
      if (anon) return this.#agreesAsUser(at, mapcount) ? this.#compound(at, pfn, 'user', pages) : 'undecided';
    }
    if (this.#has(at, layout.poisonFlag)) return this.#compound(at, pfn, 'hwpoison', pages);
    // Offline pages are split, so that they can be given back one by one.
    if (mapcount === layout.offline && !slab) return this.#has(at, layout.headFlag) ? 'undecided' : 'offline';
    return 'keep';
  }

  /** A block of free pages; `private` of its first page is its order. */
  #freeBlock(at: number, pfn: number): Verdict {
    const layout = this.#layout;
    const order = this.#words[at + layout.private / 4]!;
    const known =
      order >= 0 && order < layout.freeOrders && (this.#high === 0 || this.#words[at + layout.private / 4 + 1] === 0);
    if (!known || pfn % 2 ** order !== 0) return 'undecided';
    if (!this.#isUnused(at) || this.#has(at, layout.privateFlag)) return 'undecided';
    if (this.#listed.get(order)?.has(pfn) === false) return 'undecided';
    this.freeBlocks[order]!++;
    return this.#begin(pfn, order, 'free');
  }

  /** Memory that a confidential guest has not accepted from its host yet: blocks of the largest order. */
  #unaccepted(pfn: number): Verdict {
    const order = this.#layout.freeOrders - 1;
    return pfn % 2 ** order === 0 ? this.#begin(pfn, order, 'free') : 'undecided';
  }

  /** Which kind of page cache a page is in, if it is one that is left out. */
  #cacheReason(at: number): ExcludeReason | null {
    const { lruFlag, swapBackedFlag, swapCacheFlag, privateFlag } = this.#layout;
    if (!this.#has(at, lruFlag) && !(this.#has(at, swapBackedFlag) && this.#has(at, swapCacheFlag))) return null;
    const asked = this.#level & (DL_EXCLUDE_CACHE | DL_EXCLUDE_CACHE_PRI);
    if (this.#has(at, privateFlag)) return (asked & DL_EXCLUDE_CACHE_PRI) !== 0 ? 'cache-private' : null;
    return asked !== 0 ? 'cache' : null;
  }

  /** A page of the cache is in use, and belongs to a file or is on a list; without PG_private nothing is in `private`. */
  #agreesAsCache(at: number, mapcount: number): boolean {
    const layout = this.#layout;
    const words = this.#words;
    if (words[at + layout.refcount / 4] === 0 || mapcount < NO_TYPE) return false;
    const swapCache = this.#has(at, layout.swapCacheFlag);
    if (!swapCache && !this.#hasMapping(at) && !this.#isListed(at)) return false;
    if ((this.#level & DL_EXCLUDE_CACHE_PRI) !== 0 || swapCache) return true;
    return (words[at + layout.private / 4]! | words[at + layout.private / 4 + this.#high]!) === 0;
  }

  /** Whether `mapping` points to an object of the kernel's. */
  #hasMapping(at: number): boolean {
    const mapping = at + this.#layout.mapping / 4;
    return (this.#words[mapping]! & MISALIGNED) === 0 && this.#isPointer(mapping);
  }

  /** Whether `lru` is part of a list: it has not been taken from one, nor is it one of its own, as it is at first. */
  #isListed(at: number): boolean {
    const lru = at + this.#layout.lru / 4;
    const words = this.#words;
    const own = (this.#vaddrLow + lru * 4) | 0;
    return this.#isPointer(lru) && this.#isPointer(lru + this.#layout.long / 4) && words[lru] !== own;
  }

  /** A page of a process: it has a mapping, and when it is not mapped it is at least one that could be swapped. */
  #agreesAsUser(at: number, mapcount: number): boolean {
    const { headFlag, swapBackedFlag, swapCacheFlag } = this.#layout;
    if (!this.#hasMapping(at) || mapcount < NO_TYPE) return false;
    return (
      mapcount > NO_TYPE || this.#has(at, headFlag) || this.#has(at, swapBackedFlag) || this.#has(at, swapCacheFlag)
    );
  }

  /** Whether a page can be part of a free block. */
  #isUnused(at: number): boolean {
    const { refcount, lruFlag, headFlag } = this.#layout;
    return this.#words[at + refcount / 4] === 0 && !this.#has(at, lruFlag) && !this.#has(at, headFlag);
  }

  #isHuge(at: number, mapcount: number): boolean {
    const { huge, headFlag, size } = this.#layout;
    if (!this.#has(at, headFlag)) return false;
    if (huge.kind === 'mapcount') return mapcount === huge.value;
    // What is in the second struct page is not at hand for the last of an array, which no compound page begins with.
    if (at + size / 2 > this.#words.length) return false;
    if (huge.kind === 'flag') return this.#has(at + size / 4, huge.mask);
    return huge.kind === 'dtor' && this.#bytes[at * 4 + huge.offset] === huge.value;
  }

  #hugePage(at: number, pfn: number, pages: PageArray): Verdict {
    const order = this.#order(at, pfn);
    if (order === null || !this.#layout.hugeOrders.includes(order) || this.#has(at, this.#layout.lruFlag))
      return 'undecided';
    this.#beginCompound(at, pfn, order, 'user', pages);
    this.#group.huge = true;
    return 'user';
  }

  /** A page, and if it begins a compound page, all of that. */
  #compound(at: number, pfn: number, reason: ExcludeReason, pages: PageArray): Verdict {
    if (!this.#has(at, this.#layout.headFlag)) return reason;
    const order = this.#order(at, pfn);
    if (order === null || order === 0) return 'undecided';
    this.#beginCompound(at, pfn, order, reason, pages);
    return reason;
  }

  /** The order of a compound page; null when there is none that fits. */
  #order(at: number, pfn: number): number | null {
    const { compoundOrder, size } = this.#layout;
    if (at + size / 2 > this.#words.length) return null;
    const order = this.#bytes[at * 4 + compoundOrder]!;
    return order <= MAX_COMPOUND_ORDER && pfn % 2 ** order === 0 ? order : null;
  }

  #begin(pfn: number, order: number, reason: ExcludeReason): ExcludeReason {
    const group = this.#group;
    group.end = pfn + 2 ** order;
    group.reason = reason;
    group.low = group.high = 0;
    group.huge = false;
    return reason;
  }

  #beginCompound(at: number, pfn: number, order: number, reason: ExcludeReason, { vaddr }: PageArray): void {
    const head = vaddr + BigInt(at * 4 + TAIL);
    this.#begin(pfn, order, reason);
    this.#group.low = Number(BigInt.asIntN(32, head));
    this.#group.high = Number(BigInt.asIntN(32, head >> 32n));
  }

  /** Whether a page agrees that it is part of the group. */
  #belongs(at: number): boolean {
    const { compoundHead, mapcount, buddy, headFlag } = this.#layout;
    const words = this.#words;
    const group = this.#group;
    if (group.low === 0) return this.#isUnused(at) && words[at + mapcount / 4] !== buddy;
    const head = at + compoundHead / 4;
    const same = words[head] === group.low && (this.#high === 0 || words[head + 1] === group.high);
    return same || (group.huge && this.#has(at, headFlag));
  }

  /** Whether a long is the address of something of the kernel's. */
  #isPointer(at: number): boolean {
    return this.#words[at + this.#high]! >>> 0 >= this.#pointerFloor;
  }

  #has(at: number, mask: BitMask): boolean {
    const flags = at + this.#layout.flags / 4;
    return ((this.#words[flags]! & mask.low) | (this.#words[flags + 1]! & mask.high)) !== 0;
  }
}
