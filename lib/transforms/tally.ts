/** Tally: lets chunks pass, and counts what was read and what was known to be zeros without reading. */

import { type Chunk, Stage } from '../model/stage.js';

/** Counts chunks on their way. */
export class Tally extends Stage<Chunk, Chunk> {
  /** bytes that are read */
  dataBytes = 0;
  /** bytes of holes, which were not */
  holeBytes = 0;

  protected override transform(chunk: Chunk): void {
    if (chunk.kind === 'hole') this.holeBytes += chunk.length;
    else this.dataBytes += chunk.length;
    this.emitItem(chunk);
  }
}
