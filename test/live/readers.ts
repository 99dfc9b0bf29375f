/**
 * The programs that vmcores are for, on every format of one pause of a live Linux guest: each has to find what QEMU's own
 * dump of that pause has.
 */

import { execFileSync, spawnSync } from 'node:child_process';
import { closeSync, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import { findVmcoreinfo } from '../../lib/formats/vmcoreinfo.js';
import { FORMATS, type Format } from '../../lib/plan.js';
import { openGuest } from '../../lib/sources/open.js';
import { readElf } from '../guests/elf-oracle.js';
import { findBanner } from '../oracle/linux-banner.js';
import { needsPython, needsTools } from '../tools.js';
import { dumpLive, type LiveGuest, type ReaderPrograms } from './live-qemu.js';

/** Formats of Linux guests. */
export const LINUX_FORMATS = FORMATS.filter((format) => format !== 'win-dmp');

/** What is known of the guest, by QEMU's own dump. */
interface Expected {
  /** QEMU's own ELF dump of the same pause */
  readonly elf: string;
  /** `uname -r` */
  readonly release: string;
  /** linux_banner: what it says and where it is in physical memory */
  readonly banner: { readonly text: string; readonly paddr: number };
  /** virtual address of init_uts_ns, which begins with "Linux" */
  readonly uts: bigint;
  /** instruction pointers of the CPUs */
  readonly rips: readonly bigint[];
}

async function expectedOf(elf: string): Promise<Expected> {
  const guest = await openGuest(elf);
  const info = findVmcoreinfo(guest.notes)!;
  const banner = findBanner(guest.memory!);
  const rips = guest.cpus.map(({ rip }) => rip);
  guest.close();
  return { elf, release: info.get('OSRELEASE')!, banner, uts: info.symbol('init_uts_ns')!, rips };
}

/** Files of ours, by format; and the ELF with virtual addresses. */
type Files = Readonly<Record<Format | 'paging', string>>;

/** What is asked of the readers. */
export interface ReaderChecks {
  /** QEMU's own ELF dump of the same pause */
  readonly elf: string;
  readonly programs: ReaderPrograms;
  /**
   * Whether makedumpfile takes kdumps of the guest: it does where RAM goes on above 4 GiB (test/oracle/kdump.test.ts has
   * the reason).
   */
  readonly refilters: boolean;
}

/** Dumps the guest in every format, and has every reader look at what it can read. */
export async function checkReaders(
  t: Test,
  live: LiveGuest,
  { elf, programs, refilters }: ReaderChecks,
): Promise<void> {
  const expected = await expectedOf(elf);
  const file = (name: string) => join(live.folder, `read-${name}`);
  const files = Object.fromEntries([...FORMATS, 'paging'].map((name) => [name, file(name)])) as Files;
  for (const format of LINUX_FORMATS) await dumpLive(live, {}, { format }, files[format]);
  await dumpLive(live, {}, { paging: true }, files.paging);
  await checkElf(t, files, expected);
  await checkMakedumpfile(t, files, programs, refilters);
  await checkPython(t, files, programs, expected);
  for (const path of Object.values(files)) rmSync(path, { force: true });
}

async function checkElf(t: Test, { elf, paging, ...others }: Files, expected: Expected): Promise<void> {
  await t.test('readelf', { skip: needsTools('readelf') }, async (t) => {
    for (const path of [elf, paging]) {
      const { stdout, stderr } = spawnSync('readelf', ['-aW', path], { encoding: 'utf8', maxBuffer: 1 << 28 });
      t.equal(stderr, '', 'has nothing to complain of');
      t.match(stdout, /VMCOREINFO/);
    }
  });
  await t.test('gdb', { skip: needsTools('gdb') }, async (t) => {
    const commands = [`core-file ${paging}`, 'thread apply all p/x $rip', `x/s 0x${expected.uts.toString(16)}`];
    const args = ['-nx', '-batch', ...commands.flatMap((command) => ['-ex', command])];
    const { stdout } = spawnSync('gdb', args, { encoding: 'utf8' });
    for (const rip of expected.rips) t.match(stdout, `= 0x${rip.toString(16)}\n`, 'the registers of a CPU');
    t.match(stdout, `0x${expected.uts.toString(16)}:\t"Linux"`, 'memory, by its virtual address');
  });
  await t.test('crash', { skip: needsTools('crash') }, async (t) => {
    for (const format of LINUX_FORMATS) {
      const path = format === 'elf' ? elf : others[format];
      const { stdout } = spawnSync('crash', ['--osrelease', path], { encoding: 'utf8' });
      t.equal(stdout.trim(), expected.release, format);
    }
  });
}

async function checkMakedumpfile(
  t: Test,
  files: Files,
  { makedumpfile }: ReaderPrograms,
  refilters: boolean,
): Promise<void> {
  await t.test('makedumpfile', { skip: needsTools(makedumpfile) }, async (t) => {
    for (const codec of ['zlib', 'lzo', 'snappy'] as const) {
      const whole = rearrange(makedumpfile, files[`kdump-${codec}`]);
      t.ok(sameBytes(whole, files[`kdump-raw-${codec}`]), `-R makes kdump-raw-${codec} of kdump-${codec}`);
      rmSync(whole);
    }
    const filtered = refilter(makedumpfile, files.elf);
    // Debian's makedumpfile is built without Snappy.
    for (const format of refilters ? (['kdump-raw-zlib', 'kdump-raw-lzo'] as const) : []) {
      const again = refilter(makedumpfile, files[format]);
      t.ok(sameBytes(again, filtered), `-d 31 makes of ${format} what it makes of the ELF`);
      rmSync(again);
    }
    rmSync(filtered);
  });
}

/** Puts a flattened file together. */
function rearrange(makedumpfile: string, flattened: string): string {
  const path = `${flattened}.rearranged`;
  const stdin = openSync(flattened, 'r');
  execFileSync(makedumpfile, ['-R', '-f', path], { stdio: [stdin, 'ignore', 'pipe'] });
  closeSync(stdin);
  return path;
}

/** Leaves out what nobody debugs. */
function refilter(makedumpfile: string, input: string): string {
  const path = `${input}.filtered`;
  execFileSync(makedumpfile, ['-l', '-d', '31', '-f', input, path], { stdio: ['ignore', 'ignore', 'pipe'] });
  return path;
}

function sameBytes(a: string, b: string): boolean {
  return spawnSync('cmp', [a, b]).status === 0;
}

/** Every page of memory, by libkdumpfile, beside what QEMU has in its ELF. */
const READ_PAGES = `
import sys, kdumpfile
qemu = open(sys.argv[1], 'rb')
blocks = [[int(number) for number in block.split(':')] for block in sys.argv[2].split(',')]
for path in sys.argv[3:]:
    dump = kdumpfile.kdumpfile(path)
    for base, length, offset in blocks:
        qemu.seek(offset)
        for paddr in range(base, base + length, 4096):
            assert dump.read(kdumpfile.KDUMP_MACHPHYSADDR, paddr, 4096) == qemu.read(4096), (path, hex(paddr))
    print('all equal')
`;

/** A line for each file: what a physical address has, and a virtual one. */
const READ_WITH_DRGN = `
import sys, drgn
for path in sys.argv[3:]:
    program = drgn.Program()
    program.set_core_dump(path)
    assert program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
    print(program.read(int(sys.argv[1], 16), 200, True).split(b'\\n')[0].decode())
    # An ELF without virtual addresses has physical memory only.
    print('Linux' if path.endswith('elf') else program.read(int(sys.argv[2], 16), 5).decode())
`;

/** What is read by the modules of Python: flattened files only where their libkdumpfile knows them. */
async function checkPython(
  t: Test,
  files: Files,
  { python, readsFlattened }: ReaderPrograms,
  { elf, banner, uts }: Expected,
): Promise<void> {
  const formats = LINUX_FORMATS.filter((format) => readsFlattened || !/^kdump-(?!raw)/.test(format));
  const paths = [...formats.map((format) => files[format]), files.paging];
  const run = (script: string, args: readonly string[]) =>
    spawnSync(python, ['-c', script, ...args], { encoding: 'utf8' });
  await t.test('libkdumpfile', { skip: needsPython('kdumpfile') }, async (t) => {
    const blocks = readElf(elf).loads.map(({ paddr, filesz, offset }) => [paddr, filesz, offset].join(':'));
    const kdumps = paths.filter((path) => path !== files.paging);
    const { stdout, stderr } = run(READ_PAGES, [elf, blocks.join(','), ...kdumps]);
    t.equal(stdout, 'all equal\n'.repeat(kdumps.length), `every page of ${formats.join(', ')}: ${stderr}`);
  });
  await t.test('drgn', { skip: needsPython('drgn') }, async (t) => {
    const { stdout, stderr } = run(READ_WITH_DRGN, [banner.paddr.toString(16), uts.toString(16), ...paths]);
    t.equal(stdout, `${banner.text}\nLinux\n`.repeat(paths.length), `${formats.join(', ')}: ${stderr}`);
  });
}
