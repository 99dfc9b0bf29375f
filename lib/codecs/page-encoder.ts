/** What a page compressor asks of its codec. */

import type { SlabPool } from '../slab-pool.js';
import type { Chunk, PageBatch, UnreadBytes } from '../stage.js';

/** The codecs of the kdump formats. */
export type PageCodecName = 'zlib' | 'lzo' | 'snappy';

/** A chunk with bytes, at hand or in a file. */
export type EncodableChunk = Chunk & ({ readonly data: Uint8Array } | { readonly unread: UnreadBytes });

/** Whether a chunk is more than a hole. */
export function isEncodable(chunk: Chunk): chunk is EncodableChunk {
  return chunk.data !== undefined || chunk.unread !== undefined;
}

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
   * Encodes the pages of a chunk, and releases it.
   * @throws VmcoreError when a thread has died, READ and TRUNCATED for what cannot be read
   */
  encode(chunk: EncodableChunk): Promise<PageBatch>;
  /** Lets go of threads; what is under way is dropped. */
  close(): Promise<void>;
}
