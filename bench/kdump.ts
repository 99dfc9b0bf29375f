/**
 * kdump: us against QEMU's own dump and makedumpfile, on one paused Linux guest, in one run, to tmpfs.
 *
 *   npm run bench:kdump
 *   npm run bench:kdump -- trixie    with the QEMU of Debian 13, which has kdump-raw-zlib
 */

import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { roomyFolder } from '../test/guests/qemu.js';
import { printWasmSpeed } from './wasm-alone.js';
import { bootFullLinux } from './linux-guest.js';
import { withMemoryFile, withTerabyte } from './memory-file.js';
import { bestOf, heading, type Measurement, measure, measureProcess, row } from './measure.js';

const CLI = fileURLToPath(new URL('../cli/cli.js', import.meta.url));
const MIB = 1 << 20;
const GIB = 2 ** 30;
const RUNS = 5;

interface Result {
  readonly measurement: Measurement;
  readonly bytes: number;
}

const folder = mkdtempSync(join(roomyFolder(3 * GIB), 'vmcore-bench-'));
const out = join(folder, 'out');

async function once(run: () => Promise<Measurement>, file = out): Promise<Result> {
  const measurement = await bestOf(RUNS, () => {
    rmSync(file, { force: true });
    return run();
  });
  return { measurement, bytes: statSync(file).size };
}

/** How much of the cores' time was spent outside the encoder module. */
function encoderShare(format: string, source: readonly string[]): string {
  const dump = ['dump', ...source, '-f', format, '-o', out, '--force', '--json', '--threads', '2'];
  const { stdout } = spawnSync(process.execPath, [CLI, ...dump], { encoding: 'utf8' });
  const { seconds, compressSeconds } = JSON.parse(stdout) as { seconds: number; compressSeconds: number };
  const outside = 1 - compressSeconds / (2 * seconds);
  return `${format}: ${(100 * outside).toFixed(0)} % of 2 x ${seconds.toFixed(2)} s`;
}

try {
  const { qemu, source, nonZeroBytes, version, hasRaw } = await bootFullLinux(folder, 2 * GIB, 510 * MIB);
  try {
    const ours = (format: string, ...more: string[]) =>
      once(() => measure([process.execPath, CLI, 'dump', ...source, '-f', format, '-o', out, ...more]));
    const elf = join(folder, 'elf');
    await measure([process.execPath, CLI, 'dump', ...source, '-o', elf]);
    const makedumpfile = (flag: string) => once(() => measure(['makedumpfile', flag, '-d', '1', elf, out]));

    const shares = [];
    for (const format of ['kdump-raw-zlib', 'kdump-raw-lzo', 'kdump-raw-snappy'])
      shares.push(encoderShare(format, source));

    const zlib = await ours('kdump-zlib');
    const rawZlib = await ours('kdump-raw-zlib');
    const denserZlib = await ours('kdump-raw-zlib', '--level', '2');
    const lzo = await ours('kdump-raw-lzo');
    const snappy = await ours('kdump-raw-snappy');
    const smallerLzo = await ours('kdump-raw-lzo', '--level', '2');
    const oneThread = await ours('kdump-raw-zlib', '--threads', '1');
    const mdZlib = await makedumpfile('-c');
    const mdLzo = await makedumpfile('-l');
    // QEMU comes last: its dump leaves the memory file without holes.
    const own = (format: 'kdump-zlib' | 'kdump-raw-zlib') =>
      once(() => measureProcess(qemu.pid, () => qemu.dump({ paging: false, file: out, format })));
    const ownZlib = await own('kdump-zlib');
    const ownRawZlib = hasRaw ? await own('kdump-raw-zlib') : ownZlib;

    const line = (name: string, { measurement, bytes }: Result, peer?: Result) =>
      console.log(
        `${row(name, measurement, peer?.measurement)}  ${(bytes / MIB).toFixed(0).padStart(5)} MiB${
          peer ? `  ${((100 * bytes) / peer.bytes).toFixed(1)} %` : ''
        }`,
      );
    console.log(
      `QEMU ${version}, guest of 2 GiB, ${(nonZeroBytes / MIB).toFixed(0)} MiB of it not zero; in ${folder}\n`,
    );
    console.log(`${heading('QEMU')}   size`);
    line('QEMU, kdump-zlib', ownZlib);
    if (hasRaw) line('QEMU, kdump-raw-zlib', ownRawZlib, ownZlib);
    line('vmcore, kdump-zlib (aim 0.25, 101 %)', zlib, ownZlib);
    line('vmcore, kdump-raw-zlib', rawZlib, ownRawZlib);
    line('vmcore, kdump-raw-zlib, one thread', oneThread, ownRawZlib);
    line('vmcore, kdump-raw-zlib, --level 2', denserZlib, ownRawZlib);
    line('makedumpfile -c -d 1', mdZlib, ownZlib);
    console.log(`\n${heading('makedumpfile')}   size`);
    line('makedumpfile -l -d 1', mdLzo);
    line('vmcore, kdump-raw-lzo (aim 0.40)', lzo, mdLzo);
    line('vmcore, kdump-raw-lzo, --level 2', smallerLzo, mdLzo);
    line('vmcore, kdump-raw-snappy', snappy, mdLzo);
    console.log(`\nshare of two cores that was not compressing, from opening the source to the last byte`);
    for (const share of shares) console.log(`  ${share}`);
    console.log('\nthe encoder module alone, on pages of this guest:');
    await printWasmSpeed(qemu.ramFile);
  } finally {
    await qemu.quit();
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}

console.log('\npeak memory of our process (aim: at most 250 MiB)');
for (const size of [2 * GIB, 5 * GIB, 10 * GIB])
  await withMemoryFile(size, async (ram, folder) => {
    const dump = ['dump', `raw:${ram}`, '-f', 'kdump-raw-zlib', '-o', join(folder, 'out')];
    const { peakMiB, seconds } = await measure([process.execPath, CLI, ...dump]);
    console.log(`  ${String(size / GIB).padStart(4)} GiB: ${peakMiB.toFixed(0)} MiB, ${seconds.toFixed(2)} s`);
  });
await withTerabyte(async (ram, folder) => {
  const dump = ['dump', `raw:${ram}`, '-f', 'kdump-raw-lzo', '-o', join(folder, 'out')];
  const { peakMiB, seconds } = await measure([process.execPath, CLI, ...dump]);
  console.log(`  1024 GiB, a page a GiB: ${peakMiB.toFixed(0)} MiB, ${seconds.toFixed(2)} s`);
});
