/**
 * What flows between stages.
 *
 *   source -> range filter -> [page compressor] -> framer -> sink
 *   chunks    chunks           page batches        extents
 *
 * Memory that moves through the stages lives in slabs (see slab-pool.ts): whoever is the last to need the bytes calls
 * `release`, which lets the source reuse them. What lies in the queues of a stage that is destroyed is released by the
 * stage. Not calling it is safe for a stage that is used alone with a pool of its own: the slab is then left to the
 * garbage collector.
 */

import { VmcoreError } from './errors.js';
import type { FilePlace } from './physical-memory.js';

/**
 * Bytes of a chunk at most, unless it is a hole: what a stage has to have room for. A page compressor's slabs are as
 * large, and no source of ours makes larger chunks.
 */
export const MAX_CHUNK_BYTES = 4 << 20;

/** Where a chunk belongs. */
interface ChunkPlace {
  /** guest physical address of the first byte */
  readonly paddr: number;
  /** number of bytes; whole pages but for the ends of a range */
  readonly length: number;
  /** bytes of guest memory that the chunk stands for, where they are not `length`: padded to whole pages it has more */
  readonly memory?: number | undefined;
}

/** A chunk whose bytes are at hand. */
export interface BytesChunk extends ChunkPlace {
  readonly kind: 'bytes';
  /**
   * the bytes, `length` of them and MAX_CHUNK_BYTES at most. With `release` they are lent to whoever has the chunk, who
   * may write to them; without it they may be somebody's own
   */
  readonly data: Uint8Array;
  /** gives the bytes back to their pool; call it once, when they are needed no more */
  readonly release?: (() => void) | undefined;
}

/** A chunk that is known to be zeros, of any length. */
export interface HoleChunk extends ChunkPlace {
  readonly kind: 'hole';
}

/**
 * A chunk whose bytes are still in a file: any thread of the process may read them with pread(2) until it is released.
 * Only who has asked for such chunks (`deferred`) gets any.
 */
export interface DeferredChunk extends ChunkPlace {
  readonly kind: 'deferred';
  /** where `length` bytes are, MAX_CHUNK_BYTES at most */
  readonly place: FilePlace;
  /**
   * Fills `into` with the chunk's bytes from the one at `from` on (0 by default), or tells why that does not work.
   * @throws VmcoreError READ, TRUNCATED
   */
  readonly read: (into: Uint8Array, from?: number) => Promise<void>;
  /** lets the file be closed; call it once, when the bytes have been read */
  readonly release: () => void;
}

/**
 * A contiguous run of guest physical memory on its way through the stages. Which kind it is has to be asked before there
 * are bytes: a stage that knows nothing of deferred chunks does not compile, where it would take them for zeros.
 */
export type Chunk = BytesChunk | HoleChunk | DeferredChunk;

/**
 * The bytes of a chunk, null when they are zeros: for stages that want them at hand.
 * @throws VmcoreError USAGE when they are still in a file
 */
export function chunkBytes(chunk: Chunk): Uint8Array | null {
  switch (chunk.kind) {
    case 'bytes':
      return chunk.data;
    case 'hole':
      return null;
    case 'deferred':
      throw new VmcoreError(
        'USAGE',
        `memory at 0x${chunk.paddr.toString(16)} came as a deferred chunk, and this stage needs its bytes; ask the guest for chunks without \`deferred\``,
      );
  }
}

/** A part of a chunk: its bytes from `start` to `end`, counted from its first. It takes over what the chunk holds. */
export function sliceChunk(chunk: Chunk, start: number, end: number): Chunk {
  if (start === 0 && end === chunk.length) return chunk;
  const part = { paddr: chunk.paddr + start, length: end - start, memory: undefined };
  switch (chunk.kind) {
    case 'bytes':
      return { ...chunk, ...part, data: chunk.data.subarray(start, end) };
    case 'hole':
      return { ...chunk, ...part };
    case 'deferred': {
      const { place, read } = chunk;
      return {
        ...chunk,
        ...part,
        place: { ...place, offset: place.offset + start },
        read: (into, from = 0) => read(into, start + from),
      };
    }
  }
}

/** Gives back what an item holds, when nobody will take it. */
export function releaseItem(item: unknown): void {
  (item as { readonly release?: () => void } | null)?.release?.();
}

/** Gives back what a chunk holds. */
export function releaseChunk(chunk: Chunk): void {
  if (chunk.kind !== 'hole') chunk.release?.();
}

/** Bytes that belong at an offset of the vmcore. */
export interface Extent {
  /** byte offset in the vmcore */
  readonly offset: number;
  /** number of bytes */
  readonly length: number;
  /** the bytes, `length` of them; absent when they are zeros that need not be stored */
  readonly data?: Uint8Array | undefined;
  /** bytes of guest memory that are done when this extent has been taken by the sink; 0 for headers */
  readonly memory: number;
  /** gives the bytes back to their pool; call it once, when they are needed no more */
  readonly release?: (() => void) | undefined;
}

/** What became of a page in a page batch: it is all zeros, and has no bytes there. */
export const PAGE_ZERO = 0;
/** The page did not shrink, and is there as it is. */
export const PAGE_STORED = 1;
/** The page is there as its codec has encoded it. */
export const PAGE_COMPRESSED = 2;

/**
 * What leaves the page compressor: consecutive pages of guest memory, encoded. Pages are whole: what a range or a
 * block cuts off is zeros.
 */
export interface PageBatch {
  /** guest physical address of the first page, a multiple of PAGE_SIZE */
  readonly paddr: number;
  /** number of pages */
  readonly count: number;
  /** for each page PAGE_ZERO, PAGE_STORED or PAGE_COMPRESSED; absent when all are zero (a hole of any size) */
  readonly kinds?: Uint8Array | undefined;
  /** for each page the bytes of its encoding: 0 for PAGE_ZERO, PAGE_SIZE for PAGE_STORED, less for PAGE_COMPRESSED */
  readonly sizes?: Uint16Array | undefined;
  /** the encodings, back to back; absent when all pages are zero */
  readonly data?: Uint8Array | undefined;
  /** bytes of guest memory that the batch stands for; less than count pages where a range cuts pages */
  readonly memory: number;
  /** gives kinds, sizes and data back to their pool; call it once, when they are needed no more */
  readonly release?: (() => void) | undefined;
}

/** How much progress a dump has made, in bytes of guest memory, with the meaning of QMP's `query-dump`. */
export interface Progress {
  /** bytes of guest memory that the sink has taken */
  readonly completed: number;
  /** bytes of guest memory that the dump will write */
  readonly total: number;
}
