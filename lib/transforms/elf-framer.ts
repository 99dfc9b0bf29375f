/**
 * ELF framer: chunks of guest memory in, extents of an ELF vmcore out. The layout has decided everything; what is left
 * is one subtraction a chunk, and the check that all of the memory came.
 */

import { VmcoreError } from '../errors.js';
import { blockEnd, describeBlock, lastIndexAtOrBelow } from '../physical-memory.js';
import { type Chunk, type Extent, Stage, type StageOptions } from '../stage.js';
import { type ElfLayout, encodeElfHead } from './elf-layout.js';

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
    const { paddr, length, data, release } = chunk;
    const block = this.layout.blocks[lastIndexAtOrBelow(this.layout.blocks, paddr)];
    if (!block || paddr + length > blockEnd(block))
      throw new VmcoreError(
        'BAD_INPUT',
        `memory ${describeBlock({ base: paddr, length })} came, but the layout has no block for it`,
      );
    this.#placed += length;
    this.emitItem({ offset: block.offset + (paddr - block.base), length, data, memory: length, release });
  }

  protected override flush(): void {
    const { memoryBytes } = this.layout;
    if (this.#placed !== memoryBytes)
      throw new VmcoreError('TRUNCATED', `the source gave ${this.#placed} of ${memoryBytes} bytes of guest memory`);
  }
}
