/**
 * Range filter: passes on what lies in a range of physical addresses, with the meaning of `begin` and `length` of
 * QMP's `dump-guest-memory`: bytes, at any alignment, across holes, past the end of memory.
 */

import type { MemoryBlock } from '../model/physical-memory.js';
import { type Chunk, releaseChunk, sliceChunk, Stage, type StageOptions } from '../model/stage.js';
import { intersect } from '../model/range.js';

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
