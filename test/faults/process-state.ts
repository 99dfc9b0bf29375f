/** What a process holds: threads, descriptors. */

import { readdirSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

/** How long a thread may take to be gone when it has ended, and how often to look, in milliseconds. */
const PATIENCE = 1000;
const STEP = 20;

export interface ProcessState {
  readonly threads: number;
  readonly descriptors: number;
}

/** What a process holds now. @param pid `self`, or its number */
export function processState(pid: number | 'self'): ProcessState {
  // To read a folder takes a descriptor.
  const own = pid === 'self' ? 1 : 0;
  return {
    threads: readdirSync(`/proc/${pid}/task`).length,
    descriptors: readdirSync(`/proc/${pid}/fd`).length - own,
  };
}

/** What a process holds beyond what it held, when it has had a moment to let go; nothing when there is nothing. */
export async function heldBeyond(pid: number | 'self', before: ProcessState): Promise<string[]> {
  for (let waited = 0; ; waited += STEP) {
    const { threads, descriptors } = processState(pid);
    if (threads <= before.threads && descriptors <= before.descriptors) return [];
    if (waited >= PATIENCE)
      return [
        ...(threads > before.threads ? [`${threads - before.threads} threads are left`] : []),
        ...(descriptors > before.descriptors ? [`${descriptors - before.descriptors} descriptors are left`] : []),
      ];
    await sleep(STEP);
  }
}
