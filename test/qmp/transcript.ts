/** The script of ../shared/qmp-transcript.json, and how it is played to a monitor. */

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { type Message, Wire } from './qmp-fixture.js';

/** One step: what to send, and what QEMU 10 answered. */
export interface Case {
  readonly case: string;
  readonly send?: string;
  readonly fds?: number;
  readonly receive: readonly string[];
}

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
