/**
 * ELF: us against QEMU's own dump of the same paused guest and against cp, sparse and dense, in one run.
 *
 *   npm run bench                 a 2 GiB guest of which a quarter is not zero
 *   npm run bench -- --memory 5G  another size
 *
 * Also prints the peak memory of our process for a 5 GiB and a 10 GiB guest.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { parseSize } from '../lib/model/sizes.js';
import { Qemu, roomyFolder } from '../test/guests/qemu.js';
import { fillMemory, withMemoryFile } from './memory-file.js';
import { bestOf, heading, type Measurement, measure, measureProcess, row } from './measure.js';

const CLI = fileURLToPath(new URL('../cli/cli.js', import.meta.url));
const GIB = 2 ** 30;
const RUNS = 3;

function vmcore(ram: string, output: string, ...more: string[]): Promise<Measurement> {
  return measure([process.execPath, CLI, 'dump', `raw:${ram}`, '-o', output, '--force', ...more]);
}

async function againstQemu(size: number): Promise<void> {
  const folder = mkdtempSync(join(roomyFolder(3 * size), 'vmcore-bench-'));
  const qemu = await Qemu.launch({ machine: 'pc', memory: size, args: ['-S'], base: folder });
  try {
    fillMemory(qemu.ramFile, size);
    const source = qemu.ramFile;
    const out = join(folder, 'out');
    const once = (work: () => Promise<Measurement>) =>
      bestOf(RUNS, async () => {
        rmSync(out, { force: true });
        return work();
      });
    // QEMU comes last: its dump leaves the memory file without holes.
    const sparse = await once(() => vmcore(source, out));
    const dense = await once(() => vmcore(source, out, '--no-sparse'));
    const cpSparse = await once(() => measure(['cp', '--sparse=always', qemu.ramFile, out]));
    const cpDense = await once(() => measure(['cp', '--sparse=never', qemu.ramFile, out]));
    const own = await once(() => measureProcess(qemu.pid, () => qemu.dump({ paging: false, file: out })));
    const filled = await once(() => vmcore(source, out));
    console.log(`guest of ${size / GIB} GiB, a quarter of it not zero; memory file and output in ${folder}\n`);
    console.log(heading('QEMU'));
    console.log(row('QEMU, elf', own));
    console.log(row('vmcore, dense (aim 0.50)', dense, own));
    console.log(row('vmcore, sparse (aim 0.20)', sparse, own));
    console.log(row('vmcore, sparse, of a file without holes', filled, own));
    console.log(row('cp --sparse=never', cpDense, own));
    console.log(row('cp --sparse=always', cpSparse, own));
  } finally {
    await qemu.quit();
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Peak memory must not depend on the guest's size. */
async function peakMemory(): Promise<void> {
  console.log('\npeak memory of our process (aim: at most 200 MiB, and the same within 10 MiB)');
  for (const size of [5 * GIB, 10 * GIB])
    await withMemoryFile(size, async (ram, folder) => {
      const { peakMiB, seconds } = await vmcore(ram, join(folder, 'out'));
      console.log(`  ${String(size / GIB).padStart(2)} GiB: ${peakMiB.toFixed(0)} MiB, ${seconds.toFixed(2)} s`);
    });
}

const { values } = parseArgs({ options: { memory: { type: 'string', default: '2G' } } });
await againstQemu(parseSize(values.memory, '--memory'));
await peakMemory();
