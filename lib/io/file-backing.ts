/**
 * Bytes of a file as a backing of guest memory, read with `pread` so that a sparse file stays sparse: QEMU's own dump
 * reads through a mapping and leaves every page of a tmpfs file allocated.
 */

import { fstatSync, read, readSync } from 'node:fs';
import { blockDeviceSize } from './block-device.js';
import type { DescriptorSource } from './byte-input.js';
import { closeRead } from './close-read.js';
import { seekData } from './holes.js';
import { openToRead } from './open-to-read.js';
import { ioError, VmcoreError } from '../model/errors.js';
import type { Backing, DataRun, HeldPlace } from '../model/physical-memory.js';

/**
 * A file that is open for reading. Its descriptor outlives `close` for as long as somebody reads: the system gives the
 * number to the next file that is opened, and the reader would get that one's bytes.
 */
export class FileBacking implements Backing {
  readonly #fd: number;
  readonly #owned: boolean;
  #closed = false;
  /** reads under way, and places that have been handed out */
  #readers = 0;
  /** the run of data that was found last, as long as it is */
  #run: DataRun = { start: 0, end: 0 };

  private constructor(
    readonly name: string,
    { fd, owned = false }: DescriptorSource,
    /** size of the file in bytes when it was opened */
    readonly size: number,
  ) {
    this.#fd = fd;
    this.#owned = owned;
  }

  /** Opens a file or a block device. @throws VmcoreError READ */
  static open(path: string): FileBacking {
    try {
      const source = openToRead(path);
      try {
        if (!fstatSync(source.fd).isDirectory()) return new FileBacking(path, source, sizeOf(source.fd));
      } catch (error) {
        if (source.owned) closeRead(source.fd);
        throw error;
      }
      if (source.owned) closeRead(source.fd);
    } catch (error) {
      throw ioError('READ', `open ${path}`, error);
    }
    throw new VmcoreError('READ', `cannot open ${path}: is a directory`);
  }

  /** What is behind a descriptor, which is closed with the backing. @param name what to call it in messages */
  static ofDescriptor(fd: number, name: string): FileBacking {
    return new FileBacking(name, { fd, owned: true }, fstatSync(fd).size);
  }

  readSync(offset: number, into: Uint8Array): void {
    this.#checkOpen();
    for (let done = 0; done < into.length;) {
      const count = this.#attempt(offset + done, () =>
        readSync(this.#fd, into, done, into.length - done, offset + done),
      );
      done += this.#checkCount(count, offset + done, into.length - done);
    }
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    const { release } = this.#hold();
    try {
      for (let done = 0; done < into.length;) {
        const count = await this.#readSome(offset + done, into, done);
        done += this.#checkCount(count, offset + done, into.length - done);
      }
    } finally {
      release();
    }
  }

  /**
   * The file system walks to the end of a run to find it, so a run that many regions are parts of is looked for once. It
   * stays right when the file changes: what has become a hole is read, and is zeros.
   */
  nextData(offset: number, end: number): DataRun | null {
    this.#checkOpen();
    if (offset < this.#run.start || offset >= this.#run.end) {
      const run = seekData(this.#fd, offset, end);
      if (!run) {
        // What lies behind the end of a file that has shrunk looks like a hole.
        this.#checkEnd(end);
        return null;
      }
      this.#run = run;
    }
    return { start: Math.max(this.#run.start, offset), end: Math.min(this.#run.end, end) };
  }

  locate(offset: number): HeldPlace {
    return { fd: this.#fd, offset, ...this.#hold() };
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#readers === 0) this.#letGo();
  }

  /** Keeps the descriptor open until `release` is called; later calls of it do nothing. @throws VmcoreError READ */
  #hold(): { release(): void } {
    this.#checkOpen();
    this.#readers++;
    let held = true;
    const release = () => {
      if (!held) return;
      held = false;
      if (--this.#readers === 0 && this.#closed) this.#letGo();
    };
    return { release };
  }

  #letGo(): void {
    if (this.#owned) closeRead(this.#fd);
  }

  #checkOpen(): void {
    if (this.#closed) throw new VmcoreError('READ', `cannot read ${this.name}: it has been closed`);
  }

  #readSome(offset: number, into: Uint8Array, done: number): Promise<number> {
    return new Promise((resolve, reject) => {
      read(this.#fd, into, done, into.length - done, offset, (error, count) => {
        if (error) reject(ioError('READ', `read ${this.name} at byte ${offset}`, error));
        else resolve(count);
      });
    });
  }

  #attempt(offset: number, doing: () => number): number {
    try {
      return doing();
    } catch (error) {
      throw ioError('READ', `read ${this.name} at byte ${offset}`, error);
    }
  }

  #checkEnd(end: number): void {
    const size = sizeOf(this.#fd);
    if (size < end) this.#checkCount(0, size, end - size);
  }

  /** A read that returns nothing has met the end of the file: it was cut, or has shrunk since it was opened. */
  #checkCount(count: number, offset: number, wanted: number): number {
    if (count > 0) return count;
    // Reading runs ahead: what was read before the file shrank may lie behind its end by now.
    const end = Math.min(offset, sizeOf(this.#fd));
    throw new VmcoreError(
      'TRUNCATED',
      `${this.name} ends at byte ${end}, but ${offset + wanted - end} more bytes of memory belong there; the file is cut or has shrunk`,
    );
  }
}

/** Bytes of an open file or block device. */
function sizeOf(fd: number): number {
  const stat = fstatSync(fd);
  return stat.isBlockDevice() ? blockDeviceSize(fd) : stat.size;
}
