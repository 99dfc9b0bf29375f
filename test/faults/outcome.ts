/** What came of a dump that something was done to, and whether that is right. */

import type { TargetName } from './axes.js';
import type { Expected } from './fault.js';
import type { Ending } from './dump-run.js';
import { type Content, contentWithout } from './targets.js';

/** Exit codes. */
const DONE = 0;
const FAILED = 1;
const INTERRUPTED = 130;
const KILLED = 137;

/** What can be seen of a dump that has ended. */
export interface Outcome extends Ending {
  readonly content: Content;
  /** names of files that should not be there */
  readonly leftovers: readonly string[];
  /** the run state of a machine that runs */
  readonly status: string | null;
  /** between the fault and the end; null where there was no fault */
  readonly seconds: number | null;
}

/** What should be seen of it. */
export interface Standard {
  readonly target: TargetName;
  readonly expected: Expected;
  /** the signal that came, if one came */
  readonly signal?: string | undefined;
  /** whether no file can be removed */
  readonly untidy?: boolean | undefined;
  /** what the vmcore is like when nothing is done to the dump */
  readonly whole: Content;
  /** seconds that a dump may take to end after the fault */
  readonly limit: number;
}

/** What is not a warning. */
export function errorLines(stderr: string): string[] {
  return stderr.split('\n').filter((line) => line !== '' && !line.startsWith('vmcore: warning:'));
}

/** What is not right; nothing when all is. */
export function differences(outcome: Outcome, standard: Standard): string[] {
  const { code, seconds, status } = outcome;
  return [
    ...(code === null ? ['does not end'] : codeDifferences(code, outcome, standard)),
    ...(code !== null && seconds !== null && seconds > standard.limit ? [`ended after ${seconds.toFixed(1)} s`] : []),
    ...contentDifferences(outcome, standard),
    ...(status === null || status === 'running' ? [] : [`the guest is ${status}`]),
  ];
}

function codeDifferences(code: number, { stderr }: Outcome, { signal, expected }: Standard): string[] {
  if (code === KILLED && signal === 'SIGKILL') return [];
  if (code === DONE) return expected === 'fails' ? ['does not fail'] : [];
  if (code === INTERRUPTED && signal === 'SIGINT') return errorLines(stderr).length > 1 ? ['more than one line'] : [];
  if (code !== FAILED) return [`exit code ${code}`];
  const lines = errorLines(stderr);
  return [
    ...(expected === 'whole' ? ['fails'] : []),
    ...(lines.length === 1 && lines[0]!.startsWith('vmcore: ') ? [] : [`${lines.length} lines on stderr`]),
  ];
}

function contentDifferences(outcome: Outcome, { target, signal, whole, untidy }: Standard): string[] {
  const { code, content, leftovers } = outcome;
  const without = contentWithout(target);
  const isWhole = content === whole;
  return [
    ...(code === DONE && !isWhole ? ['the vmcore is not whole'] : []),
    ...(code !== DONE && without !== undefined && content !== without && !isWhole ? ['half a vmcore is left'] : []),
    // Nobody can tidy up who has been killed, or cannot remove a file.
    ...(signal === 'SIGKILL' || untidy || leftovers.length === 0 ? [] : [`left behind: ${leftovers.join(', ')}`]),
  ];
}

/** An outcome in a few words. */
export function outcomeText({ code, seconds, stderr }: Outcome): string {
  const end = code === null ? 'hangs' : `code ${code}`;
  const time = seconds === null ? '' : `, ${seconds.toFixed(1)} s`;
  const line = errorLines(stderr)[0];
  return `${end}${time}${code === DONE || line === undefined ? '' : `, ${line.replace(/^vmcore: /, '')}`}`;
}
