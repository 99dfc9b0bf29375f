/**
 * Writes to a pipe without tying up a thread: a reader that does not read must not keep us from being aborted, and a
 * thread that is blocked in write(2) cannot be called back.
 *
 * The pipe is opened anew through /proc/self/fd, non-blocking, as an open file description of our own: what the
 * caller's descriptor is set to does not matter, and is not changed for whoever shares it.
 */

import { constants, fstatSync, openSync } from 'node:fs';
import { Socket } from 'node:net';
import { ioError } from '../errors.js';

/** A pipe to write to. */
export class PipeWriter {
  readonly #socket: Socket;
  #failure: Error | null = null;

  private constructor(
    fd: number,
    readonly target: string,
  ) {
    this.#socket = new Socket({ fd, readable: false, writable: true });
    this.#socket.on('error', (error) => {
      this.#failure = error;
    });
  }

  /** Opens the pipe behind a descriptor; null when it is no pipe or the system has no /proc. */
  static open(fd: number, target: string): PipeWriter | null {
    try {
      if (!fstatSync(fd).isFIFO()) return null;
      return new PipeWriter(openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_NONBLOCK), target);
    } catch {
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
    this.#socket.destroy();
  }
}
