/** How a descriptor was opened. */

import { constants, readFileSync } from 'node:fs';

/** The bits of open(2)'s flags that say whether a descriptor is for reading, for writing or for both. */
export const ACCESS_MODE = constants.O_RDONLY | constants.O_WRONLY | constants.O_RDWR;

/** Flags that a descriptor was opened with (fcntl(F_GETFL) by way of /proc); 0 where nobody can tell. */
export function openFlags(fd: number): number {
  return Number.parseInt(descriptorInfo(fd, 'flags') ?? '0', 8);
}

/** A number of what the kernel tells of a descriptor (/proc/self/fdinfo), as it is written; null where it does not. */
export function descriptorInfo(fd: number, name: 'flags' | 'mnt_id'): string | null {
  try {
    const lines = readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1').split('\n');
    const line = lines.find((text) => text.startsWith(`${name}:`));
    return line?.slice(name.length + 1).trim() ?? null;
  } catch {
    return null;
  }
}
