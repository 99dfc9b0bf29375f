/** What a guest's memory map is, whichever way the kernel keeps it. */

import type { MemoryBlock } from '../model/physical-memory.js';

/** A run of page frames whose struct pages follow one another. */
export interface MemorySection {
  /** first page frame */
  readonly firstPfn: number;
  /** number of page frames */
  readonly pages: number;
  /** virtual address of the first struct page */
  readonly memMap: bigint;
  /** whether the kernel uses the memory; of what it does not, nobody has written the struct pages */
  readonly online: boolean;
}

/** Told of what does not hold together: `what` in words, page frames [start, end) cannot be decided. Throws or returns. */
export type OnDamage = (what: string, start: number, end: number) => void;

/** Where the struct pages of a guest are. */
export interface MemoryMap {
  /** The sections that a guest's memory is in, in order; the damage to others is told. */
  within(blocks: readonly MemoryBlock[], onDamage: OnDamage): Iterable<MemorySection>;
  /** Whether struct pages can be told by their addresses: all are in one array. */
  readonly shared: boolean;
  /** The page frame that a struct page is of; null when it is of none, or not `shared`. */
  pfnOf(page: bigint): number | null;
}
