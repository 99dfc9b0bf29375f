/**
 * What flows between stages, and the three kinds of stage.
 *
 *   source -> range filter -> [page compressor] -> framer -> sink
 *   chunks    chunks           page batches        extents
 *
 * Each stage knows its input and its output type and no neighbour by name. Memory that moves through the stages lives
 * in slabs (see slab-pool.ts): whoever is the last to need the bytes calls `release`, which lets the source reuse
 * them. Not calling it is safe for a stage that is used alone with a pool of its own: the slab is then left to the
 * garbage collector.
 *
 * The stages are streamx streams. The base classes below give streamx's callbacks types and promises; a stage
 * overrides `open`, `next`/`transform`/`take`, `flush`/`finish` and `close`, which are the one place where each of
 * its resources is born and the one place where it dies.
 */

import { Readable, Transform, Writable } from 'streamx';
import { VmcoreError } from './errors.js';
import type { FilePlace } from './physical-memory.js';

/** A contiguous run of guest physical memory on its way through the stages. */
export interface Chunk {
  /** guest physical address of the first byte */
  readonly paddr: number;
  /** number of bytes; whole pages but for the ends of a range */
  readonly length: number;
  /**
   * the bytes, `length` of them; absent when the run is known to be zeros (a hole of any size). With `release` they are
   * lent to whoever has the chunk, who may write to them; without it they may be somebody's own
   */
  readonly data?: Uint8Array | undefined;
  /** where the bytes are, instead of `data`: for whoever asked for chunks that are not read yet, and for nobody else */
  readonly unread?: UnreadBytes | undefined;
  /** bytes of guest memory that the chunk stands for, where they are not `length`: padded to whole pages it has more */
  readonly memory?: number | undefined;
  /** gives the bytes back to their pool; call it once, when they are needed no more */
  readonly release?: (() => void) | undefined;
}

/** Bytes of guest memory that are still in a file: any thread of the process may read them with pread(2). */
export interface UnreadBytes extends FilePlace {
  /** Reads them all, or tells why that does not work. @throws VmcoreError READ, TRUNCATED */
  read(into: Uint8Array): Promise<void>;
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

export { PAGE_SIZE } from './page-size.js';

/** What a stage buffers before it pushes back, in bytes of memory that is pinned. */
const STAGE_BUFFER_BYTES = 4 << 20;

/** What an item without bytes counts for: it pins nothing, but must not queue without bound, and streamx drops a 0. */
const HOLE_WEIGHT = 4096;

/** Options that every stage takes. */
export interface StageOptions {
  /** destroys the stage, and with it the pipeline that it is part of; one that is aborted already lets it not begin */
  readonly signal?: AbortSignal | undefined;
}

const STREAM_OPTIONS = {
  highWaterMark: STAGE_BUFFER_BYTES,
  byteLength: (item: unknown) => (item as Partial<Chunk>).data?.byteLength || HOLE_WEIGHT,
};

type Callback = (error: Error | null) => void;

/** Runs an async hook and reports to a streamx callback. */
function settle(work: Promise<void> | void, callback: Callback): void {
  if (work === undefined) callback(null);
  else work.then(() => callback(null), callback);
}

/** Like settle, for hooks that may throw. */
function attempt(hook: () => Promise<void> | void, callback: Callback): void {
  let work: Promise<void> | void;
  try {
    work = hook();
  } catch (error) {
    callback(error instanceof Error ? error : new Error(String(error)));
    return;
  }
  settle(work, callback);
}

/**
 * Destroys a stage when a signal is aborted. streamx has an option for that, with which a stage that waits for its
 * pipeline, so that nobody listens to its errors yet, ends the process.
 */
function destroyOnAbort(stage: Readable | Writable, signal: AbortSignal | undefined): void {
  const abort = () => {
    stage.on('error', () => {});
    stage.destroy(abortedError(signal));
  };
  signal?.addEventListener('abort', abort, { once: true });
}

/** Opens a stage; one whose signal was aborted before there was a stage is not opened, and its pipeline ends. */
function begin(open: () => Promise<void> | void, signal: AbortSignal | undefined, callback: Callback): void {
  if (signal?.aborted) callback(abortedError(signal));
  else attempt(open, callback);
}

function abortedError(signal: AbortSignal | undefined): VmcoreError {
  return new VmcoreError('ABORTED', 'aborted by its signal', { cause: signal?.reason });
}

/** A Readable stage of `T`. */
export abstract class Source<T> extends Readable {
  readonly #signal: AbortSignal | undefined;

