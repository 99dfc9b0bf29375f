/** The file behind a machine's memory is the one that QEMU has mapped, whatever else has its name or its number. */

import { execFileSync } from 'node:child_process';
import { closeSync, mkdirSync, mkdtempSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { LiveReport } from '../../lib/model/guest.js';
import { openGuest } from '../../lib/open-guest.js';
import { compareElf } from '../oracle/compare-elf.js';
import { needsMount, needsTools } from '../tools.js';
import { bootLive, dumpLive, type LiveGuest, liveQemus, MIB } from './live-qemu.js';

const [qemu] = await liveQemus();

/** Dumps a machine that stands still, has QEMU dump it, and compares. */
async function checkDump(t: Test, live: LiveGuest): Promise<LiveReport> {
  const [ours, theirs] = [join(live.folder, 'ours'), join(live.folder, 'theirs')];
  const report = await dumpLive(live, {}, {}, ours);
  await live.qemu.dump({ paging: false, file: theirs });
  const guest = await openGuest(theirs);
  const memoryBytes = guest.blocks.reduce((sum, { length }) => sum + length, 0);
  guest.close();
  compareElf(t, ours, theirs, { memoryBytes });
  t.equal(report.memoryPath, 'file');
  t.same(report.warnings, []);
  return report;
}

t.test('a copy has taken the name of the file', { skip: qemu!.skip || needsTools('cp') }, async (t) => {
  const live = await bootLive(t, qemu!);
  const copy = `${live.qemu.ramFile}.copy`;
  execFileSync('cp', ['--sparse=always', live.qemu.ramFile, copy]);
  const fd = openSync(copy, 'r+');
  // Not the page that is compared: that is looked for from the middle of a block on.
  writeSync(fd, 'of another time', 0);
  closeSync(fd);
  renameSync(copy, live.qemu.ramFile);
  const { memory } = await checkDump(t, live);
  t.match(memory[0]!.from, /^\/proc\/\d+\/fd\/\d+$/);
});

t.test('two files have the same inode number', { skip: qemu!.skip || needsMount() }, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'vmcore-mapped-'));
  const disks = ['dimm', 'ram'].map((name) => join(folder, name));
  const mounted: string[] = [];
  try {
    for (const disk of disks) {
      mkdirSync(disk);
      execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', disk]);
      mounted.push(disk);
    }
    await checkDump(t, await bootOn(t, disks));
  } finally {
    // QEMU still has them.
    for (const disk of mounted) execFileSync('umount', ['-l', disk]);
    rmSync(folder, { recursive: true });
  }
});

/**
 * A machine with its RAM on the second disk and a DIMM on the first. In a folder QEMU makes a file that it removes again:
 * the first one of either tmpfs, which number them from the same number on.
 */
function bootOn(t: Test, disks: readonly string[]): Promise<LiveGuest> {
  const backends = disks.flatMap((disk, i) => [
    '-object',
    `memory-backend-file,id=in${i},mem-path=${disk},size=256M,share=on`,
  ]);
  return bootLive(t, qemu!, {
    machine: 'q35',
    machineOptions: ['memory-backend=in1'],
    memory: 256 * MIB,
    args: [...backends, '-m', 'slots=2,maxmem=1G', '-device', 'pc-dimm,memdev=in0'],
  });
}
