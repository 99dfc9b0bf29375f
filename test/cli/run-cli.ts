/** Runs the command line as a user does, and says how it ended. */

import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, rmSync, symlinkSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Test } from 'tap';
import { makeShortFolder } from '../short-folder.js';

/** The command line as `npm run build` made it. */
export const CLI = fileURLToPath(new URL('../../cli/cli.js', import.meta.url));

export interface CliResult {
  /** as a shell has it: 128 + the signal's number for a process that a signal ended */
  readonly code: number;
  readonly stdout: Buffer;
  readonly stderr: string;
}

export interface RunningCli {
  readonly child: ChildProcess;
  /** settles when the process has ended and its output has been read */
  readonly ended: Promise<CliResult>;
}

/**
 * tap has every process of Node's load modules of its own, by NODE_OPTIONS: that takes a second, and they handle
 * signals. `env` hands the process over, so signals go where they should.
 */
const COMMAND = ['env', '-u', 'NODE_OPTIONS', process.execPath, CLI] as const;

/**
 * How a process ended, as a shell has it. A process that handles a signal exits with such a code, or by the signal itself
 * where a thread of it would not end: both are the same to its caller.
 */
export function shellStatus(code: number | null, signal: NodeJS.Signals | null): number {
  return code ?? 128 + constants.signals[signal!];
}

/** Starts `vmcore`; stdin is empty, stdout and stderr are collected unless `stdio` says otherwise. */
export function startCli(args: readonly string[], options: SpawnOptions = {}): RunningCli {
  const [env, ...rest] = COMMAND;
  return collect(spawn(env, [...rest, ...args], { stdio: ['ignore', 'pipe', 'pipe'], ...options }));
}

/** Runs `vmcore`. */
export function runCli(args: readonly string[], options?: SpawnOptions): Promise<CliResult> {
  return startCli(args, options).ended;
}

/** How long a shell script may take, and what it has left in the background when it has ended; in milliseconds. */
const SCRIPT_PATIENCE = 240_000;
const BACKGROUND_PATIENCE = 10_000;

/**
 * Runs a shell script in which `$vmcore` is the command. What the script starts ends with it: a `cat` into a FIFO waits
 * for ever for a reader that could not be started.
 */
export function runShell(script: string, cwd: string): Promise<CliResult> {
  const folder = makeShortFolder();
  const env = { ...process.env, vmcore: commandInWords(folder) };
  // Its own process group.
  const bounds = { detached: true, timeout: SCRIPT_PATIENCE };
  const { child, ended } = collect(
    spawn('bash', ['-c', script], { cwd, env, stdio: ['ignore', 'pipe', 'pipe'], ...bounds }),
  );
  const killAll = () => killGroup(child.pid!);
  child.once('exit', () => {
    const timeout = setTimeout(killAll, BACKGROUND_PATIENCE);
    child.once('close', () => clearTimeout(timeout));
  });
  process.once('exit', killAll);
  return ended.finally(() => {
    process.off('exit', killAll);
    rmSync(folder, { recursive: true });
  });
}

/** A word as a shell reads it, whatever is in it. */
export function quoted(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}

/** The command by links of plain names: a shell makes words of `$vmcore`, and the paths may have spaces in them. */
function commandInWords(folder: string): string {
  const names = { [process.execPath]: 'node', [CLI]: 'cli.js' };
  return COMMAND.map((word) => {
    const name = names[word];
    if (name === undefined) return word;
    symlinkSync(word, join(folder, name));
    return join(folder, name);
  }).join(' ');
}

function killGroup(leader: number): void {
  try {
    process.kill(-leader, 'SIGKILL');
  } catch {
    // All of it has ended.
  }
}

function collect(child: ChildProcess): RunningCli {
  const stdout: Buffer[] = [];
  const stderr: Buffer[] = [];
  child.stdout?.on('data', (data: Buffer) => stdout.push(data));
  child.stderr?.on('data', (data: Buffer) => stderr.push(data));
  const ended = once(child, 'close').then(([code, signal]) => ({
    code: shellStatus(code as number | null, signal as NodeJS.Signals | null),
    stdout: Buffer.concat(stdout),
    stderr: Buffer.concat(stderr).toString(),
  }));
  return { child, ended };
}

/** Checks that a run failed as the contract has it: its exit code, nothing on stdout, one line on stderr. */
export function checkFailure(t: Test, result: CliResult, code: number, message: RegExp, title: string): void {
  t.equal(result.code, code, `${title}: exit code`);
  t.equal(result.stdout.length, 0, `${title}: nothing on stdout`);
  t.match(result.stderr, /^vmcore: [^\n]+\n$/, `${title}: one line`);
  t.match(result.stderr, message, `${title}: the message`);
}

/** Waits for a condition that another process brings about. */
export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await sleep(10);
}

/** Whether a file of a folder is being written. */
export function hasPartial(folder: string): boolean {
  return readdirSync(folder).some((name) => name.endsWith('.partial'));
}

/** Does something for each item, some at a time: most of a short run is waiting for the process to start. */
export async function eachOf<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  const rest = [...items];
  const worker = async () => {
    for (let item = rest.shift(); item !== undefined; item = rest.shift()) await work(item);
  };
  await Promise.all([worker(), worker(), worker()]);
}
