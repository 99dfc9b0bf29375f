/**
 * Descriptor sink: a vmcore into a pipe, a socket or a file that somebody else opened.
 *
 * Bytes go where the descriptor stands, in order, as QEMU writes to its `fd:` protocol; what is between extents is
 * filled with zeros. The descriptor is left open unless asked otherwise: whoever opened it closes it.
 */

import { close } from 'node:fs';
import { VmcoreError } from '../errors.js';
import type { Extent, StageOptions } from '../stage.js';
import { ExtentSink } from './extent-sink.js';
import { PipeWriter } from './pipe-writer.js';
import { writeFully } from './write-fully.js';

const ZEROS = new Uint8Array(256 * 1024);

/** What may be said of a descriptor. */
export interface FdSinkOptions extends StageOptions {
  /** close the descriptor at the end, whatever the end; false by default */
  readonly close?: boolean | undefined;
  /** what to call it in messages; `fd N` by default */
  readonly name?: string | undefined;
}

/** Writes extents, in order, to a descriptor. */
export class FdSink extends ExtentSink {
  readonly target: string;
  #position = 0;
  #pipe: PipeWriter | null = null;

  /** @param fd an open descriptor */
  constructor(
    readonly fd: number,
    readonly options: FdSinkOptions = {},
  ) {
    super(options);
    this.target = options.name ?? `fd ${fd}`;
  }

  protected override open(): void {
    this.#pipe = PipeWriter.open(this.fd, this.target);
  }

  protected override async store(extent: Extent): Promise<void> {
    if (extent.offset < this.#position)
      throw new VmcoreError(
        'UNSUPPORTED',
        `${this.target}: bytes at offset ${extent.offset} come after offset ${this.#position} was written; this format needs a seekable file`,
      );
    await this.#writeZeros(extent.offset - this.#position);
    if (extent.data) await this.#write(extent.data);
    else await this.#writeZeros(extent.length);
  }

  async #writeZeros(count: number): Promise<void> {
    for (let left = count; left > 0; left -= ZEROS.length) await this.#write(ZEROS.subarray(0, left));
  }

  async #write(data: Uint8Array): Promise<void> {
    if (this.#pipe) await this.#pipe.write(data);
    else await writeFully(this.fd, data, null, this.target, this.options.signal);
    this.#position += data.length;
    this.totals.written += data.length;
  }

  /** A destroyed stage waits for the write that is under way: let go of the pipe, and the write ends. */
  override _predestroy(): void {
    this.#pipe?.close();
  }

  protected override close(): Promise<void> | void {
    this.#pipe?.close();
    if (!this.options.close) return;
    return new Promise((resolve) => close(this.fd, () => resolve()));
  }
}
