/** Has a live machine run on when its memory has been read, and says so where that does not work. */

import { messageOf, VmcoreError } from './model/errors.js';
import type { Guest } from './model/guest.js';

/**
 * Has a live machine run on after what was to be made of it.
 * @param output what was made, for the message
 * @throws VmcoreError RESUME when that does not work; what was made is whole
 */
export async function resumeAfter({ live }: Guest, output: string): Promise<void> {
  try {
    await live?.release();
  } catch (error) {
    throw new VmcoreError('RESUME', `${output} is written and whole, but ${messageOf(error)}`, { cause: error });
  }
}

/**
 * Has a live machine run on after a failure.
 * @param warn is told what of an interruption would not be shown
 * @returns the failure, with what went wrong now
 */
export async function resumeAfterFailure(
  { live }: Guest,
  failure: unknown,
  warn: (text: string) => void,
): Promise<unknown> {
  try {
    await live?.release();
    return failure;
  } catch (error) {
    // Where the failure is that the machine does not run on, all is said.
    if (!(failure instanceof VmcoreError) || failure.cause === error) return failure;
    if (failure.code === 'ABORTED') warn(messageOf(error));
    return new VmcoreError(failure.code, `${failure.message}; and ${messageOf(error)}`, { cause: failure });
  }
}
