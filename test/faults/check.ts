/**
 * The fault matrix: dumps that something is done to, all kinds of them, as a table. A row that differs from what should
 * be makes the exit code 1.
 *
 *   npm run check:faults [-- --only WORD[,WORD…] …] [--lanes N] [--grace SECONDS] [--differing]
 *
 * `--only` keeps the rows in whose names all the words are; given more than once, any of its lists will do. `--grace` is
 * for machines that do other things meanwhile. It needs strace, koffi and QEMU, and root for the disk that is full.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { roomyFolder } from '../guests/qemu.js';
import { needsMount } from '../tools.js';
import { abortCombinations, abortRows } from './aborts.js';
import { type Combination, combinations, FORMATS, SOURCES, TARGETS } from './axes.js';
import { cancelCombinations, cancelRows } from './cancel.js';
import { demoRows, diskCombinations, diskRows } from './full-disk.js';
import { Lane } from './lane.js';
import { faultRows, type Wanted } from './matrix.js';
import { heading, type Row, type RowName, rowText } from './row.js';
import { SourceFiles } from './sources.js';
import { stalledCombinations, stalledRows } from './stalled-reader.js';

const { values } = parseArgs({
  options: {
    only: { type: 'string', multiple: true, default: [] },
    lanes: { type: 'string', default: `${availableParallelism()}` },
    grace: { type: 'string', default: '0' },
    differing: { type: 'boolean', default: false },
  },
});

const filters = values.only.map((words) => words.split(','));

/** Whether all words of a filter are in a name. */
function isWanted(name: RowName): boolean {
  const words = Object.values(name).flatMap((text: string) => [text, ...text.split(' ')]);
  return filters.length === 0 || filters.some((filter) => filter.every((word) => words.includes(word)));
}

const AXES: readonly string[] = [...FORMATS, ...TARGETS, ...SOURCES];

/** Whether some row of a dump may be wanted. */
function isWantedDump(dump: Combination): boolean {
  const names: string[] = Object.values(dump);
  return (
    filters.length === 0 ||
    filters.some((filter) => filter.every((word) => !AXES.includes(word) || names.includes(word)))
  );
}

const wanted: Wanted = { row: isWanted, grace: Number(values.grace) };

const folder = mkdtempSync(join(roomyFolder(2 ** 30), 'vmcore-faults-'));
let rows = 0;
const different: Row[] = [];

function print(row: Row): void {
  rows++;
  if (row.differences.length > 0) different.push(row);
  if (!values.differing || row.differences.length > 0) console.log(rowText(row));
}

const noDisk = needsMount();

type Task = (lane: Lane) => AsyncIterable<Row>;
type RowsOfDump = (lane: Lane, combination: Combination, wanted: Wanted) => AsyncIterable<Row>;

/** A task for each dump. */
function tasksOf(dumps: readonly Combination[], rows: RowsOfDump): Task[] {
  return dumps.filter(isWantedDump).map((dump) => (lane) => rows(lane, dump, wanted));
}

const tasks: Task[] = [
  ...(noDisk === false ? [(lane: Lane) => demoRows(lane, wanted), ...tasksOf(diskCombinations(), diskRows)] : []),
  ...tasksOf(stalledCombinations(), stalledRows),
  ...tasksOf(abortCombinations(), abortRows),
  ...tasksOf(cancelCombinations(), cancelRows),
  ...tasksOf(combinations(), faultRows),
];

async function work(lane: Lane): Promise<void> {
  try {
    for (let task = tasks.shift(); task; task = tasks.shift()) for await (const row of task(lane)) print(row);
  } finally {
    await lane.close();
  }
}

try {
  const files = await SourceFiles.make(join(folder, 'sources'));
  console.log(heading());
  const lanes = Array.from({ length: Number(values.lanes) }, (_, i) => new Lane(join(folder, `lane-${i}`), files));
  await Promise.all(lanes.map(work));
} finally {
  rmSync(folder, { recursive: true, force: true });
}
if (noDisk !== false) console.log(`no disk is full: ${noDisk}`);
console.log(`${rows} rows, of which ${different.length} differ`);
process.exitCode = different.length > 0 ? 1 : 0;
