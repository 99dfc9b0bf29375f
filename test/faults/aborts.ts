/** Dumps that are aborted at every tenth: by the library's `job.abort()`, and by the monitor's `dump-cancel`. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { type Combination, combinations } from './axes.js';
import type { Lane } from './lane.js';
import type { Wanted } from './matrix.js';
import type { Row } from './row.js';

/** Seconds that a dump may take to end when it has been aborted. */
const LIMIT = 2;

const PROGRAM = fileURLToPath(new URL('abort-each-tenth.js', import.meta.url));

/** All dumps that are aborted. */
export function abortCombinations(): Combination[] {
  return combinations().filter(({ target }) => target === 'file' || target === 'fd');
}

/** The row of a dump whose job is aborted. */
export async function* abortRows(lane: Lane, combination: Combination, wanted: Wanted): AsyncGenerator<Row> {
  const { format, target, source: sourceName } = combination;
  const name = { ...combination, fault: 'job.abort()', which: 'each tenth' };
  if (!wanted.row(name)) return;
  const folder = lane.path('aborted');
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const source = await lane.open(sourceName === 'stream' ? 'ELF' : sourceName);
  const [path, , way = sourceName === 'stream' ? 'stream' : '-'] = source.words;
  const words = [path!, way, format, target, `${folder}/vmcore`, `${LIMIT + wanted.grace}`];
  const env = { ...process.env };
  delete env['NODE_OPTIONS'];
  const child = spawn(process.execPath, [PROGRAM, ...words], { env, stdio: ['ignore', 'pipe', 'pipe'] });
  let text = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (data: string) => {
      text += data;
    });
  const [code] = (await once(child, 'close')) as [number | null];
  const status = await source.status();
  const lines = text.split('\n').filter((line) => line !== '');
  yield {
    ...{ ...name, expected: 'ABORTED' },
    seen: code === 0 ? 'ended each time' : `code ${code}`,
    differences: [
      ...lines,
      ...(code !== 0 && lines.length === 0 ? [`code ${code}`] : []),
      ...(status === null || status === 'running' ? [] : [`the guest is ${status}`]),
    ],
  };
}
