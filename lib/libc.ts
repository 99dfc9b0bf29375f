/**
 * The C library calls that Node does not offer, through `koffi`, an optional dependency with prebuilt binaries.
 * Without it, or on another system than Linux, there are none of them, and callers do without.
 */

import { createRequire } from 'node:module';

/** What we call; numbers stand for `int`, `off_t` and `mode_t`, negative results for failure. */
export interface Libc {
  /** lseek(2) */
  lseek(fd: number, offset: number, whence: number): number;
  /** fallocate(2) */
  fallocate(fd: number, mode: number, offset: number, length: number): number;
}

interface Koffi {
  load(name: string | null): { func(prototype: string): (...args: number[]) => number };
}

let loaded: Libc | null | undefined;

/** The C library, or null where it cannot be had. */
export function libc(): Libc | null {
  loaded ??= load();
  return loaded;
}

function load(): Libc | null {
  if (process.platform !== 'linux') return null;
  try {
    const self = (createRequire(import.meta.url)('koffi') as Koffi).load(null);
    return {
      lseek: self.func('int64_t lseek64(int fd, int64_t offset, int whence)'),
      fallocate: self.func('int fallocate64(int fd, int mode, int64_t offset, int64_t length)'),
    };
  } catch {
    return null;
  }
}
