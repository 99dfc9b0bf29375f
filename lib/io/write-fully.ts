/**
 * write(2) until all is written: short writes go on, EAGAIN of a non-blocking pipe or socket waits.
 */

import { write } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { errnoOf, ioError } from '../model/errors.js';

/** Waits between attempts on a full non-blocking descriptor, in milliseconds: short first, for a reader that is quick. */
const SHORTEST_WAIT = 1;
const LONGEST_WAIT = 16;

function writeOnce(fd: number, data: Uint8Array, position: number | null): Promise<number> {
  return new Promise((resolve, reject) => {
    write(fd, data, 0, data.length, position, (error, count) => (error ? reject(error) : resolve(count)));
  });
}

/**
 * Writes all of `data`.
 * @param position file offset, or null to write where the descriptor stands (pipes, sockets, O_APPEND)
 * @param target   what to call the descriptor in messages
 * @param signal   ends the wait for a reader that does not read
 * @throws VmcoreError WRITE
 */
export async function writeFully(
  fd: number,
  data: Uint8Array,
  position: number | null,
  target: string,
  signal?: AbortSignal,
): Promise<void> {
  let wait = SHORTEST_WAIT;
  for (let done = 0; done < data.length;) {
    try {
      done += await writeOnce(fd, data.subarray(done), position === null ? null : position + done);
      wait = SHORTEST_WAIT;
    } catch (error) {
      if (errnoOf(error) !== 'EAGAIN') throw ioError('WRITE', `write ${target}`, error);
      await sleep(wait, undefined, signal ? { signal } : {});
      wait = Math.min(2 * wait, LONGEST_WAIT);
    }
  }
}
