/**
 * Files that describe a guest (JSON, registers, VMCOREINFO) are small. They are read whole, but never without a bound:
 * a path given by mistake may be the guest's memory, or /dev/zero.
 */

import { closeSync, openSync, readSync } from 'node:fs';
import { ioError, VmcoreError } from '../errors.js';
import { formatSize } from '../sizes.js';

/** What no text that describes a guest comes near: 8192 CPUs of `info registers -a` are 20 MB. */
export const SMALL_FILE_LIMIT = 64 << 20;

const READ_BYTES = 64 << 10;

/**
 * The bytes of a small file.
 * @param what  what the file should be, for messages: `a guest description`
 * @param limit most bytes that it may have
 * @throws VmcoreError READ, or BAD_INPUT when it is larger than `limit`
 */
export function readSmallFile(path: string, what: string, limit: number = SMALL_FILE_LIMIT): Buffer {
  try {
    return readBounded(path, what, limit);
  } catch (error) {
    throw ioError('READ', `read ${path}`, error);
  }
}

/** Reads until the end and does not ask for the size: a FIFO (`<(command)` of a shell) has none. */
function readBounded(path: string, what: string, limit: number): Buffer {
  const fd = openSync(path, 'r');
  try {
    const parts: Buffer[] = [];
    for (let total = 0; ;) {
      const part = Buffer.allocUnsafe(READ_BYTES);
      const count = readSync(fd, part, 0, part.length, null);
      if (count === 0) return Buffer.concat(parts, total);
      parts.push(part.subarray(0, count));
      total += count;
      if (total > limit) throw new VmcoreError('BAD_INPUT', `${path}: ${what} is at most ${formatSize(limit)}`);
    }
  } finally {
    closeSync(fd);
  }
}
