/**
 * Holes of sparse files, by lseek(2) with SEEK_DATA and SEEK_HOLE. Where they are not to be had, every byte counts as
 * data: slower, and as correct.
 */

import { type Libc, libc } from './libc.js';
import type { DataRun } from '../model/physical-memory.js';

/** lseek(2) whence, Linux */
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

/**
 * The first run of data of a file that ends behind `offset` and starts before `end`, from `offset` on. It may go on
 * behind `end`: whoever asks for the next part of it need not look again.
 * @returns null when there is none: all of it reads as zeros
 */
export function seekData(fd: number, offset: number, end: number): DataRun | null {
  const c = libc();
  if (!c) return { start: offset, end };
  const start = c.lseek(fd, offset, SEEK_DATA);
  if (start < 0) return seekFailed(c, fd, offset, end);
  if (start >= end) return null;
  const hole = c.lseek(fd, start, SEEK_HOLE);
  return { start, end: hole < 0 ? end : hole };
}

/** SEEK_DATA fails with ENXIO when only a hole is left, and with EINVAL where it is not supported. */
function seekFailed(c: Libc, fd: number, offset: number, end: number): DataRun | null {
  return c.lseek(fd, offset, SEEK_HOLE) >= 0 ? null : { start: offset, end };
}
