/** Memory that a process holds, when garbage has been collected. */

import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

/** What is freed by another thread takes a moment. */
const MOMENT = 10;

export interface HeldMemory {
  /** bytes of buffers, shared ones too */
  readonly buffers: number;
  /** addresses that are taken, in bytes: V8 reserves gigabytes for each memory of WebAssembly, and counts them nowhere */
  readonly addresses: number;
}

/** What the process holds now. */
export async function heldMemory(): Promise<HeldMemory> {
  // What garbage refers to weakly goes with the next collection.
  for (let i = 0; i < 2; i++) {
    collect();
    await sleep(MOMENT);
  }
  const status = readFileSync('/proc/self/status', 'latin1');
  return {
    buffers: process.memoryUsage().arrayBuffers,
    addresses: 1024 * Number(/^VmSize:\s+(\d+) kB$/m.exec(status)![1]),
  };
}
