/**
 * File sink: a vmcore as a file that is either whole or not there.
 *
 * It is written beside its final name and renamed when all is written; whatever fails before removes it. Zeros are
 * not written, so the file is sparse. Extents may come in any order.
 */

import { libc } from '../io/libc.js';
import type { Extent, StageOptions } from '../model/stage.js';
import { nonZeroRuns } from '../model/zeros.js';
import { ExtentSink } from './extent-sink.js';
import { WholeFile } from './whole-file.js';
import { writeFully } from '../io/write-fully.js';

/** Zeros between data that are fewer than this are written: one write less is worth some zeros. */
const SMALLEST_HOLE = 32 * 1024;

/** What zeros are written from where the file system cannot reserve them. */
const ZEROS = new Uint8Array(1 << 18);

/** How a file is to be written. */
export interface FileSinkOptions extends StageOptions {
  /** replace an existing file; without it an existing file is refused */
  readonly force?: boolean | undefined;
  /** leave zeros out of the file's blocks; true by default */
  readonly sparse?: boolean | undefined;
  /** have the bytes on the disk before the file gets its name, and then the name; false by default: it can take longer */
  readonly sync?: boolean | undefined;
}

/** Writes extents at their offsets of a file. */
export class FileSink extends ExtentSink {
  #file: WholeFile | null = null;

  /** @param target path of the vmcore; a symbolic link is followed, also to a file that is not there yet */
  constructor(
    readonly target: string,
    readonly options: FileSinkOptions = {},
  ) {
    super(options);
  }

  protected override async open(): Promise<void> {
    this.#file = await WholeFile.create(this.target, this.options.force ?? false);
  }

  protected override async store(extent: Extent): Promise<void> {
    if (!extent.data) return this.#storeHole(extent);
    const runs =
      this.options.sparse === false ? [{ start: 0, end: extent.length }] : nonZeroRuns(extent.data, SMALLEST_HOLE);
    let written = 0;
    for (const { start, end } of runs) {
      await writeFully(this.#file!.fd, extent.data.subarray(start, end), extent.offset + start, this.target);
      written += end - start;
    }
    this.totals.written += written;
    this.totals.skipped += extent.length - written;
  }

  async #storeHole({ offset, length }: Extent): Promise<void> {
    if (this.options.sparse !== false) {
      this.totals.skipped += length;
      return;
    }
    // Blocks of zeros from the file system cost half of what writing them does.
    const reserved = libc()?.fallocate(this.#file!.fd, 0, offset, length) === 0;
    if (!reserved) await this.#writeZeros(offset, length);
    this.totals.written += length;
  }

  async #writeZeros(offset: number, length: number): Promise<void> {
    for (let done = 0; done < length && !this.destroying; done += ZEROS.length) {
      const zeros = ZEROS.subarray(0, Math.min(ZEROS.length, length - done));
      await writeFully(this.#file!.fd, zeros, offset + done, this.target);
    }
  }

  protected override async finish(): Promise<void> {
    await this.#file!.publish({ size: this.totals.size, sync: this.options.sync });
  }

  /** The process may not live to see the end of what is under way: removes the file now. */
  protected override cancel(): void {
    this.#file?.removeNow();
  }

  protected override async close(): Promise<void> {
    await this.#file?.discard();
  }
}
