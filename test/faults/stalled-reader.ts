/** A reader that reads a little and then no more: it dies after a while, or the user loses patience first. */

import { setTimeout as sleep } from 'node:timers/promises';
import { type Combination, combinations, isRead } from './axes.js';
import { DumpRun } from './dump-run.js';
import type { Lane } from './lane.js';
import type { Wanted } from './matrix.js';
import { differences, type Outcome, outcomeText } from './outcome.js';
import type { Row } from './row.js';

/** Seconds that a dump may take to end after the fault. */
const LIMIT = 2;

/** For how long the reader does not read before it dies, in milliseconds. */
const STALL = 3000;

/** When the reader reads no more, in bytes: with the first that come, and behind headers and tables. */
const STALLS_AT = [1, 2 ** 20, 1, 2 ** 20] as const;
const RUNS = STALLS_AT.length;

/** All dumps that somebody reads. */
export function stalledCombinations(): Combination[] {
  return combinations().filter(({ target }) => isRead(target));
}

const END = { dies: 'reader dies', 'Ctrl-C': 'reader stalls, Ctrl-C' } as const;

/** Both rows of a dump. */
export async function* stalledRows(lane: Lane, combination: Combination, wanted: Wanted): AsyncGenerator<Row> {
  for (const how of ['dies', 'Ctrl-C'] as const) {
    const expected = how === 'dies' ? 'fails' : 'code 130';
    const name = { ...combination, fault: END[how], which: `${RUNS} times` };
    if (!wanted.row(name)) continue;
    const outcomes: Outcome[] = [];
    for (const at of STALLS_AT) outcomes.push(await stalled(lane, combination, how, at, wanted.grace));
    const standard = {
      target: combination.target,
      expected: how === 'dies' ? 'fails' : 'either',
      signal: how === 'dies' ? undefined : 'SIGINT',
      whole: 'nothing',
      limit: LIMIT + wanted.grace,
    } as const;
    const wrong = outcomes.map((outcome) => [
      ...differences(outcome, standard),
      ...(how === 'Ctrl-C' && outcome.code !== null && outcome.code !== 130 ? [`exit code ${outcome.code}`] : []),
    ]);
    const hung = outcomes.filter(({ code }) => code === null).length;
    yield {
      ...{ ...name, expected },
      seen: hung > 0 ? `${hung} of ${RUNS} hang` : outcomeText(outcomes[0]!),
      differences: [...new Set(wrong.flat())],
    };
  }
}

async function stalled(
  lane: Lane,
  { format, target: targetName, source: sourceName }: Combination,
  how: keyof typeof END,
  stallsAt: number,
  grace: number,
): Promise<Outcome> {
  const source = await lane.open(sourceName);
  const target = lane.targets.open(targetName, { stallsAt });
  const run = new DumpRun([], source, target, ['-f', format]);
  await run.until(() => target.reader!.hasStalled);
  await sleep(how === 'dies' ? STALL : STALL / 6);
  if (how === 'dies') target.reader!.die();
  else run.signal('SIGINT');
  const fault = performance.now();
  const elapsed = () => (performance.now() - fault) / 1000;
  const ending = await run.ending(() => elapsed() > LIMIT + grace);
  const seconds = elapsed();
  target.reader!.die();
  await target.content();
  return { ...ending, content: 'nothing', leftovers: [], status: await source.status(), seconds };
}
