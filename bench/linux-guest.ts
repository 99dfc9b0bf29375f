/**
 * A paused Linux guest under QEMU whose memory is as full as that of a machine in use: its free memory is overwritten,
 * from the host, with the files of this machine, which is what a page cache would have there.
 */

import { closeSync, openSync, readdirSync, readFileSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { nonZeroRuns } from '../lib/model/zeros.js';
import { readElf } from '../test/guests/elf-oracle.js';
import { bootLinux, linuxKernel } from '../test/guests/linux.js';
import { cacheFolder } from '../test/guests/places.js';
import type { Qemu, QemuOptions } from '../test/guests/qemu.js';
import { trixie } from '../test/guests/trixie.js';

const MIB = 1 << 20;

/** A paused guest, and how to dump it with us. */
export interface LinuxGuest {
  readonly qemu: Qemu;
  /** arguments for `vmcore dump` */
  readonly source: readonly string[];
  /** bytes of memory that are not zero */
  readonly nonZeroBytes: number;
  /** of QEMU, as 7.2 */
  readonly version: string;
  /** Whether QEMU has the kdump-raw formats (since 9.0). */
  readonly hasRaw: boolean;
}

/** The QEMU that `-- trixie` on the command line asks for, which has kdump-raw-zlib; else the machine's. */
async function chosenQemu(): Promise<Pick<QemuOptions, 'binary'>> {
  return process.argv[2] === 'trixie' ? { binary: (await trixie()).qemu } : {};
}

/** Boots, fills and describes a guest. Its files go to `folder`. @param options more of QEMU's */
export async function bootFullLinux(
  folder: string,
  memory: number,
  filled: number,
  { args = [] }: Pick<QemuOptions, 'args'> = {},
): Promise<LinuxGuest> {
  const qemu = await bootLinux(await linuxKernel(cacheFolder()), {
    machine: 'pc',
    memory,
    cpu: 'max,la57=off',
    args: ['-device', 'vmcoreinfo', ...args],
    base: folder,
    ...(await chosenQemu()),
  });
  await qemu.stop();
  const nonZeroBytes = fillFreeMemory(qemu.ramFile, memory, filled);
  const registers = join(folder, 'registers.txt');
  writeFileSync(registers, await qemu.hmp('info registers -a'));
  const vmcoreinfo = join(folder, 'vmcoreinfo.note');
  writeFileSync(vmcoreinfo, await vmcoreinfoOf(qemu, folder));
  const source = [`raw:${qemu.ramFile}`, '--registers', registers, '--vmcoreinfo', vmcoreinfo];
  const { major, minor } = (await qemu.execute<{ qemu: { major: number; minor: number } }>('query-version')).qemu;
  return { qemu, source, nonZeroBytes, version: `${major}.${minor}`, hasRaw: major >= 9 };
}

/** From a dump of one page, which has all the notes and leaves the memory file as sparse as it is. */
async function vmcoreinfoOf(qemu: Qemu, folder: string): Promise<Buffer> {
  const file = join(folder, 'notes.elf');
  await qemu.dump({ paging: false, file, begin: 0, length: 4096 });
  return readElf(file).notes.find(({ name }) => name === 'VMCOREINFO')!.raw;
}

/** Overwrites MiBs that are all zero, until `target` bytes are not. @returns bytes that are not zero */
function fillFreeMemory(ram: string, size: number, target: number): number {
  const fd = openSync(ram, 'r+');
  const files = fileBytes();
  const window = Buffer.alloc(MIB);
  let used = 0;
  const free: number[] = [];
  for (let at = 0; at < size; at += MIB) {
    readSync(fd, window, 0, MIB, at);
    const runs = nonZeroRuns(window, 0);
    used += runs.reduce((sum, run) => sum + run.end - run.start, 0);
    if (runs.length === 0) free.push(at);
  }
  for (const at of free) {
    if (used >= target) break;
    const { value } = files.next();
    if (!value) break;
    writeSync(fd, value, 0, value.length, at);
    used += nonZeroRuns(value, 0).reduce((sum, run) => sum + run.end - run.start, 0);
  }
  closeSync(fd);
  return used;
}

/** The files of this machine, a MiB at a time. */
function* fileBytes(): Generator<Buffer, undefined> {
  for (const folder of ['/usr/bin', '/usr/lib/x86_64-linux-gnu', '/usr/share/doc', '/usr/include'])
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      if (!entry.isFile()) continue;
      const bytes = readFileSync(join(folder, entry.name));
      for (let at = 0; at + MIB <= bytes.length; at += MIB) yield bytes.subarray(at, at + MIB);
    }
}
