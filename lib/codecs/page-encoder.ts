/** What a page compressor asks of its codec. */

import type { SlabPool } from '../model/slab-pool.js';
import type { BytesChunk, DeferredChunk, PageBatch } from '../model/stage.js';

/** The codecs of the kdump formats. */
export type PageCodecName = 'zlib' | 'lzo' | 'snappy';

/** A chunk with bytes, at hand or in a file. */
export type EncodableChunk = BytesChunk | DeferredChunk;

/** Encodes chunks of whole pages; several at a time when it has threads. */
export interface PageEncoder {
  /** chunks that may be under way at a time; more of them would only wait */
  readonly concurrency: number;
  /** slabs that the encoder reads without copying; null when it has no preference */
  readonly pool: SlabPool | null;
  /** whether it takes chunks whose bytes are still in a file, and reads them itself */
  readonly readsFiles: boolean;
  /** seconds spent encoding so far, those of all threads added up */
  readonly busySeconds: number;
  /**
   * Encodes the pages of a chunk, and releases it, whatever becomes of it.
   * @throws VmcoreError when a thread has died, READ and TRUNCATED for what cannot be read; what `cancel` was given
   */
  encode(chunk: EncodableChunk): Promise<PageBatch>;
  /** Has all that is under way, or comes after, fail with this error, soon. Must not wait. */
  cancel(error: Error): void;
  /** Lets go of threads, and settles when they are gone; what is under way is dropped. Later calls do nothing more. */
  close(): Promise<void>;
}
