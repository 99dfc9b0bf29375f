/**
 * The programs that vmcores are for, on every format of one pause of a live Linux guest: each has to find what QEMU's own
 * dump of that pause has.
 */

import { execFileSync, spawnSync } from 'node:child_process';
import { closeSync, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import { findVmcoreinfo } from '../../lib/formats/vmcoreinfo.js';
import { FORMATS, type Format } from '../../lib/request.js';
import { openGuest } from '../../lib/open-guest.js';
import { readElf } from '../guests/elf-oracle.js';
import { findBanner } from '../oracle/linux-banner.js';
import { needsPython, needsTools } from '../tools.js';
import { dumpLive, type LiveGuest, type ReaderPrograms } from './live-qemu.js';

/** Formats of Linux guests. */
const LINUX_FORMATS = FORMATS.filter((format) => format !== 'win-dmp');

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

/** Dumps of a guest by format, and an ELF with virtual addresses. */
export interface Dumps {
  readonly byFormat: ReadonlyMap<Format, string>;
  readonly paging: string;
}

/** Dumps a guest for the readers, in every format of Linux guests. */
export async function dumpForReaders(live: LiveGuest): Promise<Dumps> {
  const byFormat = new Map(LINUX_FORMATS.map((format) => [format, join(live.folder, `read-${format}`)]));
  const paging = join(live.folder, 'read-paging');
  for (const [format, path] of byFormat) await dumpLive(live, {}, { format }, path);
  await dumpLive(live, {}, { paging: true }, paging);
  return { byFormat, paging };
}

/** Has every reader look at what it can read; removes the dumps. */
export async function checkReaders(t: Test, dumps: Dumps, checks: ReaderChecks): Promise<void> {
  const { elf, programs, refilters } = checks;
  const expected = await expectedOf(elf);
  await checkElf(t, dumps, expected);
  await checkCrash(t, dumps, expected);
  await checkMakedumpfile(t, dumps, programs, refilters);
  await checkPages(t, dumps, programs, expected);
  await checkDrgn(t, dumps, programs, expected);
  for (const path of [...dumps.byFormat.values(), dumps.paging]) rmSync(path);
}

async function checkElf(t: Test, { byFormat, paging }: Dumps, { uts, rips }: Expected): Promise<void> {
  await t.test('readelf', { skip: needsTools('readelf') }, async (t) => {
    for (const path of [byFormat.get('elf')!, paging]) {
      const { stdout, stderr } = spawnSync('readelf', ['-aW', path], { encoding: 'utf8', maxBuffer: 1 << 28 });
      t.equal(stderr, '', 'has nothing to complain of');
      t.match(stdout, /VMCOREINFO/);
    }
  });
  await t.test('gdb', { skip: needsTools('gdb') }, async (t) => {
    const commands = [`core-file ${paging}`, 'thread apply all p/x $rip', `x/s ${hex(uts)}`];
    const args = ['-nx', '-batch', ...commands.flatMap((command) => ['-ex', command])];
    const { stdout } = spawnSync('gdb', args, { encoding: 'utf8' });
    for (const rip of rips) t.match(stdout, `= ${hex(rip)}\n`, 'the registers of a CPU');
    t.match(stdout, `${hex(uts)}:\t"Linux"`, 'memory, by its virtual address');
  });
}

async function checkCrash(t: Test, { byFormat }: Dumps, { release }: Expected): Promise<void> {
  await t.test('crash', { skip: needsTools('crash') }, async (t) => {
    for (const [format, path] of byFormat)
      t.equal(spawnSync('crash', ['--osrelease', path], { encoding: 'utf8' }).stdout.trim(), release, format);
  });
}

async function checkMakedumpfile(
  t: Test,
  { byFormat }: Dumps,
  { makedumpfile }: ReaderPrograms,
  refilters: boolean,
): Promise<void> {
  await t.test('makedumpfile', { skip: needsTools(makedumpfile) }, async (t) => {
    for (const [format, path] of byFormat) {
      const raw = FLATTENED.test(format) && byFormat.get(format.replace('kdump-', 'kdump-raw-') as Format);
      if (!raw) continue;
      const whole = rearrange(makedumpfile, path);
      t.ok(sameBytes(whole, raw), `-R makes of ${format} what is written without it`);
      rmSync(whole);
    }
    const filtered = refilter(makedumpfile, byFormat.get('elf')!);
    for (const [format, path] of byFormat) {
      if (!refilters || !REFILTERED.test(format)) continue;
      const again = refilter(makedumpfile, path);
      t.ok(sameBytes(again, filtered), `-d 31 makes of ${format} what it makes of the ELF`);
      rmSync(again);
    }
    rmSync(filtered);
  });
}

/** makedumpfile's flattened format. */
const FLATTENED = /^kdump-(?!raw)/;

/** What makedumpfile takes again. Debian's is built without Snappy. */
const REFILTERED = /^kdump-raw-(zlib|lzo)$/;

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
STEP = 1 << 20
qemu = open(sys.argv[1], 'rb')
blocks = [[int(number) for number in block.split(':')] for block in sys.argv[2].split(',')]
for path in sys.argv[3:]:
    dump = kdumpfile.kdumpfile(path)
    for base, length, offset in blocks:
        qemu.seek(offset)
        for paddr in range(base, base + length, STEP):
            size = min(STEP, base + length - paddr)
            assert dump.read(kdumpfile.KDUMP_MACHPHYSADDR, paddr, size) == qemu.read(size), (path, hex(paddr))
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

/** What the modules of Python read: flattened files only where their libkdumpfile knows them. */
function readByPython({ byFormat }: Dumps, { readsFlattened }: ReaderPrograms): string[] {
  return [...byFormat].filter(([format]) => readsFlattened || !FLATTENED.test(format)).map(([, path]) => path);
}

/** What is whole in a flattened file is whole in the raw one, too: makedumpfile -R makes the one of the other. */
async function checkPages(t: Test, dumps: Dumps, programs: ReaderPrograms, { elf }: Expected): Promise<void> {
  await t.test('libkdumpfile', { skip: needsPython('kdumpfile') }, async (t) => {
    const { readsFlattened } = programs;
    const paths = [...dumps.byFormat]
      .filter(([format]) => FLATTENED.test(format) === readsFlattened)
      .map(([, path]) => path);
    const blocks = readElf(elf).loads.map(({ paddr, filesz, offset }) => [paddr, filesz, offset].join(':'));
    const { stdout, stderr } = runPython(programs, READ_PAGES, [elf, blocks.join(','), ...paths]);
    t.equal(stdout, 'all equal\n'.repeat(paths.length), `every page of ${paths.length} files: ${stderr}`);
  });
}

async function checkDrgn(t: Test, dumps: Dumps, programs: ReaderPrograms, { banner, uts }: Expected): Promise<void> {
  await t.test('drgn', { skip: needsPython('drgn') }, async (t) => {
    const paths = [...readByPython(dumps, programs), dumps.paging];
    const { stdout, stderr } = runPython(programs, READ_WITH_DRGN, [hex(banner.paddr), hex(uts), ...paths]);
    t.equal(stdout, `${banner.text}\nLinux\n`.repeat(paths.length), `${paths.length} files: ${stderr}`);
  });
}

function runPython({ python }: ReaderPrograms, script: string, args: readonly string[]) {
  return spawnSync(python, ['-c', script, ...args], { encoding: 'utf8' });
}

function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}
