/**
 * Memory overlay: bytes that take the place of the guest's on their way into a vmcore. The guest's own memory is never
 * written: pages that differ are copies, in a map by page frame number.
 */

import type { OverlayPages } from '../model/overlaid-memory.js';
import { type Chunk, PAGE_SIZE, releaseChunk, sliceChunk, Stage, type StageOptions } from '../model/stage.js';

/** Chunks in; the same chunks out, cut around the pages that are replaced. Comes before pages are aligned or compressed. */
export class MemoryOverlay extends Stage<Chunk, Chunk> {
  readonly #pages: OverlayPages;
  readonly #pfns: readonly number[];

  constructor(pages: OverlayPages, options?: StageOptions) {
    super(options);
    this.#pages = pages;
    this.#pfns = [...pages.keys()].sort((a, b) => a - b);
  }

  protected override transform(chunk: Chunk): void {
    const from = this.#firstAtOrAbove(Math.floor(chunk.paddr / PAGE_SIZE));
    const to = this.#firstAtOrAbove(Math.ceil((chunk.paddr + chunk.length) / PAGE_SIZE));
    const pfns = this.#pfns.slice(from, to);
    if (pfns.length === 0) this.emitItem(chunk);
    else for (const piece of cutAround(chunk, pfns, this.#pages)) this.emitItem(piece);
  }

  /** Index of the first replaced page from `pfn` on. */
  #firstAtOrAbove(pfn: number): number {
    let low = 0;
    let high = this.#pfns.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#pfns[middle]! < pfn) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** The chunk in pieces: what is replaced is a copy, the rest views of its bytes. */
function cutAround(chunk: Chunk, pfns: readonly number[], pages: OverlayPages): Chunk[] {
  const { paddr, length } = chunk;
  const pieces: Chunk[] = [];
  let kept = 0;
  const release = releaseAfter(
    () => releaseChunk(chunk),
    () => kept,
  );
  const keep = (from: number, to: number) => {
    if (from === to) return;
    kept++;
    const piece = sliceChunk(chunk, from - paddr, to - paddr);
    pieces.push(piece.kind === 'hole' ? piece : { ...piece, release });
  };
  let at = paddr;
  for (const pfn of pfns) {
    const from = Math.max(paddr, pfn * PAGE_SIZE);
    const to = Math.min(paddr + length, (pfn + 1) * PAGE_SIZE);
    keep(at, from);
    pieces.push({
      kind: 'bytes',
      paddr: from,
      length: to - from,
      data: pages.get(pfn)!.subarray(from - pfn * PAGE_SIZE, to - pfn * PAGE_SIZE),
    });
    at = to;
  }
  keep(at, paddr + length);
  // All of it was replaced: nobody else will give it back.
  if (kept === 0) releaseChunk(chunk);
  return pieces;
}

/** Gives bytes back when the last of those who share them has done so. */
function releaseAfter(release: () => void, sharers: () => number): () => void {
  let released = 0;
  return () => {
    released++;
    if (released === sharers()) release();
  };
}
