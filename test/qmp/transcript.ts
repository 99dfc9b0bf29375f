/** The script of ../shared/qmp-transcript.json, and how it is played to a monitor. */

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { chmodSync, closeSync, openSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import { REPOSITORY } from '../guests/places.js';
import { type Message, Wire } from './qmp-fixture.js';

/** One step: what to send, and what QEMU 10 answered. */
export interface Case {
  readonly case: string;
  readonly send?: string;
  readonly fds?: number;
  readonly receive: readonly string[];
}

/** All cases. */
export const { cases } = JSON.parse(
  readFileSync(join(REPOSITORY, 'test', 'qmp', 'qemu-10-transcript.json'), 'utf8'),
) as {
  cases: Case[];
};

export interface Played extends Case {
  /** what came */
  readonly got: readonly string[];
}

/** Plays all cases over one connection. @param folder what $DIR stands for */
export async function play(cases: readonly Case[], path: string, folder: string): Promise<Played[]> {
  const wire = await Wire.connect(path);
  const targets = new Targets(folder);
  const played: Played[] = [];
  try {
    for (const one of cases) {
      makeWritable(folder);
      const descriptors = targets.open(one);
      if (one.send !== undefined) wire.send(one.send.replaceAll('$DIR', folder), descriptors);
      for (const fd of descriptors) closeSync(fd);
      const got = await receive(wire, one);
      played.push({ ...one, got: got.map((line) => line.replaceAll(folder, '$DIR')) });
    }
    return played;
  } finally {
    wire.close();
    targets.close();
  }
}

/** The files of QEMU's dumps have mode 0400: to dump to one again it has to be root, as the recorded one was. */
function makeWritable(folder: string): void {
  for (const entry of readdirSync(folder, { withFileTypes: true }))
    if (entry.isFile()) chmodSync(join(folder, entry.name), 0o600);
}

/** As many lines as QEMU sent, but for answers that are there sooner or later: an event may come or not. */
async function receive(wire: Wire, { receive: expected }: Case): Promise<string[]> {
  const lines: string[] = [];
  const isAnswer = (line: string) => !('event' in (JSON.parse(line) as Message));
  const wantsAnswer = expected.some(isAnswer);
  const events = expected.filter((line) => !isAnswer(line)).length;
  while (lines.length < expected.length) {
    const line = await wire.line().catch(() => null);
    if (line === null) break;
    lines.push(line);
    // An error that comes without the event that QEMU 10 had sent before it.
    if (wantsAnswer && isAnswer(line) && events > 0 && lines.length === 1 && line.includes('"error"')) break;
  }
  return lines;
}

/** The descriptors that the script passes. */
class Targets {
  readonly #readers: ChildProcess[] = [];

  constructor(private readonly folder: string) {}

  open({ case: name, fds = 0 }: Case): number[] {
    if (fds === 0) return [];
    if (name === 'getfd pipe') return [this.#pipe('exec cat >/dev/null')];
    if (name === 'getfd pipe again') return [this.#pipe('exec cat >/dev/null')];
    if (name === 'getfd broken pipe') return [this.#pipe('exec true')];
    if (name === 'getfd full') return [openSync('/dev/full', 'w')];
    return Array.from({ length: fds }, (_, i) => openSync(join(this.folder, `passed-${name}-${i}`), 'w'));
  }

  #pipe(reader: string): number {
    const fifo = join(this.folder, `fifo-${this.#readers.length}`);
    execFileSync('mkfifo', [fifo]);
    this.#readers.push(spawn('sh', ['-c', `${reader} < ${fifo}`], { stdio: 'ignore' }));
    return openSync(fifo, 'w');
  }

  close(): void {
    for (const reader of this.#readers) reader.kill();
  }
}

const MIB = 1 << 20;

/** The recorded guest's memory, in all and below 1 MiB. */
export const RECORDED = { total: 2164391936, low: 917504 };

/** Memory of the guests, so that sizes can be told apart from other numbers. */
export interface Sizes {
  readonly total: number;
  readonly low: number;
}

export function sizesOf(blocks: readonly { base: number; length: number }[]): Sizes {
  const below = (limit: number) =>
    blocks.reduce((sum, { base, length }) => sum + Math.max(0, Math.min(base + length, limit) - base), 0);
  return { total: below(2 ** 52), low: below(MIB) };
}

/** A message without what differs from run to run: when, and how much memory the guest has. */
function normal(line: string, { total, low }: Sizes): Message {
  return JSON.parse(line, (key, value) => {
    if (key === 'timestamp') return undefined;
    if (value === total) return 'TOTAL';
    return value === low ? 'LOW' : value;
  }) as Message;
}

/** The answers of a case in a form that can be compared; the end of a detached dump may come before its answer. */
export function comparable(name: string, lines: readonly string[], sizes: Sizes): string {
  const messages = lines.map((line) => JSON.stringify(sorted(normal(line, sizes))));
  if (name === 'detached dump to a full device') messages.sort();
  const text = messages.join('\n');
  // How far it is when it is asked is the machine's affair.
  return name === 'query while active' ? text.replace(/"completed":(\d+|"\w+")/, '"completed":0') : text;
}

/** Members in the order of their names: QEMU's order is that of a hash table. */
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, member]) => [key, sorted(member)]),
  );
}

/** Prints the table; checks that what differs is explained, and that what is explained differs. */
export function checkTable(
  t: Test,
  rows: readonly { name: string; theirs: string; ours: string }[],
  reasons: Readonly<Record<string, string>>,
): void {
  for (const { name, theirs, ours } of rows) {
    const same = theirs === ours;
    const reason = reasons[name];
    t.comment(`${same ? 'same     ' : 'different'} ${name}${same ? '' : `: ${reason ?? 'UNEXPLAINED'}`}`);
    if (!same) t.comment(`    QEMU: ${theirs.replaceAll('\n', ' | ')}`);
    if (!same) t.comment(`    ours: ${ours.replaceAll('\n', ' | ')}`);
    if (reason === undefined) t.equal(ours, theirs, name);
    else t.not(ours, theirs, `${name}: ${reason}`);
  }
  const names = rows.map(({ name }) => name);
  t.same(
    Object.keys(reasons).filter((name) => !names.includes(name)),
    [],
    'every reason belongs to a case',
  );
}

/** Two cases have one name each twice; the number tells them apart. */
export function unique(played: readonly Case[]): string[] {
  return played.map(({ case: name }, i) => {
    const before = played.slice(0, i).filter((other) => other.case === name).length;
    return before === 0 ? name : `${name} (${before + 1})`;
  });
}
