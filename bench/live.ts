/**
 * A live QEMU: our time and the time for which the guest has to be paused, against QEMU's own dump-guest-memory, on one
 * Linux guest, in one run, to tmpfs.
 *
 *   npm run bench:live
 *   npm run bench:live -- trixie    with the QEMU of Debian 13, which has kdump-raw-zlib
 */

import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { roomyFolder } from '../test/guests/qemu.js';
import { bootFullLinux } from './linux-guest.js';

const CLI = fileURLToPath(new URL('../cli/cli.js', import.meta.url));
const MIB = 1 << 20;
const GIB = 2 ** 30;
const RUNS = 3;
const WAYS = ['proc', 'stream'] as const;
const FORMATS = ['elf', 'kdump-zlib', 'kdump-raw-zlib', 'kdump-raw-lzo'] as const;

/** What a dump took: seconds from start to end, and seconds for which the guest was paused. */
interface Result {
  readonly seconds: number;
  readonly paused: number;
  readonly bytes: number;
}

const folder = mkdtempSync(join(roomyFolder(3 * GIB), 'vmcore-bench-'));
const out = join(folder, 'out');
const socket = join(folder, 'qmp');

/** The run that was disturbed least. */
async function best(run: () => Promise<Omit<Result, 'bytes'>>): Promise<Result> {
  let result: Result | null = null;
  for (let i = 0; i < RUNS; i++) {
    rmSync(out, { force: true });
    const { seconds, paused } = await run();
    if (!result || paused < result.paused) result = { seconds, paused, bytes: statSync(out).size };
  }
  return result!;
}

/** As a user runs it, start of the process and all. */
function ours(format: string, ...more: string[]): Promise<Result> {
  return best(async () => {
    const started = performance.now();
    const dump = ['dump', `qmp:${socket}`, '-f', format, '-o', out, '--json', ...more];
    const { status, stdout, stderr } = spawnSync(process.execPath, [CLI, ...dump], { encoding: 'utf8' });
    if (status !== 0) throw new Error(stderr);
    const { live } = JSON.parse(stdout) as { live: { pausedSeconds: number } };
    return { seconds: (performance.now() - started) / 1000, paused: live.pausedSeconds };
  });
}

function line(name: string, { seconds, paused, bytes }: Result, peer: Result): void {
  const ratios = [seconds / peer.seconds, paused / peer.paused].map((ratio) => `${ratio.toFixed(2).padStart(5)} x`);
  const times = [seconds, paused].map((time) => `${time.toFixed(2).padStart(6)} s`);
  const size = (bytes / MIB).toFixed(0).padStart(5);
  console.log(`${name.padEnd(44)}${times[0]} ${ratios[0]}  ${times[1]} ${ratios[1]}  ${size} MiB`);
}

try {
  const { qemu, nonZeroBytes, version, hasRaw } = await bootFullLinux(folder, 2 * GIB, 510 * MIB, {
    args: ['-qmp', `unix:${socket},server=on,wait=off`],
  });
  try {
    /** QEMU's dump keeps the guest paused from its start to its end. */
    const own = (format: 'elf' | 'kdump-zlib' | 'kdump-raw-zlib') =>
      best(async () => {
        const started = performance.now();
        await qemu.dump({ paging: false, file: out, format });
        const seconds = (performance.now() - started) / 1000;
        return { seconds, paused: seconds };
      });
    const results = new Map<string, Result>();
    for (const format of FORMATS) {
      results.set(`${format}, file`, await ours(format, '--memory-path', 'file'));
      results.set(`${format}, file, copied first`, await ours(format, '--pause-only-for-copy'));
    }
    // What reads through QEMU's mapping comes last: it leaves the memory file without holes.
    for (const format of FORMATS)
      for (const way of WAYS) results.set(`${format}, ${way}`, await ours(format, '--memory-path', way));
    const elf = await own('elf');
    const zlib = await own('kdump-zlib');
    const rawZlib = hasRaw ? await own('kdump-raw-zlib') : zlib;

    console.log(`QEMU ${version}, guest of 2 GiB, ${(nonZeroBytes / MIB).toFixed(0)} MiB of it not zero; in ${folder}`);
    console.log(`${''.padEnd(44)}${'time'.padStart(16)}  ${'guest paused'.padStart(16)}   size`);
    line('QEMU, elf', elf, elf);
    line('QEMU, kdump-zlib', zlib, zlib);
    line(hasRaw ? 'QEMU, kdump-raw-zlib' : 'QEMU has no kdump-raw-zlib: kdump-zlib', rawZlib, rawZlib);
    const aim = (name: string) =>
      name === 'kdump-zlib, file' ? ' (aim 0.30)' : name === 'kdump-zlib, file, copied first' ? ' (aim 0.10)' : '';
    for (const [name, result] of results) {
      const peer = name.startsWith('elf') ? elf : name.startsWith('kdump-raw-zlib') ? rawZlib : zlib;
      line(`vmcore, ${name}${aim(name)}`, result, peer);
    }
  } finally {
    await qemu.quit();
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
