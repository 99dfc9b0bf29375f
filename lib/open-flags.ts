/** How a descriptor was opened. */

import { constants, readFileSync } from 'node:fs';

/** The bits of open(2)'s flags that say whether a descriptor is for reading, for writing or for both. */
export const ACCESS_MODE = constants.O_RDONLY | constants.O_WRONLY | constants.O_RDWR;

/** Flags that a descriptor was opened with (fcntl(F_GETFL) by way of /proc); 0 where nobody can tell. */
export function openFlags(fd: number): number {
  try {
    const flags = /^flags:\s*([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))?.[1] ?? '0';
    return Number.parseInt(flags, 8);
  } catch {
    return 0;
  }
}
