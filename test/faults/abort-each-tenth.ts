/**
 * Aborts dumps of the library at every tenth, in a process of its own: a dump that does not end takes nothing else along.
 * Prints a line for each difference. Arguments: source, memory path of a live machine or '-', format, file, seconds.
 */

import { closeSync, existsSync, openSync, readdirSync, rmSync } from 'node:fs';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type DumpTarget, dump } from '../../lib/dump.js';
import { VmcoreError } from '../../lib/model/errors.js';
import type { Guest } from '../../lib/model/guest.js';
import type { Format } from '../../lib/request.js';
import { openGuest, openStream } from '../../lib/open-guest.js';
import type { MemoryPath } from '../../lib/live/qemu/options.js';
import { heldBeyond, processState } from './process-state.js';

const [source, memoryPath, format, kind, file, limit] = process.argv.slice(2) as [
  string,
  string,
  Format,
  'file' | 'fd',
  string,
  string,
];

const TENTHS = 10;

function open(): Promise<Guest> {
  // A vmcore that comes as a stream, whatever it is a stream of.
  if (memoryPath === 'stream') return openStream({ fd: openSync(source, 'r'), owned: true }, source);
  return openGuest(source, memoryPath === '-' ? {} : { memoryPath: memoryPath as MemoryPath });
}

/** Aborts a dump when it has come so far. @returns what is not right */
async function abortAt(tenth: number, target: DumpTarget): Promise<string[]> {
  const guest = await open();
  const job = dump(guest, { format }, target);
  let aborted = 0;
  const abort = () => {
    aborted ||= performance.now();
    job.abort();
  };
  job.on('progress', ({ completed, total }) => {
    if (completed >= (total * tenth) / TENTHS) abort();
  });
  if (tenth === 0) abort();
  const ended = job.finished.then(
    () => null,
    (error: unknown) => error,
  );
  const isOverdue = async () => {
    while (aborted === 0 || performance.now() - aborted < 1000 * Number(limit))
      await sleep(20, undefined, { ref: false });
    return 'overdue';
  };
  const outcome = await Promise.race([ended, isOverdue()]);
  if (outcome === 'overdue') {
    console.log(`at ${tenth}/${TENTHS}: does not end`);
    await guest.live?.release();
    process.exit(1);
  }
  await guest.live?.release();
  guest.close();
  // What is aborted when all has been taken may be done.
  const isRight = outcome instanceof VmcoreError ? outcome.code === 'ABORTED' : outcome === null && tenth === TENTHS;
  const left = readdirSync(dirname(file)).filter((name) => !file.endsWith(`/${name}`));
  return [
    ...(isRight ? [] : [outcome === null ? 'does not fail' : `fails with ${String(outcome)}`]),
    ...(kind === 'file' && outcome !== null && existsSync(file) ? ['half a vmcore is left'] : []),
    ...(left.length > 0 ? [`left behind: ${left.join(', ')}`] : []),
  ];
}

async function once(tenth: number): Promise<string[]> {
  if (kind === 'file') return abortAt(tenth, { file });
  const fd = openSync(file, 'w');
  try {
    return await abortAt(tenth, { fd });
  } finally {
    closeSync(fd);
  }
}

/** The first dump starts threads of Node's that stay. */
await once(TENTHS / 2);
rmSync(file, { force: true });
const before = processState('self');
for (let tenth = 0; tenth <= TENTHS; tenth++) {
  const differences = [...(await once(tenth)), ...(await heldBeyond('self', before))];
  for (const difference of differences) console.log(`at ${tenth}/${TENTHS}: ${difference}`);
  rmSync(file, { force: true });
}
