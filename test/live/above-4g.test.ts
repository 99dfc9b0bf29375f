/**
 * A live guest of 5 GiB, most of which it has never touched: RAM above 4 GiB as QEMU places it by itself. Each way of
 * reading beside QEMU's own dump of the same pause, byte for byte.
 */

import { rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { openGuest } from '../../lib/open-guest.js';
import { dumpSparse } from '../guests/oracle.js';
import type { QemuOptions } from '../guests/qemu.js';
import { compareElf } from '../oracle/compare-elf.js';
import { needsTools } from '../tools.js';
import { bootLive, dumpLive, liveQemus, MIB } from './live-qemu.js';
import { checkReaders, dumpForReaders } from './readers.js';

const MEMORY = 5 * 2 ** 30;

/** These differ in how much of the RAM is below 4 GiB: 3 GiB and 2 GiB. */
const MACHINES = ['pc', 'q35'] as const satisfies QemuOptions['machine'][];

const WAYS = ['file', 'proc', 'stream'] as const;

const skip = needsTools('dd', 'mkfifo', 'cmp');

for (const [i, qemu] of (await liveQemus()).entries())
  t.test(qemu.name, { skip: qemu.skip || skip }, async (t) => {
    const live = await bootLive(t, qemu, { machine: MACHINES[i]!, memory: MEMORY });
    const path = (name: string) => join(live.folder, name);
    const before = live.allocated();
    t.ok(before * 512 < 512 * MIB, 'the memory file is sparse');
    await dumpLive(live, { memoryPath: 'file' }, {}, path('file'));
    const dumps = await dumpForReaders(live);
    t.equal(live.allocated(), before, 'no block of the memory file was allocated');
    for (const way of ['proc', 'stream'] as const) await dumpLive(live, { memoryPath: way }, {}, path(way));
    await dumpSparse(live.qemu, { paging: false, file: path('qemu') });
    // What it has allocated meanwhile is given back before files are compared.
    await live.qemu.kill();

    const guest = await openGuest(path('qemu'));
    t.ok(
      guest.blocks.some(({ base, length }) => base === 2 ** 32 && length >= 2 ** 31),
      'there is RAM above 4 GiB',
    );
    const memoryBytes = guest.blocks.reduce((sum, { length }) => sum + length, 0);
    guest.close();
    for (const way of WAYS)
      await t.test(way, async (t) => {
        compareElf(t, path(way), path('qemu'), { memoryBytes });
        t.ok(statSync(path(way)).blocks * 512 < 512 * MIB, 'and sparse');
        rmSync(path(way));
      });
    const programs = await qemu.readers();
    await checkReaders(t, dumps, { elf: path('qemu'), programs, refilters: true });
  });
