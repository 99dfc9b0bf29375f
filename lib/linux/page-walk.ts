/**
 * The struct pages of a guest's memory, in order, in pieces of bounded size; and the footprint of it all: the pages of
 * memory that hold them and the page tables that lead to them. Each of those pages has one use, and the kernel's own
 * data is never left out of a dump. So where the footprint overlaps with itself, or with what is left out by its own
 * testimony, a page table has led astray.
 */

import { setImmediate as breathe } from 'node:timers/promises';
import { PageSet } from '../model/page-set.js';
import { blockEnd, type MemoryBlock } from '../model/physical-memory.js';
import { PAGE_SIZE } from '../model/stage.js';
import type { Footprint, KernelMemory } from './kernel-memory.js';
import type { PageLayout } from './page-layout.js';
import type { PageArray } from './page-scanner.js';
import type { MemoryMap, MemorySection, OnDamage } from './memory-section.js';

/** Struct pages of a piece: 1 MiB at 64 bytes each. More than any free block or compound page but one of 1 GiB has. */
export const PIECE_PAGES = 16_384;

/** How often HVO can map a page once more: of 4096 pages of struct pages of a page of 1 GiB, one may be left. */
const MAX_REPEATS = 4095;

/** What earlier walks have learned. */
export interface Suspicions {
  /** pages of memory that hold struct pages or page tables, and are something else besides */
  readonly pages: PageSet;
  /** first page frames of pieces that make no sense */
  readonly pieces: ReadonlySet<number>;
}

/** What a walk needs. */
export interface WalkOptions {
  readonly kernel: KernelMemory;
  readonly sections: MemoryMap;
  readonly layout: PageLayout;
  /** the guest's memory */
  readonly blocks: readonly MemoryBlock[];
  readonly suspicions: Suspicions;
  readonly onDamage: OnDamage;
  readonly signal?: AbortSignal | undefined;
}

/** One walk over all struct pages. */
export class PageWalk implements Footprint {
  readonly #options: WalkOptions;
  readonly #buffer: Uint8Array;
  #lastPage = -1;
  #repeats = 0;
  #suspect = false;

  /** pages of the guest's memory that is not online */
  offline = 0;
  /** pages of memory that hold struct pages */
  readonly structs = new PageSet();
  /** pages of memory that are page tables which lead to struct pages */
  readonly tables = new PageSet();
  /** those that hold struct pages of different page frames */
  readonly twice = new PageSet();

  constructor(options: WalkOptions) {
    this.#options = options;
    this.#buffer = new Uint8Array(PIECE_PAGES * options.layout.size);
  }

  /**
   * The struct pages of the guest's memory that is online, as far as they can be read; the bytes are valid until the next are asked for.
   * @throws VmcoreError READ, TRUNCATED; what onDamage throws; the signal's reason
   */
  async *arrays(): AsyncGenerator<PageArray, undefined> {
    const { sections, blocks, onDamage, signal } = this.#options;
    for (const section of sections.within(blocks, onDamage))
      for (const { start, end } of this.#pieces(section)) {
        signal?.throwIfAborted();
        if (!section.online) {
          this.offline += end - start;
          continue;
        }
        const array = this.#read(section, start, end);
        if (array) yield array;
        await breathe();
      }
  }

  table(paddr: number): void {
    const page = paddr / PAGE_SIZE;
    this.tables.add(page, 1);
    if (this.#options.suspicions.pages.has(page)) this.#suspect = true;
  }

  /**
   * A page may be mapped more than once in a row: of the struct pages of a huge page, Linux may keep one page or two and
   * map the last again and again (HVO, mm/hugetlb_vmemmap.c).
   */
  data(paddr: number, length: number): void {
    const last = Math.floor((paddr + length - 1) / PAGE_SIZE);
    let first = Math.floor(paddr / PAGE_SIZE);
    if (first !== this.#lastPage) this.#repeats = 0;
    else if (++this.#repeats <= MAX_REPEATS) first++;
    this.#lastPage = last;
    if (this.structs.add(first, last - first + 1) < last - first + 1) this.twice.add(first, last - first + 1);
    const { pages } = this.#options.suspicions;
    if (pages.size > 0 && pages.next(first, last + 1, true) <= last) this.#suspect = true;
  }

  /** The parts of a section that are memory of the guest's, in pieces that begin where free blocks do. */
  *#pieces({ firstPfn, pages }: MemorySection): Generator<{ start: number; end: number }, undefined> {
    const lastPfn = firstPfn + pages;
    let next = firstPfn;
    for (const block of this.#options.blocks) {
      const to = Math.min(lastPfn, Math.ceil(blockEnd(block) / PAGE_SIZE));
      for (let start = Math.max(next, Math.floor(block.base / PAGE_SIZE)); start < to; start = next) {
        next = Math.min(to, (Math.floor(start / PIECE_PAGES) + 1) * PIECE_PAGES);
        yield { start, end: next };
      }
    }
  }

  #read(section: MemorySection, start: number, end: number): PageArray | null {
    const { kernel, layout, suspicions, onDamage } = this.#options;
    const vaddr = section.memMap + BigInt((start - section.firstPfn) * layout.size);
    const bytes = this.#buffer.subarray(0, (end - start) * layout.size);
    const where = `struct pages at 0x${vaddr.toString(16)}`;
    this.#suspect = false;
    if (!kernel.read(vaddr, bytes, this)) onDamage(`${where} are not mapped to memory`, start, end);
    else if (this.#suspect) onDamage(`${where} are in memory that has another use`, start, end);
    else if (suspicions.pieces.has(start)) onDamage(`${where} contradict themselves too often`, start, end);
    else
      return {
        words: new Int32Array(bytes.buffer, 0, bytes.length / 4),
        bytes,
        vaddr,
        firstPfn: start,
        count: end - start,
      };
    return null;
  }
}
