/** Dumps of a monitor that are cancelled at every tenth. The monitor holds no more than before, and makes a whole one then. */

import { mkdirSync, readdirSync, rmSync } from 'node:fs';
import { type Combination, combinations, type FaultFormat } from './axes.js';
import type { Lane } from './lane.js';
import type { Wanted } from './matrix.js';
import { Monitor } from './monitor.js';
import { heldBeyond, processState } from './process-state.js';
import type { Row } from './row.js';
import { type Content, contentOf } from './targets.js';

/** Seconds that a dump may take to end when it has been cancelled. */
const LIMIT = 2;

const TENTHS = 10;

/** All dumps of a monitor: of what can be read more than once. */
export function cancelCombinations(): Combination[] {
  return combinations().filter(({ target, source }) => target === 'file' && source !== 'stream');
}

/** The row of a dump that is cancelled. */
export async function* cancelRows(lane: Lane, combination: Combination, wanted: Wanted): AsyncGenerator<Row> {
  const name = { ...combination, fault: 'dump-cancel', which: 'each tenth' };
  if (!wanted.row(name)) return;
  const source = await lane.open(combination.source);
  const differences: string[] = [];
  try {
    const monitor = await Monitor.start(source.words, lane.path('monitor'));
    try {
      const dumps = new CancelledDumps(monitor, lane.path('cancelled'), combination.format, LIMIT + wanted.grace);
      for await (const difference of dumps.differences()) differences.push(difference);
    } finally {
      await monitor.stop();
    }
  } catch (error) {
    differences.push((error as Error).message);
  }
  const status = await source.status();
  if (status !== null && status !== 'running') differences.push(`the guest is ${status}`);
  yield {
    ...name,
    expected: 'failed',
    seen: differences.length === 0 ? 'failed, and the next is whole' : '',
    differences,
  };
}

class CancelledDumps {
  readonly #file: string;

  constructor(
    private readonly monitor: Monitor,
    private readonly folder: string,
    private readonly format: FaultFormat,
    private readonly limit: number,
  ) {
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true });
    this.#file = `${folder}/vmcore`;
  }

  async *differences(): AsyncGenerator<string> {
    const whole = await this.#whole();
    const before = processState(this.monitor.pid);
    for (let tenth = 0; tenth < TENTHS; tenth++) {
      for (const difference of [
        ...(await this.#cancelled(tenth, whole)),
        ...(await heldBeyond(this.monitor.pid, before)),
      ])
        yield `at ${tenth}/${TENTHS}: ${difference}`;
      rmSync(this.#file, { force: true });
    }
    if ((await this.#whole()) !== whole) yield 'the dump after that is not whole';
  }

  async #cancelled(tenth: number, whole: Content): Promise<string[]> {
    const end = await this.monitor.dump(this.#file, this.format, tenth / TENTHS, this.limit);
    if (!end) throw new Error(`at ${tenth}/${TENTHS}: does not end`);
    const content = contentOf(this.#file);
    const expected = end.status === 'completed' ? whole : 'nothing';
    const left = readdirSync(this.folder).filter((name) => name !== 'vmcore');
    return [
      ...(content === expected ? [] : [`${end.status}, but the vmcore is ${content === whole ? '' : 'not '}whole`]),
      ...(left.length > 0 ? [`left behind: ${left.join(', ')}`] : []),
    ];
  }

  async #whole(): Promise<Content> {
    const end = await this.monitor.dump(this.#file, this.format, null);
    if (end?.status !== 'completed') throw new Error(`a dump that nobody cancels: ${end?.status ?? 'does not end'}`);
    const content = contentOf(this.#file);
    rmSync(this.#file, { force: true });
    return content;
  }
}
