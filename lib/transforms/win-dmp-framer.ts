/**
 * win-dmp framer: runs of guest memory in, extents of a Windows crash dump out. The runs come in the order of the
 * layout, for two of them may have the same memory: where a chunk belongs is told by when it comes.
 */

import { VmcoreError } from '../model/errors.js';
import { blockEnd, describeBlock } from '../model/physical-memory.js';
import { type Chunk, chunkBytes, type Extent, releaseChunk, Stage, type StageOptions } from '../model/stage.js';
import type { WinDmpLayout } from '../layouts/win-dmp-layout.js';

/** Places the runs of a win-dmp layout; see runChunks for a source of them. */
export class WinDmpFramer extends Stage<Chunk, Extent> {
  #run = 0;
  #done = 0;
  #offset: number;

  constructor(
    readonly layout: WinDmpLayout,
    options?: StageOptions,
  ) {
    super(options);
    this.#offset = layout.header.length;
  }

  protected override open(): void {
    const { header } = this.layout;
    // As QEMU counts: `total` is RequiredDumpSpace, which has the header in it.
    this.emitItem({ offset: 0, length: header.length, data: header, memory: header.length });
  }

  protected override transform(chunk: Chunk): void {
    const { paddr, length } = chunk;
    const data = chunkBytes(chunk) ?? undefined;
    const run = this.layout.runs[this.#run];
    if (!run || paddr !== run.base + this.#done || paddr + length > blockEnd(run))
      throw new VmcoreError(
        'BAD_INPUT',
        `memory ${describeBlock({ base: paddr, length })} came, but ${run ? `0x${(run.base + this.#done).toString(16)} is next` : 'all runs have come'}`,
      );
    this.emitItem({ offset: this.#offset, length, data, memory: length, release: () => releaseChunk(chunk) });
    this.#offset += length;
    this.#done += length;
    if (this.#done < run.length) return;
    this.#run++;
    this.#done = 0;
  }

  protected override flush(): void {
    if (this.#offset !== this.layout.size)
      throw new VmcoreError(
        'TRUNCATED',
        `the source gave ${this.#offset - this.layout.header.length} of ${this.layout.size - this.layout.header.length} bytes of guest memory`,
      );
  }
}
