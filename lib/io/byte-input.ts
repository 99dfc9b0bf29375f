/**
 * Bytes that come one after another: a pipe, a socket, an async iterable. Three ways of getting them behind one small
 * interface, so that what parses a stream need not know which.
 */

import { fstatSync, read } from 'node:fs';
import { type ConnectOpts, Socket, type SocketConstructorOpts } from 'node:net';
import { ioError, VmcoreError } from '../model/errors.js';
import { closeRead } from './close-read.js';

/** Something to read bytes from, once and in order. */
export interface ByteInput {
  /**
   * Reads what there is, waiting for the first byte.
   * @returns how many bytes were read into the front of `into` (which is not empty); 0 at the end
   * @throws VmcoreError READ; ABORTED when `close` was called meanwhile
   */
  readSome(into: Uint8Array): Promise<number>;
  /** Stops reading, once and for all. A read that is under way fails at once. Closes a descriptor that is owned. */
  close(): void;
}

/** An open file descriptor. */
export interface DescriptorSource {
  readonly fd: number;
  /** it is closed with the input; false by default: whoever opened it closes it */
  readonly owned?: boolean | undefined;
}

/** What can be read as a stream: anything async iterable (a Node or streamx Readable), or a descriptor. */
export type ByteSource = AsyncIterable<Uint8Array> | DescriptorSource | ByteInput;

/**
 * @param source a descriptor stays open when the input is closed, unless it is owned; an iterable is asked to `return`
 * @throws VmcoreError READ when the descriptor is not open
 */
export function openByteInput(source: ByteSource, name: string): ByteInput {
  if ('readSome' in source) return source;
  if (!('fd' in source) || Symbol.asyncIterator in source)
    return new IterableInput(source as AsyncIterable<Uint8Array>, name);
  return isPipe(source.fd, name) ? new PipeInput(source, name) : new FileInput(source, name);
}

/** An input whose first bytes have been looked at, and come again. */
export class PeekedInput implements ByteInput {
  readonly #input: ByteInput;
  #left: Uint8Array;

  private constructor(
    input: ByteInput,
    /** the first bytes; fewer than asked for when the input is shorter */
    readonly start: Uint8Array,
  ) {
    this.#input = input;
    this.#left = start;
  }

  /**
   * Looks at the first `count` bytes.
   * @throws VmcoreError READ
   */
  static async open(source: ByteSource, name: string, count: number): Promise<PeekedInput> {
    const input = openByteInput(source, name);
    const start = new Uint8Array(count);
    let length = 0;
    try {
      for (let got = -1; got !== 0 && length < count; length += got) got = await input.readSome(start.subarray(length));
    } catch (error) {
      input.close();
      throw error;
    }
    return new PeekedInput(input, start.subarray(0, length));
  }

  async readSome(into: Uint8Array): Promise<number> {
    if (this.#left.length === 0) return this.#input.readSome(into);
    const part = this.#left.subarray(0, into.length);
    into.set(part);
    this.#left = this.#left.subarray(part.length);
    return part.length;
  }

  close(): void {
    this.#input.close();
  }
}

function isPipe(fd: number, name: string): boolean {
  try {
    const stat = fstatSync(fd);
    return stat.isFIFO() || stat.isSocket();
  } catch (error) {
    throw ioError('READ', `read ${name}`, error);
  }
}

function closedError(name: string): VmcoreError {
  return new VmcoreError('ABORTED', `reading ${name} was stopped`);
}

/** A promise that is settled from outside, once; at most one is under way at a time. */
class Waiter {
  #reject: ((error: Error) => void) | null = null;

  /** Waits for what `start` reports to its callbacks. */
  wait<T>(start: (resolve: (value: T) => void, reject: (error: unknown) => void) => void): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.#reject = reject;
      start(resolve, reject);
    });
  }

  /** Fails the wait that is under way, if any. */
  fail(error: Error): void {
    this.#reject?.(error);
  }
}

/** Chunks of an async iterable. */
class IterableInput implements ByteInput {
  readonly #iterator: AsyncIterator<Uint8Array>;
  readonly #name: string;
  readonly #waiter = new Waiter();
  #left: Uint8Array = new Uint8Array(0);
  #closed = false;

  constructor(iterable: AsyncIterable<Uint8Array>, name: string) {
    this.#iterator = iterable[Symbol.asyncIterator]();
    this.#name = name;
  }

