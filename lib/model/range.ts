/** Ranges of physical addresses, with the meaning of `begin` and `length` of QMP's `dump-guest-memory`. */

import { VmcoreError } from './errors.js';
import { blockEnd, describeBlock, type MemoryBlock } from './physical-memory.js';

/** The part of a block that lies in a range, or null. Without a range, all of it. */
export function intersect(block: MemoryBlock, range: MemoryBlock | undefined): MemoryBlock | null {
  if (!range) return block;
  const base = Math.max(block.base, range.base);
  const end = Math.min(blockEnd(block), blockEnd(range));
  return base < end ? { base, length: end - base } : null;
}

/**
 * The memory of a guest that lies in a range.
 * @throws VmcoreError NO_MEMORY when there is none, as QEMU refuses
 */
export function blocksInRange(blocks: readonly MemoryBlock[], range: MemoryBlock | undefined): MemoryBlock[] {
  const parts = blocks.flatMap((block) => intersect(block, range) ?? []);
  if (parts.length === 0)
    throw new VmcoreError(
      'NO_MEMORY',
      range
        ? `no guest memory to dump in ${describeBlock(range)}; 'vmcore inspect' lists the memory blocks`
        : 'no guest memory to dump: the guest has no memory blocks',
    );
  return parts;
}
