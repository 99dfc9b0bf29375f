/** The matrix proper: each dump, with each of its system calls failing, or a signal coming with it. */

import { mkdirSync, rmSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Combination, isKdump, isLive, isNamed, type SourceName } from './axes.js';
import { DumpRun } from './dump-run.js';
import {
  CALL_NAMES,
  type Call,
  type Counts,
  type Fault,
  faultsOf,
  isSignal,
  type Side,
  signalFaults,
} from './fault.js';
import type { Lane } from './lane.js';
import { differences, type Outcome, outcomeText } from './outcome.js';
import type { Row, RowName } from './row.js';
import type { OpenSource } from './sources.js';
import { countCalls, endTime, failing, faultTime, madeIn, watched } from './strace.js';
import type { Content, OpenTarget } from './targets.js';

/** Seconds that a dump may take to end after a fault, under strace. */
export const LIMIT = 5;

/** Seconds that a dump may take in all when no fault is met. */
const PATIENCE = 60;

/** Sources whose dumps are killed between any two writes; those of the others between a sample of them. */
const KILLED_ANYWHERE: readonly SourceName[] = ['memory', 'live-file'];

/** Which rows are wanted. */
export interface Wanted {
  /** whether to make a row */
  row(name: RowName): boolean;
  /** seconds beyond LIMIT that are granted on a machine that does other things */
  readonly grace: number;
}

/** How long strace may take to write what it has seen, and how often to look, in milliseconds. */
const LOG_PATIENCE = 10_000;
const LOG_STEP = 10;

/** What is known of a dump that nothing is done to. */
interface Untouched {
  readonly content: Content;
  readonly counts: Readonly<Record<Side, Counts>>;
  /** what it makes that gets its name when it is whole */
  readonly made: readonly string[];
}

/** All rows of a dump. */
export async function* faultRows(lane: Lane, combination: Combination, wanted: Wanted): AsyncGenerator<Row> {
  mkdirSync(lane.folder, { recursive: true });
  const { format, target, source } = combination;
  const dump = new TracedDump(lane, combination, wanted.grace);
  const name = { format, target, source };
  let untouched: Untouched;
  try {
    untouched = await dump.untouched();
  } catch (error) {
    yield {
      ...{ ...name, fault: 'none', which: '', expected: 'whole', seen: '' },
      differences: [(error as Error).message],
    };
    return;
  }
  let { renewals } = lane;
  const traits = {
    named: isNamed(target),
    readByThreads: isKdump(format),
    live: isLive(source),
    small: source === 'memory',
  };
  const faults = [
    ...faultsOf('source', untouched.counts.source, traits),
    ...faultsOf('target', untouched.counts.target, traits),
    ...(isNamed(target) ? signalFaults(untouched.counts.target, KILLED_ANYWHERE.includes(source)) : []),
  ];
  for (const fault of faults) {
    const row = { ...name, fault: `${fault.side} ${fault.call} ${fault.error}`, which: whichText(fault) };
    if (!wanted.row(row)) continue;
    // Another machine is dumped in other words.
    if (lane.renewals !== renewals) untouched = await dump.untouched();
    renewals = lane.renewals;
    yield { ...row, ...(await dump.faulty(fault, untouched)), expected: fault.expected };
  }
}

function whichText(fault: Fault): string {
  const { which, stays } = fault;
  if (isSignal(fault)) return which;
  return `${which}${stays ? ' on' : ', once'}`;
}

/** Where a dump comes from and goes to. */
interface Ends {
  readonly source: OpenSource;
  readonly target: OpenTarget;
}

class TracedDump {
  readonly #log: string;

  constructor(
    private readonly lane: Lane,
    private readonly combination: Combination,
    private readonly grace: number,
  ) {
    this.#log = lane.path('strace.log');
  }

  async untouched(): Promise<Untouched> {
    const ends = await this.#open();
    const outcome = await this.#run(ends, watched(this.#log));
    if (outcome.code !== 0) throw new Error(`nothing was done to it, and yet: ${outcomeText(outcome)}`);
    // What a dump makes in the folder of its target, it makes by the same name each time.
    const made = isNamed(this.combination.target) ? madeIn(this.#log, this.lane.targets.folder) : [];
    const countsOf = (side: Side) =>
      new Map(CALL_NAMES.map((call) => [call, countCalls(this.#log, call, this.#files(side, call, ends, made))]));
    return { content: outcome.content, counts: { source: countsOf('source'), target: countsOf('target') }, made };
  }

  async faulty(fault: Fault, { content, made }: Untouched): Promise<Pick<Row, 'seen' | 'differences'>> {
    const ends = await this.#open();
    const files = this.#files(fault.side, fault.call, ends, made);
    const outcome = await this.#run(ends, failing(this.#log, fault, files));
    const met = outcome.seconds !== null;
    const standard = {
      target: this.combination.target,
      expected: met ? fault.expected : 'whole',
      signal: isSignal(fault) ? fault.error : undefined,
      whole: content,
      limit: LIMIT + this.grace,
      untidy: fault.call === 'unlink' && fault.stays,
    } as const;
    return {
      seen: `${outcomeText(outcome)}${met || outcome.code === null ? '' : ' (the call did not come)'}`,
      differences: differences(outcome, standard),
    };
  }

  /** The files whose calls fail: of a target that gets its name in the end, what is written until then, and its name. */
  #files(side: Side, call: Call, { source, target }: Ends, made: readonly string[]): readonly string[] {
    if (side === 'source') return source.paths;
    if (made.length === 0) return target.paths;
    if (call === 'name' || call === 'unlink') return [...made, ...target.paths];
    return call === 'fsync' ? [...made, this.lane.targets.folder] : made;
  }

  async #open(): Promise<Ends> {
    const { source, target } = this.combination;
    return { source: await this.lane.open(source), target: this.lane.targets.open(target) };
  }

  async #run({ source, target }: Ends, tracer: readonly string[]): Promise<Outcome> {
    const { format } = this.combination;
    const options = ['-f', format, ...(isKdump(format) ? ['--threads', '1'] : [])];
    // Of the dump before.
    rmSync(this.#log, { force: true });
    const run = new DumpRun(tracer, source, target, options);
    const started = performance.now();
    const isOverdue = () => {
      if (performance.now() - started > 1000 * (PATIENCE + this.grace)) return true;
      const time = this.#logged(() => faultTime(this.#log));
      return time === null ? false : Date.now() / 1000 - time > LIMIT + this.grace;
    };
    const ending = await run.ending(isOverdue);
    const seconds = await this.#secondsAfterFault(run.pid);
    const content = await target.content();
    const leftovers = this.lane.targets.leftovers();
    const status = await source.status();
    if (ending.code === null) await this.lane.renew();
    return { ...ending, content, leftovers, status, seconds };
  }

  /** When the log is complete. */
  async #secondsAfterFault(pid: number): Promise<number | null> {
    const end = () => this.#logged(() => endTime(this.#log, pid));
    for (let waited = 0; end() === null && waited < LOG_PATIENCE; waited += LOG_STEP) await sleep(LOG_STEP);
    const start = this.#logged(() => faultTime(this.#log));
    return start === null ? null : Math.max(0, (end() ?? start) - start);
  }

  /** Before strace has started there is no log. */
  #logged<T>(read: () => T): T | null {
    try {
      return read();
    } catch {
      return null;
    }
  }
}
