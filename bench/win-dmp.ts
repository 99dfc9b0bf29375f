/**
 * win-dmp: us against QEMU's own dump, on one paused guest that looks like Windows (test/guests/bare-metal/win-64.S) with
 * 2 GiB of memory, a quarter of it full, in one run, to tmpfs.
 *
 *   npm run build && node dist/bench/win-dmp.js
 */

import { spawnSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, readSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { dump } from '../lib/dump.js';
import { setWinDmpRuns, WIN_DMP_HEADER_SIZE } from '../lib/formats/win-dmp.js';
import { openGuest } from '../lib/open-guest.js';
import { assemble, bootBareMetal } from '../test/guests/bare-metal.js';
import { type Qemu, roomyFolder } from '../test/guests/qemu.js';
import { WINDOWS_PLACES } from '../test/guests/windows.js';
import { bestOf, heading, measure, measureProcess, row } from './measure.js';

const CLI = fileURLToPath(new URL('../cli/cli.js', import.meta.url));
const MIB = 1 << 20;
const GIB = 2 ** 30;
const MEMORY = 2 * GIB;
const RUNS = 5;
const NOTE_HEADER = WINDOWS_PLACES.header - WINDOWS_PLACES.note;

const folder = mkdtempSync(join(roomyFolder(3 * GIB), 'vmcore-bench-'));
const out = join(folder, 'out');

/** Noise in every fourth MiB, and a header whose runs are all of the memory. Gives the arguments of our dump. */
async function fill(qemu: Qemu): Promise<string[]> {
  const fd = openSync(qemu.ramFile, 'r+');
  const noise = Buffer.alloc(MIB);
  for (let at = 16 * MIB; at < MEMORY; at += 4 * MIB) writeSync(fd, randomFillSync(noise), 0, MIB, at);
  const note = Buffer.alloc(NOTE_HEADER + WIN_DMP_HEADER_SIZE[64]);
  readSync(fd, note, 0, note.length, WINDOWS_PLACES.note);
  setWinDmpRuns(note.subarray(NOTE_HEADER), 64, [
    { BasePage: 1n, PageCount: 0x9en },
    { BasePage: 0x100n, PageCount: BigInt(MEMORY / 4096 - 0x100) },
  ]);
  writeSync(fd, note, 0, note.length, WINDOWS_PLACES.note);
  closeSync(fd);
  const [registers, vmcoreinfo] = [join(folder, 'registers.txt'), join(folder, 'note')];
  writeFileSync(registers, await qemu.hmp('info registers -a'));
  writeFileSync(vmcoreinfo, note);
  return [`raw:${qemu.ramFile}`, '--registers', registers, '--vmcoreinfo', vmcoreinfo];
}

try {
  const qemu = await bootBareMetal(assemble('win-64', folder), {
    machine: 'pc',
    memory: MEMORY,
    args: ['-device', 'vmcoreinfo'],
    base: folder,
  });
  try {
    await qemu.stop();
    const source = await fill(qemu);
    const fresh = (run: () => ReturnType<typeof measure>) =>
      bestOf(RUNS, () => {
        rmSync(out, { force: true });
        return run();
      });
    const ours = (...more: string[]) =>
      fresh(() => measure([process.execPath, CLI, 'dump', ...source, '-f', 'win-dmp', '-o', out, ...more]));
    const sparse = await ours();
    const library = await fresh(async () => {
      const [raw, , registers, , vmcoreinfo] = source;
      const guest = await openGuest(raw!, { registers, vmcoreinfo });
      const cpu = process.cpuUsage();
      const { seconds } = await dump(guest, { format: 'win-dmp' }, { file: out }).finished;
      const { user, system } = process.cpuUsage(cpu);
      guest.close();
      return { seconds, cpu: (user + system) / 1e6, peakMiB: Number.NaN };
    });
    const dense = await ours('--no-sparse');
    const mine = join(folder, 'mine');
    spawnSync('mv', [out, mine]);
    // QEMU comes last: its dump leaves the memory file without holes.
    const own = await fresh(() =>
      measureProcess(qemu.pid, () =>
        qemu.execute('dump-guest-memory', { paging: false, protocol: `file:${out}`, format: 'win-dmp' }),
      ),
    );
    const same = spawnSync('cmp', [mine, out]).status === 0;
    console.log(`guest of 2 GiB, a quarter of it not zero; ${(statSync(out).size / MIB).toFixed(0)} MiB; in ${folder}`);
    console.log(`${same ? 'the dumps are equal' : 'THE DUMPS DIFFER'}\n\n${heading('QEMU')}`);
    console.log(row('QEMU, win-dmp', own));
    console.log(row('vmcore, win-dmp (aim 0.5)', sparse, own));
    console.log(row('vmcore, win-dmp, without the start of Node', library, own));
    console.log(row('vmcore, win-dmp --no-sparse', dense, own));
  } finally {
    await qemu.quit();
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
