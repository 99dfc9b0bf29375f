/**
 * Closes what was read. What close(2) may say matters for what was written only, and Linux has let go of the descriptor
 * all the same: whoever lets go of one thing after the other must not end with the first.
 */

import { closeSync } from 'node:fs';
import { errnoOf } from '../model/errors.js';

/** Closes a descriptor that nothing was written to, or nothing that is needed any more. */
export function closeRead(fd: number): void {
  try {
    closeSync(fd);
  } catch (error) {
    // One that is not open is a mistake of ours.
    if (errnoOf(error) === 'EBADF') throw error;
  }
}
