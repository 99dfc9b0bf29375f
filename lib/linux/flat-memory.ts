/**
 * Memory model FLATMEM: the struct pages of all memory are one array that `mem_map` points to (32-bit kernels).
 */

import { VmcoreError } from '../model/errors.js';
import type { KernelMemory } from './kernel-memory.js';
import type { KernelSymbols } from './kernel-symbols.js';
import type { MemoryMap, MemorySection } from './memory-section.js';

/** One array for all page frames from 0 on. */
export class FlatMemory implements MemoryMap {
  readonly shared = true;
  readonly #pageSize: number;
  readonly #section: MemorySection;

  /**
   * @param pageSize bytes of struct page
   * @throws VmcoreError UNSUPPORTED when VMCOREINFO does not say how far it goes; BAD_INPUT when it is not in memory
   */
  constructor(kernel: KernelMemory, symbols: KernelSymbols, pageSize: number) {
    const node = symbols.symbol('contig_page_data');
    const member = (name: string) => kernel.pointer(node + BigInt(symbols.offset(`pglist_data.${name}`)));
    const start = member('node_start_pfn');
    const spanned = member('node_spanned_pages');
    const memMap = kernel.pointer(symbols.symbol('mem_map'));
    if (start === null || spanned === null || memMap === null || !kernel.isKernelAddress(memMap))
      throw new VmcoreError(
        'BAD_INPUT',
        `${symbols.guest}: the kernel's mem_map leads nowhere; it is damaged, or VMCOREINFO is of another kernel; dump without a level above 1`,
      );
    this.#pageSize = pageSize;
    this.#section = { firstPfn: 0, pages: Number(start + spanned), memMap, online: true };
  }

  *within(): Generator<MemorySection, undefined> {
    yield this.#section;
  }

  pfnOf(page: bigint): number | null {
    const distance = Number(page - this.#section.memMap);
    const pfn = distance / this.#pageSize;
    return Number.isInteger(pfn) && pfn >= 0 && pfn < this.#section.pages ? pfn : null;
  }
}
