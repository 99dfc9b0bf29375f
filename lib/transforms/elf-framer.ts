/**
 * ELF framer: chunks of guest memory in, extents of an ELF vmcore out. The layout has decided everything; what is left
 * is one subtraction a chunk, cuts where segments end, and the check that all of the memory came.
 */

import { VmcoreError } from '../model/errors.js';
import { blockEnd, describeBlock, lastIndexAtOrBelow } from '../model/physical-memory.js';
import { type Chunk, chunkBytes, type Extent, releaseChunk, Stage, type StageOptions } from '../model/stage.js';
import { type ElfLayout, encodeElfHead } from '../layouts/elf-layout.js';

/** Places chunks by an ELF layout. */
export class ElfFramer extends Stage<Chunk, Extent> {
  #placed = 0;

  constructor(
    readonly layout: ElfLayout,
    options?: StageOptions,
  ) {
    super(options);
  }

  protected override open(): void {
    const data = encodeElfHead(this.layout);
    this.emitItem({ offset: 0, length: data.length, data, memory: 0 });
  }

  protected override transform(chunk: Chunk): void {
    const parts = [...this.#partsOf(chunk)];
    const last = parts.findLastIndex(({ data }) => data);
    // Extents are taken in order: the bytes are given back with the last that has some.
    const release = () => releaseChunk(chunk);
    parts.forEach((part, i) => this.emitItem(i === last ? { ...part, release } : part));
    if (last < 0) release();
    this.#placed += chunk.length;
  }

  /** The chunk as extents; memory that is left out is one of no bytes. */
  *#partsOf(chunk: Chunk): Generator<Extent, undefined> {
    const { paddr, length } = chunk;
    const data = chunkBytes(chunk);
    const { blocks } = this.layout;
    const end = paddr + length;
    for (let at = paddr; at < end;) {
      const block = blocks[lastIndexAtOrBelow(blocks, at)];
      if (!block || at >= blockEnd(block)) throw homeless(chunk);
      const from = at - block.base;
      const stop = from < block.stored ? Math.min(end, block.base + block.stored) : Math.min(end, blockEnd(block));
      const memory = stop - at;
      if (from >= block.stored) yield { offset: block.offset + block.stored, length: 0, memory };
      else
        yield { offset: block.offset + from, length: memory, data: data?.subarray(at - paddr, stop - paddr), memory };
      at = stop;
    }
  }

  protected override flush(): void {
    const { memoryBytes } = this.layout;
    if (this.#placed !== memoryBytes)
      throw new VmcoreError('TRUNCATED', `the source gave ${this.#placed} of ${memoryBytes} bytes of guest memory`);
  }
}

function homeless({ paddr, length }: Chunk): VmcoreError {
  const memory = describeBlock({ base: paddr, length });
  return new VmcoreError('BAD_INPUT', `memory ${memory} came, but the layout has no block for it`);
}
