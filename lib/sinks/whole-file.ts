/**
 * A file that is either whole or not there: it is written beside its final name, and gets that name when all is
 * written. Whatever fails before removes it, and what had the name until then stays.
 */

import { constants, unlinkSync } from 'node:fs';
import { type FileHandle, link, lstat, open, rename, unlink } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { errnoOf, ioError, systemErrorText, VmcoreError } from '../model/errors.js';
import { existsError, type FileTarget, findFileTarget } from './file-target.js';

/** Guest memory is as secret as the guest: for its owner's eyes only. */
const FILE_MODE = 0o600;

/** Bytes of a file's name that go into the name it has until it is whole; of 255 that file systems allow. */
const MOST_NAME_BYTES = 200;

/** How a file gets its name. */
export interface PublishOptions {
  /** bytes that it has; what was not written of them is a hole */
  readonly size: number;
  /** have the bytes on the disk before, and the name after; false by default */
  readonly sync?: boolean | undefined;
}

/** A file on its way. */
export class WholeFile {
  /** what it is called until it is whole; null when nothing has that name any more */
  #partial: string | null;
  #published = false;

  private constructor(
    /** what to call it in messages */
    readonly target: string,
    private readonly place: FileTarget,
    private readonly force: boolean,
    partial: string,
    private readonly file: FileHandle,
  ) {
    this.#partial = partial;
  }

  /**
   * Makes the file, under another name.
   * @param target path of the file; a symbolic link is followed, also to a file that is not there yet
   * @param force  replace a file that is there
   * @throws VmcoreError EXISTS, WRITE
   */
  static async create(target: string, force: boolean): Promise<WholeFile> {
    const place = await findFileTarget(target, force);
    const partial = join(dirname(place.path), partialName(basename(place.path)));
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL;
    const file = await attempt(target, 'create', () => open(partial, flags, FILE_MODE));
    return new WholeFile(target, place, force, partial, file);
  }

  /** To write to. */
  get fd(): number {
    return this.file.fd;
  }

  /** Gives the file its name: all has been written. @throws VmcoreError EXISTS, WRITE */
  async publish({ size, sync }: PublishOptions): Promise<void> {
    await attempt(this.target, 'write', async () => {
      await this.file.truncate(size);
      if (sync) await this.file.sync();
      // What close(2) says counts: a file system on another machine may tell only then that there is no room.
      await this.file.close();
    });
    if (this.force) await this.#rename();
    else await this.#link();
    if (sync) await this.#syncFolder();
  }

  /** Removes what is not whole, at once: the process may not live to see the end of what is under way. */
  removeNow(): void {
    if (this.#partial === null) return;
    try {
      unlinkSync(this.#partial);
    } catch {
      // `discard` tries again.
    }
  }

  /** Lets go of the file, and removes what is not whole; what is stays. */
  async discard(): Promise<void> {
    await this.file.close().catch(() => {});
    if (this.#partial !== null) await unlink(this.#partial).catch(() => {});
    this.#partial = null;
  }

  /** Like `discard`, but removes a file that has its name, too. One that has replaced another stays: that is gone. */
  async withdraw(): Promise<void> {
    await this.discard();
    if (this.#published && !this.place.replaces) await unlink(this.place.path).catch(() => {});
  }

  /** rename(2) replaces what is there. */
  async #rename(): Promise<void> {
    await attempt(this.target, 'write', () => rename(this.#partial!, this.place.path));
    this.#published = true;
    this.#partial = null;
  }

  /** link(2) never replaces what came into being in the meantime. */
  async #link(): Promise<void> {
    try {
      await link(this.#partial!, this.place.path);
    } catch (error) {
      if (errnoOf(error) === 'EEXIST') throw existsError(this.target);
      return this.#renameToNothing();
    }
    this.#published = true;
    await this.#unlinkPartial();
  }

  /** For file systems without hard links. */
  async #renameToNothing(): Promise<void> {
    if (await lstat(this.place.path).catch(() => null)) throw existsError(this.target);
    await this.#rename();
  }

  async #unlinkPartial(): Promise<void> {
    try {
      await unlink(this.#partial!);
      this.#partial = null;
    } catch (error) {
      // `removeNow` was first.
      if (errnoOf(error) === 'ENOENT') return;
      throw new VmcoreError(
        'WRITE',
        `${this.target} is written and whole, but ${this.#partial}, another name of it, cannot be removed: ${systemErrorText(error)}`,
        { cause: error },
      );
    }
  }

  /** Has the name on the disk. Folders that cannot be read, or not be synced, are left to the system. */
  async #syncFolder(): Promise<void> {
    const folder = await open(dirname(this.place.path), constants.O_RDONLY | constants.O_DIRECTORY).catch(() => null);
    if (!folder) return;
    try {
      await folder.sync();
    } catch (error) {
      if (errnoOf(error) === 'EINVAL') return;
      throw new VmcoreError(
        'WRITE',
        `${this.target} is written and whole, but its name may not be on the disk: ${systemErrorText(error)}`,
        { cause: error },
      );
    } finally {
      await folder.close().catch(() => {});
    }
  }
}

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
