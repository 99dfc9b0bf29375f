/**
 * Dump level 31: us, from a guest's memory file, against makedumpfile, from an ELF vmcore, and against the whole way that
 * there was before: QEMU's ELF, then makedumpfile. One paused Linux guest, one run, to tmpfs.
 *
 *   npm run bench:exclude
 *
 * makedumpfile cannot read QEMU's own ELF, whose section headers are where it looks for program headers (QEMU >= 7.2).
 * So the way that there was is QEMU's time for its ELF, and makedumpfile's time for ours, which has the same memory.
 */

import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { roomyFolder } from '../test/guests/qemu.js';
import { bootFullLinux } from './linux-guest.js';
import { bestOf, heading, type Measurement, measure, measureProcess, row } from './measure.js';

const CLI = fileURLToPath(new URL('../cli/cli.js', import.meta.url));
const MIB = 1 << 20;
const GIB = 2 ** 30;
const RUNS = 5;

interface Result {
  readonly measurement: Measurement;
  readonly bytes: number;
}

const folder = mkdtempSync(join(roomyFolder(5 * GIB), 'vmcore-bench-'));
const out = join(folder, 'out');

async function once(run: () => Promise<Measurement>): Promise<Result> {
  const measurement = await bestOf(RUNS, () => {
    rmSync(out, { force: true });
    return run();
  });
  return { measurement, bytes: statSync(out).size };
}

function ours(source: readonly string[], ...options: readonly string[]): Promise<Result> {
  return once(() => measure([process.execPath, CLI, 'dump', ...source, '-o', out, ...options]));
}

/** One after the other. */
function inTurn(first: Measurement, { measurement: second, bytes }: Result): Result {
  const peakMiB = Math.max(first.peakMiB, second.peakMiB);
  const measurement = { seconds: first.seconds + second.seconds, cpu: first.cpu + second.cpu, peakMiB };
  return { measurement, bytes };
}

try {
  const { qemu, source, nonZeroBytes } = await bootFullLinux(folder, 2 * GIB, 510 * MIB);
  try {
    const elf = join(folder, 'elf');
    await measure([process.execPath, CLI, 'dump', ...source, '-o', elf]);
    const lzo = ['-f', 'kdump-raw-lzo'];
    const memory = await ours(source, ...lzo, '-d', '31');
    const alone = await ours(source.slice(0, 1), ...lzo, '-d', '31');
    const fromElf = await ours([elf], ...lzo, '-d', '31');
    const toElf = await ours(source, '-d', '31');
    const whole = await ours(source, ...lzo);
    const makedumpfile = await once(() => measure(['makedumpfile', '-l', '-d', '31', elf, out]));
    // QEMU comes last: its dump leaves the memory file without holes.
    const qemuElf = await bestOf(1, () => measureProcess(qemu.pid, () => qemu.dump({ paging: false, file: out })));
    const today = inTurn(qemuElf, makedumpfile);

    const line = (name: string, { measurement, bytes }: Result, peer?: Result) =>
      console.log(
        `${row(name, measurement, peer?.measurement)}  ${(bytes / MIB).toFixed(1).padStart(6)} MiB${
          peer ? `  ${((100 * bytes) / peer.bytes).toFixed(1)} %` : ''
        }`,
      );
    console.log(`guest of 2 GiB, ${(nonZeroBytes / MIB).toFixed(0)} MiB of it not zero; in ${folder}\n`);
    console.log(`${heading('makedumpfile')}   size`);
    line('makedumpfile -l -d 31, from our ELF', makedumpfile);
    line('vmcore, kdump-raw-lzo -d 31, memory file', memory, makedumpfile);
    line('vmcore, the same, VMCOREINFO to be found', alone, makedumpfile);
    line('vmcore, the same, from our ELF', fromElf, makedumpfile);
    line('vmcore, elf -d 31, memory file', toElf, makedumpfile);
    console.log(`\n${heading('the old way')}   size`);
    line('QEMU, elf, then makedumpfile -l -d 31', today);
    line('vmcore, kdump-raw-lzo -d 31, memory file', memory, today);
    line('vmcore, kdump-raw-lzo, no page left out', whole, today);
  } finally {
    await qemu.quit();
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
