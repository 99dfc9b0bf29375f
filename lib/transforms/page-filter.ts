/**
 * Page filter: chunks in, the same chunks out with zeros for the pages that a dump leaves out. What becomes of those
 * pages is for the framers to say: a kdump has no descriptor for them, an ELF vmcore ends segments there.
 *
 * A source that takes `skip` has not even read most of them; here comes what is left, in short runs or from sources
 * that cannot skip. Comes before pages are aligned or compressed.
 */

import type { PageExclusion } from '../model/page-exclusion.js';
import {
  type Chunk,
  chunkBytes,
  type HoleChunk,
  PAGE_SIZE,
  releaseChunk,
  Stage,
  type StageOptions,
} from '../model/stage.js';

/** Blanks the pages that are left out. */
export class PageFilter extends Stage<Chunk, Chunk> {
  constructor(
    readonly exclusion: PageExclusion,
    options?: StageOptions,
  ) {
    super(options);
  }

  protected override transform(chunk: Chunk): void {
    const { paddr, length } = chunk;
    const from = Math.floor(paddr / PAGE_SIZE);
    const to = Math.ceil((paddr + length) / PAGE_SIZE);
    const first = this.exclusion.next(from, to, true);
    if (chunk.kind === 'hole' || first === to) this.emitItem(chunk);
    else if (first === from && this.exclusion.next(from, to, false) === to) this.emitItem(asHole(chunk));
    else this.emitItem(this.#blank(chunk, chunkBytes(chunk)!, first, to));
  }

  /** The chunk with zeros for what is left out of the pages [from, to). */
  #blank(chunk: Chunk, data: Uint8Array, from: number, to: number): Chunk {
    // Bytes that nobody waits to get back may be the guest's own.
    const isLent = chunk.kind === 'bytes' && chunk.release !== undefined;
    const bytes = isLent ? data : data.slice();
    for (const { start, end } of this.exclusion.runs(from, to, true))
      bytes.fill(
        0,
        Math.max(0, start * PAGE_SIZE - chunk.paddr),
        Math.min(chunk.length, end * PAGE_SIZE - chunk.paddr),
      );
    return isLent
      ? chunk
      : { kind: 'bytes', paddr: chunk.paddr, length: chunk.length, memory: chunk.memory, data: bytes };
  }
}

/** A chunk of which nothing is left, and its bytes given back. */
function asHole(chunk: Chunk): HoleChunk {
  const { paddr, length, memory } = chunk;
  releaseChunk(chunk);
  return { kind: 'hole', paddr, length, memory };
}
