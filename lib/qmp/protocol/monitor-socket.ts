/**
 * A socket that hears the other end out. Node destroys a socket when a write to it fails, and what has come by then and
 * was not read yet is lost: QEMU answers `quit` and ends, and whoever tells it something at that moment would never learn
 * what it said.
 */

import { Socket } from 'node:net';

/** How long the other end may stay after a write has failed, in milliseconds: one that is gone is heard of at once. */
const PATIENCE = 1000;

type Written = (error?: Error | null) => void;

/** Reads to the end although it cannot write any more. */
export class MonitorSocket extends Socket {
  #lingering: NodeJS.Timeout | null = null;

  /** Nothing more can be written: the socket ends when all that was sent has been read. */
  hearOut(error: Error): void {
    if (this.#lingering || this.destroyed) return;
    this.#lingering = setTimeout(() => this.destroy(error), PATIENCE);
    this.once('close', () => clearTimeout(this.#lingering!));
  }

  override _write(chunk: unknown, encoding: BufferEncoding, written: Written): void {
    super._write(chunk, encoding, this.#heard(written));
  }

  override _writev(chunks: { chunk: unknown; encoding: BufferEncoding }[], written: Written): void {
    super._writev!(chunks, this.#heard(written));
  }

  #heard(written: Written): Written {
    return (error) => {
      if (error) this.hearOut(error);
      written();
    };
  }
}
