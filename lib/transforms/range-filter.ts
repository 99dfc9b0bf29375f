/**
 * Range filter: passes on what lies in a range of physical addresses, with the meaning of `begin` and `length` of
 * QMP's `dump-guest-memory`: bytes, at any alignment, across holes, past the end of memory.
 */

import { VmcoreError } from '../model/errors.js';
import { blockEnd, describeBlock, type MemoryBlock } from '../model/physical-memory.js';
import { type Chunk, releaseChunk, sliceChunk, Stage, type StageOptions } from '../model/stage.js';

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

/** The part of a chunk that lies in a range; null, and the bytes given back, when none does. */
export function clipChunk(chunk: Chunk, range: MemoryBlock): Chunk | null {
  const part = intersect({ base: chunk.paddr, length: chunk.length }, range);
  if (!part) {
    releaseChunk(chunk);
    return null;
  }
  const start = part.base - chunk.paddr;
  return sliceChunk(chunk, start, start + part.length);
}

/** Chunks in, the parts of them that lie in the range out. */
export class RangeFilter extends Stage<Chunk, Chunk> {
  /** @param range guest physical addresses, in bytes */
  constructor(
    readonly range: MemoryBlock,
    options?: StageOptions,
  ) {
    super(options);
  }

  protected override transform(chunk: Chunk): void {
    const part = clipChunk(chunk, this.range);
    if (part) this.emitItem(part);
  }
}
