/**
 * The three kinds of stage: source, stage and sink. Each knows its input and its output type (see chunk.ts) and no
 * neighbour by name.
 *
 * They are streamx streams. The base classes give streamx's callbacks types and promises; a stage overrides `open`,
 * `next`/`transform`/`take`, `flush`/`finish`, `cancel` and `close`, which are the one place where each of its resources
 * is born and the one place where it dies:
 *
 *   destroyed -> cancel(error): whatever the stage waits for ends now -> what is under way settles -> close()
 *
 * streamx does not call `close` while something is under way, so a stage that waits for anything but the system (a slab,
 * a thread, a reader) has to end that wait in `cancel`.
 */

import { Readable, Transform, Writable } from 'streamx';
import { releaseItem } from './chunk.js';
import { VmcoreError } from './errors.js';

export * from './chunk.js';
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
  byteLength: (item: unknown) => (item as { readonly data?: Uint8Array }).data?.byteLength || HOLE_WEIGHT,
};

type Callback = (error: Error | null) => void;

/** Runs a hook, which may throw, and reports to a streamx callback. */
function attempt(hook: () => Promise<void> | void, callback: Callback): void {
  let work: Promise<void> | void;
  try {
    work = hook();
  } catch (error) {
    callback(asError(error));
    return;
  }
  if (work === undefined) callback(null);
  else work.then(() => callback(null), callback);
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

/** What streamx keeps items in, of the side of a stream that they wait at. */
interface StreamSide {
  readonly queue: { shift(): unknown };
  readonly error: Error | null;
}

/** The parts of a streamx stream that it has no methods for: what waits in it, and what has destroyed it. */
interface StreamParts {
  readonly _readableState: StreamSide | null;
  readonly _writableState: StreamSide | null;
  readonly _transformState?: { readonly data: unknown };
}

/** Releases what waits in a stage that nobody reads any more. streamx only drops it. */
function releaseQueues({ _readableState, _writableState }: StreamParts): void {
  for (const side of [_writableState, _readableState])
    for (let item = side?.queue.shift(); item !== undefined; item = side?.queue.shift()) releaseItem(item);
}

/** What all three kinds of stage do at the beginning and at the end of their lives. */
class Life {
  readonly #stage: Readable | Writable;
  readonly #signal: AbortSignal | undefined;

  constructor(stage: Readable | Writable, { signal }: StageOptions) {
    this.#stage = stage;
    this.#signal = signal;
    signal?.addEventListener('abort', this.#abort, { once: true });
  }

  /**
   * Destroys the stage. streamx has an option for signals, with which a stage that waits for its pipeline, so that nobody
   * listens to its errors yet, ends the process; and which listens for ever.
   */
  readonly #abort = (): void => {
    this.#stage.on('error', () => {});
    this.#stage.destroy(abortedError(this.#signal));
  };

  /** Opens the stage; one whose signal was aborted before there was a stage is not opened, and its pipeline ends. */
  begin(open: () => Promise<void> | void, callback: Callback): void {
    if (this.#signal?.aborted) callback(abortedError(this.#signal));
    else attempt(open, callback);
  }

  /** What the stage was destroyed with. */
  get error(): Error {
    const { _readableState, _writableState } = this.#parts;
    return _writableState?.error ?? _readableState?.error ?? abortedError(this.#signal);
  }

  /** A transform that waited for room to push has an item that is in no queue. */
  releaseHeld(): void {
    releaseItem(this.#parts._transformState?.data);
  }

  /** Closes the stage. */
  end(close: () => Promise<void> | void, callback: Callback): void {
    this.#signal?.removeEventListener('abort', this.#abort);
    releaseQueues(this.#parts);
    attempt(close, callback);
  }

  get #parts(): StreamParts {
    return this.#stage as unknown as StreamParts;
  }
}

function abortedError(signal: AbortSignal | undefined): VmcoreError {
  return new VmcoreError('ABORTED', 'aborted by its signal', { cause: signal?.reason });
}

/** A Readable stage of `T`. */
export abstract class Source<T> extends Readable {
  readonly #life: Life;

  constructor(options: StageOptions = {}) {
    super(STREAM_OPTIONS);
    this.#life = new Life(this, options);
  }

  /** Acquires what the stage needs. */
  protected open(): Promise<void> | void {}
  /** The next item, or null at the end. */
  protected abstract next(): Promise<T | null>;
  /** The stage is destroyed: ends whatever it waits for, with that error. Must not wait itself. */
  protected cancel(_error: Error): void {}
  /** Lets go of what `open` acquired; always called, once, when nothing is under way. */
  protected close(): Promise<void> | void {}

  override _open(callback: Callback): void {
    this.#life.begin(() => this.open(), callback);
  }

  override _read(callback: Callback): void {
    this.next().then((item) => {
      if (this.destroying) releaseItem(item);
      else this.push(item);
      callback(null);
    }, callback);
  }

  override _predestroy(): void {
    this.cancel(this.#life.error);
  }

  override _destroy(callback: Callback): void {
    this.#life.end(() => this.close(), callback);
  }

  override [Symbol.asyncIterator](): AsyncIterator<T> {
    return super[Symbol.asyncIterator]() as AsyncIterator<T>;
  }
}

/** A Transform stage from `I` to `O`. */
export abstract class Stage<I, O> extends Transform {
  readonly #life: Life;
  /** a transform that waits for room */
  #waiting: { resolve(): void; reject(error: Error): void } | null = null;

  constructor(options: StageOptions = {}) {
    super(STREAM_OPTIONS);
    this.#life = new Life(this, options);
  }

  /** Acquires what the stage needs, and may `emitItem` what comes before the first input. */
  protected open(): Promise<void> | void {}
  /**
   * Handles one item, which is its own to pass on or to release; calls `emitItem` for each output. An item for which it
   * throws, before it has passed on anything of it, is released; one whose promise is rejected is not.
   */
  protected abstract transform(item: I): Promise<void> | void;
  /** The input has ended: emit what is left, refuse what is missing. */
  protected flush(): Promise<void> | void {}
  /** The stage is destroyed: ends whatever it waits for, with that error. Must not wait itself. */
  protected cancel(_error: Error): void {}
  /** Lets go of what `open` acquired; always called, once, when nothing is under way. */
  protected close(): Promise<void> | void {}

  /** Passes an item on. @returns whether there is room for another */
  protected emitItem(item: O): boolean {
    if (!this.destroying) return this.push(item);
    releaseItem(item);
    return false;
  }

  /** Settles when there is room for another item: for stages that make many of one. Rejects when the stage is destroyed. */
  protected room(): Promise<void> {
    if (this.destroying) return Promise.reject(this.#life.error);
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject };
    });
  }

  /** streamx calls it when its reader has taken enough of what was pushed. */
  override _read(callback: Callback): void {
    this.#waiting?.resolve();
    this.#waiting = null;
    super._read(callback);
  }

  /** Takes an item, as streamx has it; a stage that is destroyed gives it back. */
  override write(item: unknown): boolean {
    if (this.destroying) releaseItem(item);
    return super.write(item);
  }

  override _open(callback: Callback): void {
    this.#life.begin(() => this.open(), callback);
  }

  override _transform(item: unknown, callback: (error: Error | null, mapped: unknown) => void): void {
    attempt(
      () => this.#transformOwned(item),
      (error) => callback(error, undefined),
    );
  }

  /** A stage that refuses an item at once has not passed it on. */
  #transformOwned(item: unknown): Promise<void> | void {
    try {
      return this.transform(item as I);
    } catch (error) {
      releaseItem(item);
      throw error;
    }
  }

  override _flush(callback: Callback): void {
    attempt(() => this.flush(), callback);
  }

  override _predestroy(): void {
    this.#life.releaseHeld();
    this.#waiting?.reject(this.#life.error);
    this.cancel(this.#life.error);
  }

  override _destroy(callback: Callback): void {
    this.#life.end(() => this.close(), callback);
  }

  override [Symbol.asyncIterator](): AsyncIterator<O> {
    return super[Symbol.asyncIterator]() as AsyncIterator<O>;
  }
}

/** A Writable stage of `T`. */
export abstract class Sink<T> extends Writable {
  readonly #life: Life;

  constructor(options: StageOptions = {}) {
    super(STREAM_OPTIONS);
    this.#life = new Life(this, options);
  }

  /** Acquires what the stage needs. */
  protected open(): Promise<void> | void {}
  /** Takes one item; the next comes when it has settled. */
  protected abstract take(item: T): Promise<void> | void;
  /** All items have been taken. */
  protected finish(): Promise<void> | void {}
  /** The stage is destroyed: ends whatever it waits for, with that error. Must not wait itself. */
  protected cancel(_error: Error): void {}
  /** Lets go of what `open` acquired; always called, once, after `finish` if all went well. */
  protected close(): Promise<void> | void {}

  /** Takes an item, as streamx has it; a stage that is destroyed gives it back. */
  override write(item: unknown): boolean {
    if (this.destroying) releaseItem(item);
    return super.write(item);
  }

  override _open(callback: Callback): void {
    this.#life.begin(() => this.open(), callback);
  }

  override _write(item: unknown, callback: Callback): void {
    attempt(() => this.take(item as T), callback);
  }

  override _final(callback: Callback): void {
    attempt(() => this.finish(), callback);
  }

  override _predestroy(): void {
    this.cancel(this.#life.error);
  }

  override _destroy(callback: Callback): void {
    this.#life.end(() => this.close(), callback);
  }
}

/** Destroys a stage, if it is not yet, and settles when it has let go of everything. */
export function closed(stage: Readable | Writable): Promise<void> {
  if (stage.destroyed) return Promise.resolve();
  return new Promise((resolve) => {
    stage.on('error', () => {});
    stage.once('close', resolve);
    stage.destroy();
  });
}

/**
 * A stage as the type that Node's `stream.pipeline` asks for. It is the same object: streamx streams work there, only
 * their types say less.
 */
export function nodeStream(stage: Transform | Writable): NodeJS.ReadWriteStream {
  return stage as unknown as NodeJS.ReadWriteStream;
}