  async readSome(into: Uint8Array): Promise<number> {
    // Empty chunks are allowed, and are not the end.
    while (this.#left.length === 0) {
      const result = await this.#next();
      if (result.done) return 0;
      if (!(result.value instanceof Uint8Array))
        throw new VmcoreError('USAGE', `${this.#name} yields ${typeof result.value} values where bytes are needed`);
      this.#left = result.value;
    }
    const part = this.#left.subarray(0, into.length);
    into.set(part);
    this.#left = this.#left.subarray(part.length);
    return part.length;
  }

  async #next(): Promise<IteratorResult<Uint8Array>> {
    if (this.#closed) throw closedError(this.#name);
    try {
      return await this.#waiter.wait((resolve, reject) => this.#iterator.next().then(resolve, reject));
    } catch (error) {
      throw ioError('READ', `read ${this.#name}`, error);
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#waiter.fail(closedError(this.#name));
    // What the iterable has to say when it is left is nobody's business any more.
    this.#iterator.return?.().catch(() => {});
  }
}

/** Bytes that libuv reads at a time: a pipe holds 64 KiB, and more when its writer asked for it. */
const PIPE_BUFFER_BYTES = 256 * 1024;

/**
 * A pipe or socket, through the event loop. `fs.read` would do, but its read blocks a thread that cannot be called
 * back: the process could not exit while the writer is silent (seen with Node 20). This is faster, too.
 */
class PipeInput implements ByteInput {
  readonly #socket: Socket;
  readonly #name: string;
  readonly #waiter = new Waiter();
  #left: Uint8Array | null = null;
  #arrived: (() => void) | null = null;
  #ended = false;
  #error: unknown = null;
  readonly #owned: boolean;
  #closed = false;

  constructor({ fd, owned = false }: DescriptorSource, name: string) {
    this.#name = name;
    this.#owned = owned;
    const callback = (count: number, buffer: Uint8Array): boolean => {
      this.#left = buffer.subarray(0, count);
      this.#arrived?.();
      // Pauses: the buffer is read into again only after `resume`.
      return false;
    };
    // `onread` is documented for this constructor too, but its type has it for `connect` only. Half open and writable,
    // so that the socket does not close the caller's descriptor at the end of the data.
    const options: SocketConstructorOpts & ConnectOpts = {
      fd,
      readable: true,
      writable: true,
      allowHalfOpen: true,
      onread: { buffer: new Uint8Array(PIPE_BUFFER_BYTES), callback },
    };
    this.#socket = new Socket(options);
    this.#socket.pause();
    this.#socket.on('end', () => {
      this.#ended = true;
      this.#arrived?.();
    });
    this.#socket.on('error', (error) => {
      this.#error = error;
      this.#arrived?.();
    });
  }

  async readSome(into: Uint8Array): Promise<number> {
    if (!this.#left) await this.#more();
    if (!this.#left) return 0;
    const part = this.#left.subarray(0, into.length);
    into.set(part);
    this.#left = part.length < this.#left.length ? this.#left.subarray(part.length) : null;
    return part.length;
  }

  async #more(): Promise<void> {
    if (this.#closed) throw closedError(this.#name);
    if (!this.#ended && !this.#error) {
      await this.#waiter.wait<void>((resolve) => {
        this.#arrived = resolve;
        this.#socket.resume();
      });
    }
    if (this.#error) throw ioError('READ', `read ${this.#name}`, this.#error);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#waiter.fail(closedError(this.#name));
    if (this.#owned) {
      this.#socket.destroy();
      return;
    }
    // Not destroyed: that would close a descriptor that is the caller's.
    this.#socket.pause();
    this.#socket.unref();
  }
}

/** A regular file or a device, from its current position on. */
class FileInput implements ByteInput {
  readonly #fd: number;
  readonly #name: string;
  readonly #waiter = new Waiter();
  readonly #owned: boolean;
  #closed = false;

  constructor({ fd, owned = false }: DescriptorSource, name: string) {
    this.#fd = fd;
    this.#name = name;
    this.#owned = owned;
  }

  async readSome(into: Uint8Array): Promise<number> {
    if (this.#closed) throw closedError(this.#name);
    return this.#waiter.wait<number>((resolve, reject) => {
      read(this.#fd, into, 0, into.length, null, (error, count) => {
        if (error) reject(ioError('READ', `read ${this.#name}`, error));
        else resolve(count);
      });
    });
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#waiter.fail(closedError(this.#name));
    if (this.#owned) closeRead(this.#fd);
  }
}
