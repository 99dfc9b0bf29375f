/**
 * Files that describe a guest (JSON, registers, VMCOREINFO) are small. They are read whole, but never without a bound:
 * a path given by mistake may be the guest's memory, or /dev/zero.
 */

import { fstatSync } from 'node:fs';
import { ioError, VmcoreError } from '../model/errors.js';
import { formatSize } from '../model/sizes.js';
import { type ByteInput, openByteInput } from './byte-input.js';
import { openToRead } from './open-to-read.js';

/** What no text that describes a guest comes near: 8192 CPUs of `info registers -a` are 20 MB. */
export const SMALL_FILE_LIMIT = 64 << 20;

const READ_BYTES = 64 << 10;

/**
 * The bytes of a small file. A FIFO is one, too (`<(command)` of a shell); its writer is waited for.
 * @param what  what the file should be, for messages: `a guest description`
 * @param limit most bytes that it may have
 * @throws VmcoreError READ, or BAD_INPUT when it is larger than `limit`
 */
export async function readSmallFile(path: string, what: string, limit: number = SMALL_FILE_LIMIT): Promise<Buffer> {
  const input = open(path);
  try {
    return await readBounded(input, path, what, limit);
  } finally {
    input.close();
  }
}

function open(path: string): ByteInput {
  try {
    const source = openToRead(path);
    if (!fstatSync(source.fd).isDirectory()) return openByteInput(source, path);
    openByteInput(source, path).close();
  } catch (error) {
    throw ioError('READ', `read ${path}`, error);
  }
  throw new VmcoreError('READ', `cannot read ${path}: is a directory`);
}

/** Reads until the end and does not ask for the size: a FIFO has none. */
async function readBounded(input: ByteInput, path: string, what: string, limit: number): Promise<Buffer> {
  const parts: Buffer[] = [];
  for (let total = 0; ;) {
    const part = Buffer.allocUnsafe(READ_BYTES);
    const count = await input.readSome(part);
    if (count === 0) return Buffer.concat(parts, total);
    parts.push(part.subarray(0, count));
    total += count;
    if (total > limit) throw new VmcoreError('BAD_INPUT', `${path}: ${what} is at most ${formatSize(limit)}`);
  }
}
