/**
 * Holes of sparse files, by lseek(2) with SEEK_DATA and SEEK_HOLE, which Node does not offer.
 *
 * `koffi`, an optional dependency, calls the C library. Without it, or on a system that has no SEEK_DATA, every byte
 * counts as data: slower, and as correct.
 */

import { createRequire } from 'node:module';
import type { DataRun } from '../physical-memory.js';

/** lseek(2) whence, Linux and FreeBSD */
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

type Lseek = (fd: number, offset: number, whence: number) => number;

function loadLseek(): Lseek | null {
  if (process.platform !== 'linux') return null;
  try {
    const koffi = createRequire(import.meta.url)('koffi') as {
      load(name: string | null): { func(prototype: string): Lseek };
    };
    return koffi.load(null).func('int64_t lseek64(int fd, int64_t offset, int whence)');
  } catch {
    return null;
  }
}

let lseek: Lseek | null | undefined;

/**
 * The first run of data of a file that ends behind `offset` and starts before `end`, clipped to both.
 * @returns null when there is none: all of it reads as zeros
 */
export function seekData(fd: number, offset: number, end: number): DataRun | null {
  lseek ??= loadLseek();
  if (!lseek) return { start: offset, end };
  const start = lseek(fd, offset, SEEK_DATA);
  if (start < 0) return seekFailed(lseek, fd, offset, end);
  if (start >= end) return null;
  const hole = lseek(fd, start, SEEK_HOLE);
  return { start, end: hole < 0 ? end : Math.min(hole, end) };
}

/** SEEK_DATA fails with ENXIO when only a hole is left, and with EINVAL where it is not supported. */
function seekFailed(seek: Lseek, fd: number, offset: number, end: number): DataRun | null {
  const supported = seek(fd, offset, SEEK_HOLE) >= 0;
  return supported ? null : { start: offset, end };
}
