/**
 * Flattener: extents in any order in, a stream of makedumpfile's flattened format out, which has no order and therefore
 * goes through a pipe. `makedumpfile -R` makes of it the file that a seekable sink would have written.
 */

import { encodeFlattenedEnd, encodeFlattenedHeader, encodeFlattenedRecord } from '../formats/flattened.js';
import { type Extent, Stage } from '../model/stage.js';

/** Extents in; extents out whose offsets ascend without a gap. Zeros that need not be stored make no record. */
export class Flattener extends Stage<Extent, Extent> {
  #position = 0;
  /** end of the file that is described, and of what records say of it */
  #end = 0;
  #recorded = 0;
  /** bytes of guest memory of extents that made no record */
  #memory = 0;

  protected override open(): void {
    this.#emit(encodeFlattenedHeader(), 0);
  }

  protected override transform(extent: Extent): void {
    const { offset, length, data, memory, release } = extent;
    this.#end = Math.max(this.#end, offset + length);
    this.#memory += memory;
    if (!data || length === 0) release?.();
    else this.#record(offset, data, release);
  }

  protected override flush(): void {
    // A file that ends in a hole: its last byte says where it ends.
    if (this.#end > this.#recorded) this.#record(this.#end - 1, new Uint8Array(1));
    this.#emit(encodeFlattenedEnd(), this.#takeMemory());
  }

  #record(offset: number, data: Uint8Array, release?: () => void): void {
    this.#recorded = Math.max(this.#recorded, offset + data.length);
    this.#emit(encodeFlattenedRecord({ offset, size: data.length }), 0);
    this.#emit(data, this.#takeMemory(), release);
  }

  #takeMemory(): number {
    const memory = this.#memory;
    this.#memory = 0;
    return memory;
  }

  #emit(data: Uint8Array, memory: number, release?: () => void): void {
    this.emitItem({ offset: this.#position, length: data.length, data, memory, release });
    this.#position += data.length;
  }
}
