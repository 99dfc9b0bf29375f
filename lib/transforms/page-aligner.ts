/**
 * Page aligner: chunks in, chunks of whole pages out, for formats that store pages. What a range or a block cuts off
 * of a page is zeros; two chunks that share a page become one page.
 */

import { type Chunk, chunkBytes, PAGE_SIZE, releaseChunk, sliceChunk, Stage } from '../model/stage.js';

/** A page that is being put together from the ends of chunks. */
interface Partial {
  readonly paddr: number;
  readonly data: Uint8Array;
  /** bytes of guest memory in it so far */
  memory: number;
}

/** Pads chunks to whole pages. Most pass through untouched. */
export class PageAligner extends Stage<Chunk, Chunk> {
  #partial: Partial | null = null;

  protected override transform(chunk: Chunk): void {
    const end = chunk.paddr + chunk.length;
    const head = Math.min(pageUp(chunk.paddr), end);
    const tail = Math.max(pageDown(end), head);
    if (this.#partial && pageDown(chunk.paddr) !== this.#partial.paddr) this.#emitPartial();
    if (head > chunk.paddr) this.#gather(chunk, chunk.paddr, head);
    // The chunk goes on behind the page that has been gathered.
    if (head < end) this.#emitPartial();
    if (tail < end) this.#gather(chunk, tail, end);
    if (tail > head) this.emitItem(sliceChunk(chunk, head - chunk.paddr, tail - chunk.paddr));
    else releaseChunk(chunk);
  }

  protected override flush(): void {
    this.#emitPartial();
  }

  /** Copies [from, to) of a chunk, which is within one page, into that page. */
  #gather(chunk: Chunk, from: number, to: number): void {
    const paddr = pageDown(from);
    this.#partial ??= { paddr, data: new Uint8Array(PAGE_SIZE), memory: 0 };
    const bytes = chunkBytes(chunk)?.subarray(from - chunk.paddr, to - chunk.paddr);
    if (bytes) this.#partial.data.set(bytes, from - paddr);
    this.#partial.memory += to - from;
  }

  #emitPartial(): void {
    if (!this.#partial) return;
    const { paddr, data, memory } = this.#partial;
    this.#partial = null;
    this.emitItem({ kind: 'bytes', paddr, length: PAGE_SIZE, data, memory });
  }
}

function pageDown(address: number): number {
  return address - (address % PAGE_SIZE);
}

function pageUp(address: number): number {
  return pageDown(address + PAGE_SIZE - 1);
}
