/** strace: the command line that makes a fault, and what its log says. */

import { readFileSync } from 'node:fs';
import { CALL_NAMES, type Call, type Fault, isSignal, systemCalls } from './fault.js';

/** It is no parent of what it traces: signals for that, and its end, are its own. */
const STRACE = ['strace', '-D', '-f', '-q', '-ttt'] as const;

/** Only what is traced stops: a dump takes a fraction of the time. But strace 6.1 then sends no signal with a later call. */
const ONLY_TRACED = '--seccomp-bpf';

/**
 * The words in front of a command that have its calls written down, and the names of the files that they are for.
 * @param log where strace writes
 */
export function watched(log: string): string[] {
  return [...STRACE, '-y', ONLY_TRACED, '-o', log, '-e', `trace=${CALL_NAMES.flatMap(systemCalls).join(',')}`, '--'];
}

/**
 * The words in front of a command that have one of its calls fail.
 * @param paths the files whose calls count; `pipe:[N]` for what has no name
 */
export function failing(log: string, fault: Fault, paths: readonly string[]): string[] {
  return [
    ...STRACE,
    ...(isSignal(fault) ? [] : [ONLY_TRACED]),
    ...['-o', log, '-e', `trace=${systemCalls(fault.call).join(',')}`, '-e', 'signal=all'],
    ...paths.flatMap((path) => ['-P', path]),
    ...['-e', injection(fault), '--'],
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

/**
 * How often the busiest thread makes a call for one of some files.
 * @param log of a command that was watched
 */
export function countCalls(log: string, call: Call, paths: readonly string[]): number {
  const names = paths.flatMap((path) => [`"${path}"`, `<${path}>`]);
  const byThread = new Map<string, number>();
  for (const { thread, text } of linesOf(log)) {
    const isOne = systemCalls(call).includes(/^(\w+)\(/.exec(text)?.[1] ?? '');
    if (isOne && names.some((name) => text.includes(name))) byThread.set(thread, (byThread.get(thread) ?? 0) + 1);
  }
  return Math.max(0, ...byThread.values());
}

/** The files that were made in a folder. */
export function madeIn(log: string, folder: string): string[] {
  const made = linesOf(log).filter(({ text }) => text.includes('O_CREAT'));
  const paths = made.flatMap(({ text }) => /^open(?:at)?\([^"]*"([^"]+)"/.exec(text)?.[1] ?? []);
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
