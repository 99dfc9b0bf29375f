/**
 * File sink: a vmcore as a file that is either whole or not there.
 *
 * It is written beside its final name and renamed when all is written; whatever fails before removes it. Zeros are
 * not written, so the file is sparse. Extents may come in any order.
 */

import { constants, unlinkSync } from 'node:fs';
import { type FileHandle, link, lstat, open, readlink, realpath, rename, unlink } from 'node:fs/promises';
import { basename, dirname, isAbsolute, join } from 'node:path';
import { errnoOf, ioError, VmcoreError } from '../errors.js';
import { libc } from '../libc.js';
import type { Extent, StageOptions } from '../stage.js';
import { nonZeroRuns } from '../zeros.js';
import { ExtentSink } from './extent-sink.js';
import { writeFully } from './write-fully.js';

/** Guest memory is as secret as the guest: for its owner's eyes only. */
const FILE_MODE = 0o600;

/** Zeros between data that are fewer than this are written: one write less is worth some zeros. */
const SMALLEST_HOLE = 32 * 1024;

/** How many symbolic links, one after the other, are followed to a file that is not there: as many as Linux follows. */
const MOST_LINKS = 40;

/** Bytes of a file's name that go into the name it has until it is whole; of 255 that file systems allow. */
const MOST_NAME_BYTES = 200;

/** How a file is to be written. */
export interface FileSinkOptions extends StageOptions {
  /** replace an existing file; without it an existing file is refused */
  readonly force?: boolean | undefined;
  /** leave zeros out of the file's blocks; true by default */
  readonly sparse?: boolean | undefined;
  /** have the bytes on the disk before the file gets its name; false by default: it can take longer than the dump */
  readonly sync?: boolean | undefined;
}

/** Writes extents at their offsets of a file. */
export class FileSink extends ExtentSink {
  #file: FileHandle | null = null;
  #path: string;
  #partial = '';

  /** @param target path of the vmcore; a symbolic link is followed, also to a file that is not there yet */
  constructor(
    readonly target: string,
    readonly options: FileSinkOptions = {},
  ) {
    super(options);
    this.#path = target;
  }

  protected override async open(): Promise<void> {
    this.#path = await this.#resolveTarget();
    this.#partial = join(dirname(this.#path), partialName(basename(this.#path)));
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL;
    this.#file = await attempt(this.target, 'create', () => open(this.#partial, flags, FILE_MODE));
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
    const file = this.#file!;
    await attempt(this.target, 'write', async () => {
      await file.truncate(this.totals.size);
      if (this.options.sync) await file.sync();
      await file.close();
    });
    this.#file = null;
    await this.#publish();
    this.#partial = '';
  }

  /** The process may not live to see the end of what is under way: removes the file now. */
  protected override cancel(): void {
    if (!this.#file) return;
    try {
      unlinkSync(this.#partial);
    } catch {
      // `close` tries again.
    }
  }

  protected override async close(): Promise<void> {
    await this.#file?.close();
    if (this.#partial) await unlink(this.#partial).catch(() => {});
  }

  /** Follows symbolic links; refuses what exists, unless forced, and what is no file, always. */
  async #resolveTarget(): Promise<string> {
    const path = await followLinks(this.target);
    const stat = await lstat(path).catch(() => null);
    if (stat?.isDirectory()) throw new VmcoreError('WRITE', `cannot write ${this.target}: is a directory`);
    if (stat && !this.options.force) throw this.#exists();
    return path;
  }

  /** Gives the file its name: link(2) never replaces what came into being in the meantime, rename(2) does. */
  async #publish(): Promise<void> {
    if (this.options.force) {
      await attempt(this.target, 'write', () => rename(this.#partial, this.#path));
      return;
    }
    try {
      await link(this.#partial, this.#path);
      await unlink(this.#partial);
    } catch (error) {
      if (errnoOf(error) === 'EEXIST') throw this.#exists();
      // File systems without hard links.
      await attempt(this.target, 'write', () => rename(this.#partial, this.#path));
    }
  }

  #exists(): VmcoreError {
    return new VmcoreError('EXISTS', `${this.target} exists; give --force to replace it`);
  }
}

/** Where a path leads: that of the file, or that where it will be made. */
async function followLinks(target: string): Promise<string> {
  let path = target;
  for (let links = 0; links < MOST_LINKS; links++) {
    try {
      return await realpath(path);
    } catch (error) {
      if (errnoOf(error) === 'ELOOP') break;
      if (errnoOf(error) === 'ENAMETOOLONG')
        throw new VmcoreError('WRITE', `cannot write ${target}: the name is too long`, { cause: error });
      // What else is wrong with it keeps the file from being made, and is told then.
      if (errnoOf(error) !== 'ENOENT') return path;
    }
    const text = await readlink(path).catch(() => null);
    if (text === null) return path;
    // Not normalized: behind a link to a folder, `..` is not what it looks like.
    path = isAbsolute(text) ? text : `${dirname(path)}/${text}`;
  }
  throw new VmcoreError('WRITE', `cannot write ${target}: too many symbolic links, or they lead in a circle`);
}

/** What zeros are written from where the file system cannot reserve them. */
const ZEROS = new Uint8Array(1 << 18);

/** What a file is called until it is whole: by its name, or the beginning of one that leaves no room for the rest. */
function partialName(name: string): string {
  // Where a character is cut it becomes another, of three bytes at most.
  const start = Buffer.from(name).subarray(0, MOST_NAME_BYTES).toString();
  return `.${start}.${randomName()}.partial`;
}

/** A name that is not there yet, most likely; O_EXCL sees to the rest. Loading node:crypto would take longer than this. */
function randomName(): string {
  return Math.random().toString(36).slice(2);
}

async function attempt<T>(target: string, doing: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw ioError('WRITE', `${doing} ${target}`, error);
  }
}