  constructor(options: StageOptions = {}) {
    super(STREAM_OPTIONS);
    this.#signal = options.signal;
    destroyOnAbort(this, options.signal);
  }

  /** Acquires what the stage needs. */
  protected open(): Promise<void> | void {}
  /** The next item, or null at the end. */
  protected abstract next(): Promise<T | null>;
  /** Lets go of what `open` acquired; always called. */
  protected close(): Promise<void> | void {}

  override _open(callback: Callback): void {
    begin(() => this.open(), this.#signal, callback);
  }

  override _read(callback: Callback): void {
    this.next().then((item) => {
      this.push(item);
      callback(null);
    }, callback);
  }

  override _destroy(callback: Callback): void {
    attempt(() => this.close(), callback);
  }

  override [Symbol.asyncIterator](): AsyncIterator<T> {
    return super[Symbol.asyncIterator]() as AsyncIterator<T>;
  }
}

/** A Transform stage from `I` to `O`. */
export abstract class Stage<I, O> extends Transform {
  readonly #signal: AbortSignal | undefined;

  constructor(options: StageOptions = {}) {
    super(STREAM_OPTIONS);
    this.#signal = options.signal;
    destroyOnAbort(this, options.signal);
  }

  /** Acquires what the stage needs, and may `emitItem` what comes before the first input. */
  protected open(): Promise<void> | void {}
  /** Handles one item; calls `emitItem` for each output. */
  protected abstract transform(item: I): Promise<void> | void;
  /** The input has ended: emit what is left, refuse what is missing. */
  protected flush(): Promise<void> | void {}
  /** Lets go of what `open` acquired; always called. */
  protected close(): Promise<void> | void {}

  /** Passes an item on. */
  protected emitItem(item: O): void {
    this.push(item);
  }

  override _open(callback: Callback): void {
    begin(() => this.open(), this.#signal, callback);
  }

  override _transform(item: unknown, callback: (error: Error | null, mapped: unknown) => void): void {
    attempt(
      () => this.transform(item as I),
      (error) => callback(error, undefined),
    );
  }

  override _flush(callback: Callback): void {
    attempt(() => this.flush(), callback);
  }

  override _destroy(callback: Callback): void {
    attempt(() => this.close(), callback);
  }

  override [Symbol.asyncIterator](): AsyncIterator<O> {
    return super[Symbol.asyncIterator]() as AsyncIterator<O>;
  }
}

/** A Writable stage of `T`. */
export abstract class Sink<T> extends Writable {
  readonly #signal: AbortSignal | undefined;

  constructor(options: StageOptions = {}) {
    super(STREAM_OPTIONS);
    this.#signal = options.signal;
    destroyOnAbort(this, options.signal);
  }

  /** Acquires what the stage needs. */
  protected open(): Promise<void> | void {}
  /** Takes one item; the next comes when it has settled. */
  protected abstract take(item: T): Promise<void> | void;
  /** All items have been taken. */
  protected finish(): Promise<void> | void {}
  /** Lets go of what `open` acquired; always called, after `finish` if all went well. */
  protected close(): Promise<void> | void {}

  override _open(callback: Callback): void {
    begin(() => this.open(), this.#signal, callback);
  }

  override _write(item: unknown, callback: Callback): void {
    attempt(() => this.take(item as T), callback);
  }

  override _final(callback: Callback): void {
    attempt(() => this.finish(), callback);
  }

  override _destroy(callback: Callback): void {
    attempt(() => this.close(), callback);
  }
}

/**
 * A stage as the type that Node's `stream.pipeline` asks for. It is the same object: streamx streams work there, only
 * their types say less.
 */
export function nodeStream(stage: Transform | Writable): NodeJS.ReadWriteStream {
  return stage as unknown as NodeJS.ReadWriteStream;
}
