/** A temporary file without a name: it is gone when it is closed, whatever happens to the process. */

import { randomBytes } from 'node:crypto';
import { openSync, unlinkSync } from 'node:fs';
import { join } from 'node:path';
import { ioError } from '../model/errors.js';
import { closeRead } from './close-read.js';
import { writeFully } from './write-fully.js';
import { FileBacking } from './file-backing.js';

/** Guest memory is as secret as the guest: for its owner's eyes only. */
const FILE_MODE = 0o600;

/** Bytes that are written once, and read again. */
export class SpoolFile {
  #open = true;

  private constructor(
    private readonly fd: number,
    /** what to call it in messages */
    readonly name: string,
  ) {}

  /** @param folder where it is, in a way @throws VmcoreError WRITE */
  static create(folder: string): SpoolFile {
    const path = join(folder, `vmcore-${randomBytes(8).toString('hex')}`);
    const name = `a temporary file in ${folder}`;
    try {
      const file = new SpoolFile(openSync(path, 'wx+', FILE_MODE), name);
      file.#attempt(() => unlinkSync(path));
      return file;
    } catch (error) {
      throw ioError('WRITE', `create ${name}`, error);
    }
  }

  /** Writes bytes at an offset. @throws VmcoreError WRITE */
  write(offset: number, bytes: Uint8Array): Promise<void> {
    return writeFully(this.fd, bytes, offset, this.name);
  }

  /** What has been written, to be read; it outlives this one. @throws VmcoreError READ */
  reopen(): FileBacking {
    try {
      return FileBacking.ofDescriptor(openSync(`/dev/fd/${this.fd}`, 'r'), this.name);
    } catch (error) {
      throw ioError('READ', `read ${this.name}`, error);
    }
  }

  /** Lets go of it; later calls do nothing. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    closeRead(this.fd);
  }

  #attempt(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.close();
      throw error;
    }
  }
}
