/** Runs a command and measures it: wall clock, CPU time, peak memory. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';

/** What a run took. */
export interface Measurement {
  /** wall-clock seconds */
  readonly seconds: number;
  /** CPU seconds, user and system, of all threads */
  readonly cpu: number;
  /** peak resident set in MiB */
  readonly peakMiB: number;
}

/** The environment without what it has Node load at its start (certificates, modules): that is no part of a dump. */
function plainEnvironment(): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('NODE_')));
}

/** Runs a command under GNU time and measures it. */
export async function measure(command: readonly string[]): Promise<Measurement> {
  const child = spawn('/usr/bin/time', ['-f', '%e %U %S %M', ...command], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: plainEnvironment(),
  });
  let text = '';
  child.stderr.on('data', (data) => {
    text += data;
  });
  const [code] = await once(child, 'close');
  const last = text.trim().split('\n').at(-1) ?? '';
  if (code !== 0) throw new Error(`${command.join(' ')}: ${text}`);
  const [seconds = 0, user = 0, system = 0, kib = 0] = last.split(' ').map(Number);
  return { seconds, cpu: user + system, peakMiB: kib / 1024 };
}

/** CPU seconds that a process has used so far (utime and stime of /proc/PID/stat, in ticks of 10 ms). */
export function cpuOf(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
    .replace(/^.*\) /, '')
    .split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

/** Does something inside another process and measures that process. */
export async function measureProcess(pid: number, work: () => Promise<unknown>): Promise<Measurement> {
  const cpu = cpuOf(pid);
  const started = performance.now();
  await work();
  return { seconds: (performance.now() - started) / 1000, cpu: cpuOf(pid) - cpu, peakMiB: Number.NaN };
}

/** The fastest of several runs: on a noisy machine the least disturbed one says most. */
export async function bestOf(runs: number, run: () => Promise<Measurement>): Promise<Measurement> {
  let best = await run();
  for (let i = 1; i < runs; i++) {
    const next = await run();
    if (next.seconds < best.seconds) best = next;
  }
  return best;
}

/** One line of a table: name, seconds, CPU, ratio to the peer. */
export function row(name: string, { seconds, cpu, peakMiB }: Measurement, peer?: Measurement): string {
  const ratio = peer ? `${(seconds / peer.seconds).toFixed(2)} x` : '';
  const peak = Number.isNaN(peakMiB) ? '' : `${peakMiB.toFixed(0)} MiB`;
  return `${name.padEnd(44)}${seconds.toFixed(2).padStart(7)} s ${cpu.toFixed(2).padStart(7)} s ${peak.padStart(9)} ${ratio.padStart(9)}`;
}

/** The heading of a table of rows. */
export function heading(peer: string): string {
  return `${''.padEnd(44)}${'time'.padStart(9)} ${'CPU'.padStart(9)} ${'peak RSS'.padStart(9)} ${`of ${peer}`.padStart(9)}`;
}
