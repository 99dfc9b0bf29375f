/** What a page compressor asks of its codec. */

import type { SlabPool } from '../slab-pool.js';
import type { Chunk, PageBatch } from '../stage.js';

/** The codecs of the kdump formats. */
export type PageCodecName = 'zlib' | 'lzo' | 'snappy';

/** Encodes chunks of whole pages; several at a time when it has threads. */
export interface PageEncoder {
  /** chunks that may be under way at a time; more of them would only wait */
  readonly concurrency: number;
  /** slabs that the encoder reads without copying; null when it has no preference */
  readonly pool: SlabPool | null;
  /** seconds spent encoding so far, those of all threads added up */
  readonly busySeconds: number;
  /**
   * Encodes the pages of a chunk with data, and releases the chunk.
   * @throws VmcoreError when a thread has died
   */
  encode(chunk: Chunk & { readonly data: Uint8Array }): Promise<PageBatch>;
  /** Lets go of threads; what is under way is dropped. */
  close(): Promise<void>;
}
