/**
 * A Linux kernel's memory map: where the `struct page`s of its page frames are, by its memory model.
 */

import type { MemoryBlock } from '../model/physical-memory.js';
import { FlatMemory } from './flat-memory.js';
import type { KernelMemory } from './kernel-memory.js';
import type { KernelSymbols } from './kernel-symbols.js';
import { MemorySections } from './memory-sections.js';
import type { MemoryMap } from './memory-section.js';

/**
 * The memory map that VMCOREINFO tells of.
 * @param pageSize bytes of struct page
 * @throws VmcoreError UNSUPPORTED when it tells of none, BAD_INPUT when there is none; READ, TRUNCATED
 */
export function memoryMap(
  kernel: KernelMemory,
  symbols: KernelSymbols,
  pageSize: number,
  blocks: readonly MemoryBlock[],
): MemoryMap {
  const flat = symbols.info.symbol('mem_section') === null && symbols.info.symbol('mem_map') !== null;
  return flat ? new FlatMemory(kernel, symbols, pageSize) : new MemorySections(kernel, symbols, pageSize, blocks);
}
