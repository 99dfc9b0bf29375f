/**
 * Writes to a pipe or socket without tying up a thread: a reader that does not read must not keep us from being aborted,
 * and a thread that is blocked in write(2) cannot be called back.
 *
 * A pipe is opened anew through /proc/self/fd, non-blocking, as an open file description of our own: what the caller's
 * descriptor is set to does not matter, and is not changed for whoever shares it. A socket cannot be opened, and a pipe
 * not after privileges were dropped: there a duplicate is written to, which shares the caller's setting. It is
 * non-blocking as long as we write, and is then set back.
 */

import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { Socket } from 'node:net';
import { ioError } from '../model/errors.js';
import { libc } from '../io/libc.js';

/** Commands of fcntl(2). */
const F_GETFL = 3;
const F_SETFL = 4;
const F_DUPFD_CLOEXEC = 1030;

/** Descriptors of our own come after those that have a meaning by their number. */
const FIRST_OWN = 3;

/** A descriptor to write through. */
interface WriteEnd {
  readonly fd: number;
  /** sets the caller's descriptor back to what it was */
  restore(): void;
}

/** A pipe or socket to write to. */
export class PipeWriter {
  readonly #socket: Socket;
  #failure: Error | null = null;
  #closed = false;

  private constructor(
    private readonly end: WriteEnd,
    readonly target: string,
  ) {
    this.#socket = new Socket({ fd: end.fd, readable: false, writable: true });
    this.#socket.on('error', (error) => {
      this.#failure = error;
    });
  }

  /** Opens the pipe or socket behind a descriptor; null when it is neither, or the system has no way to. */
  static open(fd: number, target: string): PipeWriter | null {
    const end = writeEnd(fd);
    if (!end) return null;
    try {
      return new PipeWriter(end, target);
    } catch {
      // A socket of datagrams, for one.
      closeSync(end.fd);
      return null;
    }
  }

  /**
   * Writes all of `data`; settles when the pipe has taken it.
   * @throws VmcoreError WRITE, also when the pipe is closed while it waits
   */
  write(data: Uint8Array): Promise<void> {
    return new Promise((resolve, reject) => {
      const fail = (error: Error) => reject(ioError('WRITE', `write ${this.target}`, error));
      if (this.#failure) fail(this.#failure);
      else this.#socket.write(data, (error) => (error ? fail(error) : resolve()));
    });
  }

  /** Closes our end; what was not taken yet is dropped. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#socket.destroy();
    this.end.restore();
  }
}

function writeEnd(fd: number): WriteEnd | null {
  try {
    const stat = fstatSync(fd);
    if (stat.isFIFO()) return reopen(fd) ?? duplicate(fd);
    return stat.isSocket() ? duplicate(fd) : null;
  } catch {
    return null;
  }
}

function reopen(fd: number): WriteEnd | null {
  try {
    return {
      fd: openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_NONBLOCK),
      restore: () => {},
    };
  } catch {
    return null;
  }
}

function duplicate(fd: number): WriteEnd | null {
  const system = libc();
  if (!system) return null;
  const flags = system.fcntl(fd, F_GETFL, 0);
  const copy = system.fcntl(fd, F_DUPFD_CLOEXEC, FIRST_OWN);
  return copy < 0 ? null : { fd: copy, restore: () => void system.fcntl(fd, F_SETFL, flags) };
}
