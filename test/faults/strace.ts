/** strace: the command line that makes a fault, and what its log says. */

import { readFileSync } from 'node:fs';
import { CALL_NAMES, type Call, callOf, type Counts, type Fault, isSignal, systemCalls } from './fault.js';

/** It is no parent of what it traces: signals for that, and its end, are its own. */
const STRACE = ['strace', '-D', '-f', '-q', '-ttt'] as const;

/** Only what is traced stops: a dump takes a fraction of the time. But strace 6.1 then sends no signal with a later call. */
const ONLY_TRACED = '--seccomp-bpf';

/**
 * The words in front of a command that have it traced.
 * @param log   where strace writes
 * @param paths the files whose calls count; `pipe:[N]` for what has no name. All files when there are none
 * @param fault what goes wrong; nothing when absent
 */
export function strace(log: string, paths: readonly string[], fault?: Fault): string[] {
  const calls = fault ? systemCalls(fault.call) : CALL_NAMES.flatMap(systemCalls);
  return [
    ...STRACE,
    ...(fault && isSignal(fault) ? [] : [ONLY_TRACED]),
    ...['-o', log, '-e', `trace=${calls.join(',')}`, '-e', 'signal=all'],
    ...paths.flatMap((path) => ['-P', path]),
    ...(fault ? ['-e', injection(fault)] : []),
    '--',
  ];
}

function injection(fault: Fault): string {
  const { call, error, when, stays } = fault;
  const what = `${isSignal(fault) ? 'signal' : 'error'}=${error}`;
  return `inject=${systemCalls(call).join(',')}:${what}:when=${when}${stays ? '+' : ''}`;
}

/** `12345 1795691011.626934 pwrite64(19, "…` or `… <... pwrite64 resumed>) = 5`. */
const LINE = /^(\d+) +(\d+\.\d+) (.*)$/;
const FAULT_MADE = /\(INJECTED|^--- SIGINT|^\+\+\+ killed by SIGKILL/;
const ENDED = /^\+\+\+ /;

interface LogLine {
  readonly thread: string;
  /** seconds */
  readonly time: number;
  readonly text: string;
}

function linesOf(log: string): LogLine[] {
  return readFileSync(log, 'latin1')
    .split('\n')
    .flatMap((line) => {
      const [, thread, time, text] = LINE.exec(line) ?? [];
      return text === undefined ? [] : [{ thread: thread!, time: Number(time), text }];
    });
}

/** How often the busiest thread makes each call. */
export function countCalls(log: string): Counts {
  const byThread = new Map<string, number>();
  for (const { thread, text } of linesOf(log)) {
    const call = callOf(/^(\w+)\(/.exec(text)?.[1] ?? '');
    if (call) byThread.set(`${thread} ${call}`, (byThread.get(`${thread} ${call}`) ?? 0) + 1);
  }
  const counts = new Map<Call, number>();
  for (const [key, count] of byThread) {
    const call = key.split(' ')[1] as Call;
    counts.set(call, Math.max(counts.get(call) ?? 0, count));
  }
  return counts;
}

/** The files that were opened below a folder. */
export function openedIn(log: string, folder: string): string[] {
  const paths = linesOf(log).flatMap(({ text }) => /^open(?:at)?\((?:AT_FDCWD, )?"([^"]+)"/.exec(text)?.[1] ?? []);
  return [...new Set(paths.filter((path) => path.startsWith(`${folder}/`)))];
}

/** When the fault was made; null when it was not. */
export function faultTime(log: string): number | null {
  return linesOf(log).find(({ text }) => FAULT_MADE.test(text))?.time ?? null;
}

/** When a process ended; null when it has not. */
export function endTime(log: string, pid: number): number | null {
  return linesOf(log).findLast(({ thread, text }) => thread === `${pid}` && ENDED.test(text))?.time ?? null;
}
