/**
 * Descriptor sink: a vmcore into a pipe, a socket or a file that somebody else opened.
 *
 * Bytes go where the descriptor stands, in order, as QEMU writes to its `fd:` protocol; what is between extents is
 * filled with zeros. For formats that need it, they go to their offsets of a file instead, counted from its beginning.
 * As with QEMU, a file that was longer than the vmcore stays as long: what it had behind the vmcore's end is its owner's.
 * The descriptor is left open unless asked otherwise: whoever opened it closes it.
 */

import { close, constants, fstatSync } from 'node:fs';
import { promisify } from 'node:util';
import { ioError, VmcoreError } from '../model/errors.js';
import { openFlags } from '../io/open-flags.js';
import type { Extent, StageOptions } from '../model/stage.js';
import { ExtentSink } from './extent-sink.js';
import { OldBytes } from './old-bytes.js';
import { PipeWriter } from './pipe-writer.js';
import { writeFully } from '../io/write-fully.js';

const closeFd = promisify(close);

const ZEROS = new Uint8Array(256 * 1024);

/** What may be said of a descriptor. */
export interface FdSinkOptions extends StageOptions {
  /** close the descriptor at the end, whatever the end; false by default */
  readonly close?: boolean | undefined;
  /** what to call it in messages; `fd N` by default */
  readonly name?: string | undefined;
  /** write extents at their offsets, in any order; refused for what is no regular file; false by default */
  readonly seek?: boolean | undefined;
}

/** Writes extents, in order, to a descriptor. */
export class FdSink extends ExtentSink {
  readonly target: string;
  #position = 0;
  /** what the file had in it, where extents go to their offsets */
  #old = new OldBytes(0);
  #pipe: PipeWriter | null = null;
  #closed = false;

  /** @param fd an open descriptor */
  constructor(
    readonly fd: number,
    readonly options: FdSinkOptions = {},
  ) {
    super(options);
    this.target = options.name ?? `fd ${fd}`;
  }

  protected override open(): void {
    if (this.options.seek) this.#old = new OldBytes(seekableSize(this.fd, this.target));
    this.#pipe = PipeWriter.open(this.fd, this.target);
  }

  protected override async store(extent: Extent): Promise<void> {
    if (this.options.seek) return this.#storeAt(extent);
    if (extent.offset < this.#position)
      throw new VmcoreError(
        'UNSUPPORTED',
        `${this.target}: bytes at offset ${extent.offset} come after offset ${this.#position} was written; this format needs a seekable file`,
      );
    await this.#writeZeros(extent.offset - this.#position);
    if (extent.data) await this.#write(extent.data);
    else await this.#writeZeros(extent.length);
  }

  /** A hole is left to the file, which reads as zeros there; but what the file had in it before is overwritten. */
  async #storeAt({ offset, length, data }: Extent): Promise<void> {
    if (data) return this.#writeAt(data, offset);
    const before = this.totals.written;
    await this.#clear(offset, offset + length);
    this.totals.skipped += length - (this.totals.written - before);
  }

  /** Writes zeros over what the file still has from before. */
  async #clear(from: number, to: number): Promise<void> {
    for (const { start, end } of this.#old.within(from, to))
      for (let at = start; at < end && !this.destroying; at += ZEROS.length)
        await this.#writeAt(ZEROS.subarray(0, end - at), at);
  }

  async #writeAt(data: Uint8Array, offset: number): Promise<void> {
    await writeFully(this.fd, data, offset, this.target, this.options.signal);
    this.#old.overwrite(offset, offset + data.length);
    this.totals.written += data.length;
  }

  async #writeZeros(count: number): Promise<void> {
    for (let left = count; left > 0 && !this.destroying; left -= ZEROS.length)
      await this.#write(ZEROS.subarray(0, left));
  }

  async #write(data: Uint8Array): Promise<void> {
    if (this.#pipe) await this.#pipe.write(data);
    else await writeFully(this.fd, data, null, this.target, this.options.signal);
    this.#position += data.length;
    this.totals.written += data.length;
  }

  /** What no extent was for is zeros as well. */
  protected override async finish(): Promise<void> {
    await this.#clear(0, this.totals.size);
    await this.#close();
  }

  /** Lets go of the pipe, and the write that is under way ends. */
  protected override cancel(): void {
    this.#pipe?.close();
  }

  /** What has failed is not made worse by what close(2) says. */
  protected override async close(): Promise<void> {
    await this.#close().catch(() => {});
  }

  /** What close(2) says counts: a file system on another machine may tell only then that there is no room. */
  async #close(): Promise<void> {
    this.#pipe?.close();
    if (!this.options.close || this.#closed) return;
    // Once, whatever it says: the number may be another file's by then.
    this.#closed = true;
    try {
      await closeFd(this.fd);
    } catch (error) {
      throw ioError('WRITE', `close ${this.target}`, error);
    }
  }
}

/**
 * Size of the file behind a descriptor.
 * @throws VmcoreError UNSUPPORTED, with QEMU's words, when offsets mean nothing to the descriptor
 */
function seekableSize(fd: number, target: string): number {
  const stat = fstatSync(fd);
  const isFile = stat.isFile();
  if (!isFile || isAppendOnly(fd))
    throw new VmcoreError(
      'UNSUPPORTED',
      `${target}: kdump-raw formats require a seekable file${isFile ? ' that was not opened with O_APPEND' : ''}`,
    );
  return stat.size;
}

/** With O_APPEND, pwrite(2) ignores its offset on Linux. */
function isAppendOnly(fd: number): boolean {
  return (openFlags(fd) & constants.O_APPEND) !== 0;
}
