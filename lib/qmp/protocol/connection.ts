/** A client's connection, whatever it is made of: bytes and descriptors in, text out. */

import { closeSync, fstatSync } from 'node:fs';
import { Socket } from 'node:net';
import type { Readable, Writable } from 'node:stream';
import { canReceiveDescriptors, DescriptorReader, type Received } from './scm-rights.js';

/** Text that may wait for a client that does not read, in bytes; who leaves more unread is cut off. */
const MAX_UNREAD = 8 << 20;

/** Where bytes come from. */
interface Reader {
  receive(): Promise<Received | null>;
  end(): void;
}

/** Both directions of a client. */
export class Connection {
  #closed = false;
  #draining: Promise<void> | null = null;
  #onClosed: () => void = () => {};
  /** settles when the connection is closed, by whomever */
  readonly #ended = new Promise<void>((resolve) => {
    this.#onClosed = resolve;
  });

  constructor(
    private readonly reader: Reader,
    private readonly output: Writable,
    /** why no descriptors can come this way; null when they can */
    readonly withoutDescriptors: 'no-koffi' | 'no-socket' | null,
  ) {
    output.once('close', () => this.close());
    output.on('error', () => this.close());
  }

  /** The next bytes, valid until the next call; null when the client is gone. */
  receive(): Promise<Received | null> {
    return this.#closed ? Promise.resolve(null) : this.reader.receive();
  }

  /** Writes a text; settles when the client has read enough for the next one, or is gone. */
  send(text: string): Promise<void> | void {
    if (this.#closed || this.output.writableEnded || this.output.write(text)) return;
    return this.#drained();
  }

  /** Writes what nobody asked for: whoever leaves too much unread is cut off. */
  notify(text: string): void {
    if (this.#closed || this.output.writableEnded) return;
    if (this.output.writableLength > MAX_UNREAD) this.close();
    else this.output.write(text);
  }

  /** Ends the connection when what was written has been taken; sooner if `patience` (milliseconds) runs out. */
  async finish(patience: number): Promise<void> {
    const timeout = setTimeout(() => this.close(), patience);
    if (!this.#closed) this.output.end(() => this.close());
    await this.#ended;
    clearTimeout(timeout);
  }

  /** Ends the connection at once. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.reader.end();
    this.output.destroy();
    this.#onClosed();
  }

  /** Several answers may wait for the same. */
  #drained(): Promise<void> {
    this.#draining ??= Promise.race([
      new Promise<void>((resolve) => this.output.once('drain', resolve)),
      this.#ended,
    ]).finally(() => {
      this.#draining = null;
    });
    return this.#draining;
  }
}

/** A connection over a socket that nobody reads yet (`pauseOnConnect`). */
export function socketConnection(socket: Socket): Connection {
  const fd = descriptorOf(socket);
  if (fd === null) return new Connection(new StreamReader(socket), socket, 'no-koffi');
  return new Connection(new DescriptorReader(fd, () => socket.destroyed), socket, null);
}

/** The number behind a UNIX socket, if descriptors can be received. Node keeps it to itself, but has always had it. */
function descriptorOf(socket: Socket): number | null {
  const { _handle: handle } = socket as unknown as { _handle?: { fd?: number } };
  return canReceiveDescriptors() && handle?.fd !== undefined && handle.fd >= 0 ? handle.fd : null;
}

/** A connection over an open socket. */
export function descriptorConnection(fd: number): Connection {
  // What is read here is not to be read by Node as well.
  const readable = !canReceiveDescriptors();
  return socketConnection(new Socket({ fd, readable, writable: true, allowHalfOpen: true }));
}

/** A connection over stdin and stdout; descriptors can come through stdin if it is a socket. */
export function stdioConnection(): Connection {
  if (!fstatSync(0).isSocket()) return new Connection(new StreamReader(process.stdin), process.stdout, 'no-socket');
  if (!canReceiveDescriptors()) return new Connection(new StreamReader(process.stdin), process.stdout, 'no-koffi');
  return new Connection(new DescriptorReader(0, () => false), process.stdout, null);
}

/** Reads a stream of Node's, as slowly as it is asked. */
class StreamReader implements Reader {
  readonly #chunks: AsyncIterator<Uint8Array>;
  #ended = false;

  constructor(private readonly stream: Readable) {
    this.#chunks = stream.iterator({ destroyOnReturn: false });
  }

  async receive(): Promise<Received | null> {
    try {
      const { done, value } = await this.#chunks.next();
      return done || this.#ended ? null : { data: value, descriptors: [] };
    } catch {
      return null;
    }
  }

  end(): void {
    this.#ended = true;
    this.stream.destroy();
  }
}

/** Closes descriptors that nobody wants, or wants any more: what close(2) has to say of them is of no use to anybody. */
export function closeAll(descriptors: readonly number[]): void {
  for (const fd of descriptors) {
    try {
      closeSync(fd);
    } catch {
      // It is closed all the same, and the others are still to be.
    }
  }
}
