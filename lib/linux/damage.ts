/**
 * What does not hold together in a guest, and what becomes of it: the dump is refused, or the page frames that cannot be
 * decided because of it are kept and counted.
 */

import { VmcoreError } from '../model/errors.js';
import { blockEnd, type MemoryBlock } from '../model/physical-memory.js';
import { PAGE_SIZE } from '../model/stage.js';

/** The damage to one guest's structures. */
export class Damage {
  readonly #guest: { readonly name: string; readonly blocks: readonly MemoryBlock[] };
  readonly #fallback: 'refuse' | 'keep';
  #first = '';
  #places = 0;

  /** pages of the guest's memory that cannot be decided */
  pages = 0;

  constructor(guest: { readonly name: string; readonly blocks: readonly MemoryBlock[] }, fallback: 'refuse' | 'keep') {
    this.#guest = guest;
    this.#fallback = fallback;
  }

  /**
   * Counts damage.
   * @param what  what is wrong, in words
   * @param start first page frame that cannot be decided
   * @param end   one past the last
   * @throws VmcoreError BAD_INPUT unless pages are to be kept
   */
  add(what: string, start: number, end: number): void {
    if (this.#fallback === 'refuse') throw this.error(what);
    if (this.#places++ === 0) this.#first = what;
    for (const block of this.#guest.blocks) {
      const from = Math.max(start, Math.floor(block.base / PAGE_SIZE));
      this.pages += Math.max(0, Math.min(end, Math.ceil(blockEnd(block) / PAGE_SIZE)) - from);
    }
  }

  /** The refusal. */
  error(what: string): VmcoreError {
    return new VmcoreError(
      'BAD_INPUT',
      `${this.#guest.name}: the kernel's structures do not hold together: ${what}; keep what cannot be decided (--exclude-fallback keep), or dump without a level above 1`,
    );
  }

  /** One line about it, or none. */
  warnings(): string[] {
    if (this.#places === 0) return [];
    const more = this.#places > 1 ? ` (and ${this.#places - 1} more)` : '';
    return [`the kernel's structures do not hold together: ${this.#first}${more}; pages kept for that: ${this.pages}`];
  }
}
