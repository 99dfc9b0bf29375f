/** A disk that is full: a tmpfs of 8 MiB. */

import { execFileSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { combinations, type Combination, isNamed } from './axes.js';
import { DumpRun } from './dump-run.js';
import type { Lane } from './lane.js';
import type { Wanted } from './matrix.js';
import { differences, errorLines, type Outcome, outcomeText } from './outcome.js';
import type { Row } from './row.js';
import { contentOf, TargetFolder } from './targets.js';

/** Seconds that a dump may take to end after it has said what is wrong; and in all. */
const LIMIT = 2;
const PATIENCE = 30;

const DISK = '8M';

/** How often each of the dumps; of the one that users met, as often as has been asked for. */
const RUNS = 5;
const DEMO_RUNS = 200;

/** All dumps that make a file. */
export function diskCombinations(): Combination[] {
  return combinations().filter(({ target }) => isNamed(target) || target === 'fd');
}

/** The row of a dump onto a full disk. */
export async function* diskRows(lane: Lane, combination: Combination, wanted: Wanted): AsyncGenerator<Row> {
  const name = { ...combination, fault: 'disk full', which: `${RUNS} times` };
  if (wanted.row(name)) yield* onDisk(lane, name, combination, RUNS, wanted);
}

/** The row of the demo guest. */
export async function* demoRows(lane: Lane, wanted: Wanted, runs = DEMO_RUNS): AsyncGenerator<Row> {
  const dump = { format: 'kdump-raw-lzo', target: 'file' } as const;
  const name = { ...dump, source: 'demo', fault: 'disk full', which: `${runs} times` };
  if (wanted.row(name)) yield* onDisk(lane, name, { ...dump, source: 'demo' }, runs, wanted);
}

type DiskDump = Pick<Combination, 'format' | 'target'> & { readonly source: Combination['source'] | 'demo' };

async function* onDisk(
  lane: Lane,
  name: Omit<Row, 'expected' | 'seen' | 'differences'>,
  dump: DiskDump,
  runs: number,
  { grace }: Wanted,
): AsyncGenerator<Row> {
  const disk = lane.path('disk');
  mkdirSync(disk, { recursive: true });
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${DISK}`, 'tmpfs', disk]);
  try {
    const outcomes: Outcome[] = [];
    const targets = new TargetFolder(`${disk}/out`);
    for (let run = 0; run < runs; run++) outcomes.push(await once(lane, targets, dump, grace));
    const standard = { target: dump.target, expected: 'fails', whole: 'nothing', limit: LIMIT + grace } as const;
    const hung = outcomes.filter(({ code }) => code === null).length;
    yield {
      ...{ ...name, expected: 'fails' },
      seen: hung > 0 ? `${hung} of ${runs} hang` : outcomeText(outcomes[0]!),
      differences: [...new Set(outcomes.flatMap((outcome) => differences(outcome, standard)))],
    };
  } finally {
    execFileSync('umount', [disk]);
  }
}

async function once(
  lane: Lane,
  targets: TargetFolder,
  { format, target: targetName, source: sourceName }: DiskDump,
  grace: number,
): Promise<Outcome> {
  const source = sourceName === 'demo' ? lane.files.demo() : await lane.open(sourceName);
  const target = targets.open(targetName);
  const run = new DumpRun([], source, target, ['-f', format]);
  const started = performance.now();
  const elapsed = (since: number) => (performance.now() - since) / 1000;
  let said: number | null = null;
  const ending = await run.ending(() => {
    if (said === null && errorLines(run.stderr).length > 0) said = performance.now();
    return said === null ? elapsed(started) > PATIENCE + grace : elapsed(said) > LIMIT + grace;
  });
  return {
    ...ending,
    content: contentOf(targets.path),
    leftovers: targets.leftovers(),
    status: await source.status(),
    seconds: said === null ? null : elapsed(said),
  };
}
