/** A sample of the fault matrix, all of which `npm run check:faults` walks. Slow machines have time: nothing here is about seconds. */

import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { roomyFolder } from '../guests/qemu.js';
import { hasTool, needsMount, needsTools, needsTracing, skipUnless } from '../tools.js';
import type { Combination } from './axes.js';
import { missingForChannels } from './channels.js';
import { demoRows } from './full-disk.js';
import { Lane } from './lane.js';
import { faultRows, type Wanted } from './matrix.js';
import { type Row, rowText } from './row.js';
import { SourceFiles } from './sources.js';
import { stalledRows } from './stalled-reader.js';

/** Seconds beyond what check:faults grants: what has not ended by then hangs. */
const GRACE = 60;

/** Dumps that between them have all formats, all targets, and all sources that need no QEMU. */
const SAMPLE: readonly Combination[] = [
  { format: 'elf', target: 'file', source: 'stream' },
  { format: 'elf', target: 'socket', source: 'kdump' },
  { format: 'kdump-raw-lzo', target: 'file', source: 'memory' },
  { format: 'kdump-raw-lzo', target: 'fd', source: 'ELF' },
  { format: 'kdump-zlib', target: 'pipe', source: 'ELF' },
  { format: 'win-dmp', target: 'forced', source: 'memory' },
  { format: 'win-dmp', target: 'FIFO', source: 'kdump' },
];
/** Of the rows of such a dump, one in so many. */
const ONE_IN = 12;

const DEMO_RUNS = 10;

const skip = skipUnless([...(hasTool('strace', '-V') ? [] : ['strace']), ...missingForChannels]);
const noDisk = needsMount();

/** Every so-many-th row, beginning with another one for each dump. */
function oneIn(count: number, first: number): Wanted {
  let number = first;
  return { grace: GRACE, row: () => number++ % count === 0 };
}

const ALL: Wanted = { grace: GRACE, row: () => true };

const folder = mkdtempSync(join(roomyFolder(2 ** 30), 'vmcore-faults-'));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));
const files = await SourceFiles.make(join(folder, 'sources'));

async function check(t: Test, rows: AsyncIterable<Row>): Promise<void> {
  for await (const row of rows) t.same(row.differences, [], rowText(row));
}

SAMPLE.forEach((combination, i) => {
  t.test(`a call fails: ${Object.values(combination).join(', ')}`, { skip }, (t) =>
    check(t, faultRows(new Lane(join(folder, `${i}`), files), combination, oneIn(ONE_IN, i))),
  );
});

t.test('what was read cannot be closed', { skip }, (t) => {
  const isClose: Wanted = { grace: GRACE, row: ({ fault }) => fault === 'source close EIO' };
  const combination = { format: 'elf', target: 'pipe', source: 'ELF' } as const;
  return check(t, faultRows(new Lane(join(folder, 'close'), files), combination, isClose));
});

t.test(
  'a machine that runs',
  { skip: skip || needsTracing() || needsTools('qemu-system-x86_64', 'as', 'ld') },
  async (t) => {
    const lane = new Lane(join(folder, 'live'), files);
    t.teardown(() => lane.close());
    const combination = { format: 'kdump-zlib', target: 'file', source: 'live-proc' } as const;
    await check(t, faultRows(lane, combination, oneIn(ONE_IN, 0)));
  },
);

t.test('a reader that reads no more', { skip }, (t) => {
  const combination = { format: 'kdump-zlib', target: 'pipe', source: 'memory' } as const;
  return check(t, stalledRows(new Lane(join(folder, 'stalled'), files), combination, ALL));
});

t.test('a disk that is full', { skip: noDisk }, (t) =>
  check(t, demoRows(new Lane(join(folder, 'full'), files), ALL, DEMO_RUNS)),
);
