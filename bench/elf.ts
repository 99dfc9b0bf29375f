/**
 * ELF: us against QEMU's own dump of the same paused guest and against cp, sparse and dense, in one run.
 *
 *   npm run bench                 a 2 GiB guest of which a quarter is not zero
 *   npm run bench -- --memory 5G  another size
 *
 * Also prints the peak memory of our process for a 5 GiB and a 10 GiB guest.
 */

import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { parseSize } from '../lib/sizes.js';
import { Qemu, roomyFolder } from '../test/guests/qemu.js';
import { bestOf, heading, type Measurement, measure, measureProcess, row } from './measure.js';

const CLI = new URL('../lib/cli.js', import.meta.url).pathname;
const MIB = 1 << 20;
const GIB = 2 ** 30;
const RUNS = 3;

/** Fills every fourth 16 MiB of a memory file: half text, half noise, so that a quarter of the guest is not zero. */
function fill(path: string, size: number): void {
  const noise = Buffer.alloc(8 * MIB);
  let state = 0x9e3779b9;
  for (let i = 0; i < noise.length; i += 4) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    noise.writeInt32LE(state, i);
  }
  const text = Buffer.alloc(8 * MIB, 'the quick brown fox jumps over the lazy dog 0123456789\n');
  const fd = openSync(path, 'r+');
  for (let at = 0; at + 16 * MIB <= size; at += 64 * MIB) {
    writeSync(fd, noise, 0, noise.length, at);
    writeSync(fd, text, 0, text.length, at + noise.length);
  }
  closeSync(fd);
}

function vmcore(source: string, output: string, ...more: string[]): Promise<Measurement> {
  return measure([process.execPath, CLI, 'dump', source, '-o', output, '--force', ...more]);
}

/** A guest description of `pc`: the RAM below 3 GiB (3.5 GiB for smaller guests), and the rest from 4 GiB on. */
function description(folder: string, ram: string, size: number): string {
  const below = size >= 3.5 * GIB ? 3 * GIB : size;
  const memory = [{ base: 0, length: below, file: ram, offset: 0 }];
  if (size > below) memory.push({ base: 4 * GIB, length: size - below, file: ram, offset: below });
  const path = join(folder, 'guest.json');
  writeFileSync(path, JSON.stringify({ version: 1, arch: 'x86_64', memory }));
  return path;
}

async function againstQemu(size: number): Promise<void> {
  const folder = mkdtempSync(join(roomyFolder(3 * size), 'vmcore-bench-'));
  const qemu = await Qemu.launch({ machine: 'pc', memory: size, args: ['-S'], base: folder });
  try {
    fill(qemu.ramFile, size);
    const source = description(folder, qemu.ramFile, size);
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
  for (const size of [5 * GIB, 10 * GIB]) {
    const folder = mkdtempSync(join(roomyFolder(size), 'vmcore-bench-'));
    try {
      const ram = join(folder, 'guest.ram');
      const fd = openSync(ram, 'w');
      ftruncateSync(fd, size);
      closeSync(fd);
      fill(ram, size);
      const { peakMiB, seconds } = await vmcore(description(folder, ram, size), join(folder, 'out'));
      console.log(`  ${String(size / GIB).padStart(2)} GiB: ${peakMiB.toFixed(0)} MiB, ${seconds.toFixed(2)} s`);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }
}

const { values } = parseArgs({ options: { memory: { type: 'string', default: '2G' } } });
await againstQemu(parseSize(values.memory, '--memory'));
await peakMemory();
