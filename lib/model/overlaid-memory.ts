/** Memory with writes that never reach the guest: pages that differ are copies, in a map by page frame number. */

import { PAGE_SIZE } from './page-size.js';
import { PhysicalMemory } from './physical-memory.js';

/** Whole pages that differ from the guest's, by page frame number. */
export type OverlayPages = ReadonlyMap<number, Uint8Array>;

/** The guest's memory, with writes that stay here: who reads after a write reads what was written. */
export class OverlaidMemory extends PhysicalMemory {
  readonly #pages = new Map<number, Uint8Array>();

  /** @param memory what is under it; is not changed */
  constructor(memory: PhysicalMemory) {
    super(memory.regions);
  }

  /** The pages that were written to. */
  get pages(): OverlayPages {
    return this.#pages;
  }

  override read(paddr: number, into: Uint8Array): boolean {
    const whole = super.read(paddr, into);
    for (let pfn = Math.floor(paddr / PAGE_SIZE); pfn * PAGE_SIZE < paddr + into.length; pfn++) {
      const page = this.#pages.get(pfn);
      if (!page) continue;
      const from = Math.max(paddr, pfn * PAGE_SIZE);
      const to = Math.min(paddr + into.length, (pfn + 1) * PAGE_SIZE);
      into.set(page.subarray(from - pfn * PAGE_SIZE, to - pfn * PAGE_SIZE), from - paddr);
    }
    return whole;
  }

  /** Writes bytes that are in one page. */
  write(paddr: number, bytes: Uint8Array): void {
    const pfn = Math.floor(paddr / PAGE_SIZE);
    let page = this.#pages.get(pfn);
    if (!page) {
      page = new Uint8Array(PAGE_SIZE);
      super.read(pfn * PAGE_SIZE, page);
      this.#pages.set(pfn, page);
    }
    page.set(bytes, paddr - pfn * PAGE_SIZE);
  }
}
