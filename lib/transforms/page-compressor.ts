/**
 * Page compressor: chunks of whole pages in, page batches out, in the same order whatever the number of threads.
 *
 * Holes pass through without being looked at. Other chunks are encoded several at a time by a PageEncoder; the oldest is
 * waited for before a new one is taken beyond what the encoder can have under way.
 */

import type { PageEncoder } from '../codecs/page-encoder.js';
import { type Chunk, PAGE_SIZE, type PageBatch, releaseItem, Stage, type StageOptions } from '../model/stage.js';

/** Pages of memory by what became of them. */
export interface PageCounts {
  /** zero, found by looking or known to be a hole */
  zero: number;
  /** stored as they are, because they do not shrink */
  stored: number;
  compressed: number;
}

/** Encodes chunks of whole pages (see PageAligner). Owns its encoder and closes it. */
export class PageCompressor extends Stage<Chunk, PageBatch> {
  readonly counts: PageCounts = { zero: 0, stored: 0, compressed: 0 };
  readonly #underWay: Promise<PageBatch>[] = [];

  constructor(
    readonly encoder: PageEncoder,
    options?: StageOptions,
  ) {
    super(options);
  }

  protected override async transform(chunk: Chunk): Promise<void> {
    this.#underWay.push(this.#encode(chunk));
    if (this.#underWay.length > this.encoder.concurrency) await this.#emitOldest();
  }

  protected override async flush(): Promise<void> {
    while (this.#underWay.length > 0) await this.#emitOldest();
    // Threads take a while to end: let them do it while what they have made is written.
    void this.encoder.close();
  }

  protected override cancel(error: Error): void {
    this.encoder.cancel(error);
  }

  protected override async close(): Promise<void> {
    await this.encoder.close();
    const left = await Promise.allSettled(this.#underWay.splice(0));
    for (const batch of left) if (batch.status === 'fulfilled') releaseItem(batch.value);
  }

  #encode(chunk: Chunk): Promise<PageBatch> {
    const { paddr, length, memory } = chunk;
    if (chunk.kind === 'hole') return Promise.resolve({ paddr, count: length / PAGE_SIZE, memory: memory ?? length });
    const batch = this.encoder.encode(chunk);
    // Whoever waits for an older batch must not miss that this one failed meanwhile.
    batch.catch(() => {});
    return batch;
  }

  async #emitOldest(): Promise<void> {
    const batch = await this.#underWay.shift()!;
    this.#count(batch);
    this.emitItem(batch);
  }

  #count({ count, kinds }: PageBatch): void {
    if (!kinds) {
      this.counts.zero += count;
      return;
    }
    const byKind = [0, 0, 0];
    for (const kind of kinds) byKind[kind]!++;
    // PAGE_ZERO, PAGE_STORED, PAGE_COMPRESSED
    this.counts.zero += byKind[0]!;
    this.counts.stored += byKind[1]!;
    this.counts.compressed += byKind[2]!;
  }
}
