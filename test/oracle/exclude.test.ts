/** Dumps that leave pages out, beside makedumpfile's, and in the hands of the programs that read them. */

import { execFileSync, spawnSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { type DumpSummary, dump } from '../../lib/dump.js';
import { PT_LOAD } from '../../lib/formats/elf.js';
import { findVmcoreinfo } from '../../lib/formats/vmcoreinfo.js';
import type { Guest } from '../../lib/model/guest.js';
import { inspect } from '../../lib/inspect.js';
import type { DumpRequest } from '../../lib/request.js';
import { openElfCore } from '../../lib/sources/elf/elf-core.js';
import { FileBacking } from '../../lib/io/file-backing.js';
import { openGuestDescription } from '../../lib/sources/description/guest-description.js';
import { openKdump } from '../../lib/sources/kdump/kdump-core.js';
import { openGuest } from '../../lib/open-guest.js';
import { bitRuns } from '../../lib/sources/kdump/page-bitmap.js';
import { type GuestName, missingTools, oracleGuest } from '../guests/oracle.js';
import { CLI, needsPython, needsTools, PYTHON, skipUnless } from '../tools.js';
import { plainly } from '../plain-chunk.js';

const folder = mkdtempSync(join(tmpdir(), 'vmcore-exclude-'));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));

const noGuests = (...names: GuestName[]) => skipUnless(names.flatMap((name) => missingTools(name)));
const noMakedumpfile = needsTools('makedumpfile');
const noPython = needsPython('drgn', 'kdumpfile');

async function open(name: GuestName): Promise<Guest> {
  return openGuestDescription((await oracleGuest(name)).path('guest.json'));
}

let files = 0;

/** Dumps a guest into a file of its own. */
async function write(guest: Guest, request: DumpRequest): Promise<{ path: string; summary: DumpSummary }> {
  const path = join(folder, `${++files}`);
  return { path, summary: await dump(guest, request, { file: path }).finished };
}

/** Has makedumpfile make a kdump of a vmcore. */
function makedumpfile(level: number, input: string): { status: number | null; path: string } {
  const path = join(folder, `${++files}`);
  return {
    status: spawnSync('makedumpfile', ['-l', '-d', String(level), input, path], { stdio: 'ignore' }).status,
    path,
  };
}

/** The pages below `end` that a kdump's second bitmap has, as runs. */
async function storedPages(path: string, end = Number.POSITIVE_INFINITY): Promise<string[]> {
  const { headers, close } = await headersOf(path);
  const file = FileBacking.open(path);
  const runs: string[] = [];
  for await (const run of bitRuns({ file, offset: headers.storedBitmapOffset, bits: Math.min(headers.maxMapnr, end) }))
    runs.push(`${run.start}-${run.end}`);
  file.close();
  close();
  return runs;
}

async function headersOf(path: string) {
  const guest = await openKdump(path);
  return { headers: guest.headers, close: () => guest.close() };
}

for (const [name, levels] of [
  ['linux-1cpu', [1, 17, 31]],
  ['linux-5g', [31]],
] as const)
  t.test(
    `${name}: a kdump stores the pages that makedumpfile stores`,
    { skip: noGuests(name) || noMakedumpfile },
    async (t) => {
      const guest = await open(name);
      const elf = await write(guest, {});
      for (const dumpLevel of levels) {
        const ours = await write(guest, { format: 'kdump-raw-lzo', dumpLevel });
        const theirs = makedumpfile(dumpLevel, elf.path);
        const { headers, close } = await headersOf(theirs.path);
        close();
        // makedumpfile stops where the kernel's pages end; QEMU's ROM below 4 GiB may be above that.
        const end = headers.maxMapnr;
        t.strictSame(await storedPages(ours.path, end), await storedPages(theirs.path, end), `level ${dumpLevel}`);
        const { pages } = ours.summary;
        t.equal(pages.data + pages.zero + (pages.excluded ?? 0), pages.total);
        const excluded = Object.values(pages.excludedByReason ?? {}).reduce((sum, count) => sum + count, 0);
        t.equal(excluded, pages.excluded, 'each page is left out for a reason');
        t.ok(dumpLevel === 1 || excluded > pages.total / 4, `${excluded} pages left out`);
        for (const { path } of [ours, theirs]) rmSync(path);
      }
      rmSync(elf.path);
      guest.close();
    },
  );

t.test(
  'of a kdump at level 1 makedumpfile loses no page; of one without a level the summary says what it would',
  { skip: noGuests('linux-1cpu') || noMakedumpfile },
  async (t) => {
    const guest = await open('linux-1cpu');
    const elf = await write(guest, {});
    const kdump = await write(guest, { format: 'kdump-raw-lzo', dumpLevel: 1 });
    const expected = await storedPages(makedumpfile(31, elf.path).path);
    t.strictSame(await storedPages(makedumpfile(31, kdump.path).path), expected);
    t.match(kdump.summary.pages, { deviceLeftOut: 64 });
    const whole = await write(guest, { format: 'kdump-raw-lzo' });
    t.match(whole.summary.pages, { deviceKept: 64 });
    const ours = await openGuest(whole.path);
    const filtered = await write(ours, { format: 'kdump-raw-lzo', dumpLevel: 31 });
    t.strictSame(await storedPages(filtered.path), expected, 'as we do ourselves');
    for (const each of [guest, ours]) each.close();
  },
);

t.test('zeros alone: the file that a dump without a level makes', { skip: noGuests('linux-1cpu') }, async (t) => {
  const guest = await open('linux-1cpu');
  const plain = await write(guest, { format: 'kdump-raw-snappy' });
  const level = await write(guest, { format: 'kdump-raw-snappy', dumpLevel: 1, keepDeviceMemory: true });
  t.equal(Buffer.compare(readFileSync(plain.path), readFileSync(level.path)), 0);
  guest.close();
});

const READ_ALL = `
import sys, kdumpfile
dump = kdumpfile.kdumpfile(sys.argv[1])
memory = open(sys.argv[2], 'rb')
kept = gone = 0
for pfn in range(int(sys.argv[3])):
    page = memory.read(4096)
    try:
        assert dump.read(kdumpfile.KDUMP_MACHPHYSADDR, pfn << 12, 4096) == page, hex(pfn)
        kept += 1
    except kdumpfile.exceptions.NoDataException:
        gone += 1
print(kept, gone)
`;

const READ_WITH_DRGN = `
import sys, drgn
program = drgn.Program()
program.set_core_dump(sys.argv[1])
assert program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
print(program.platform.arch.name, program.read(int(sys.argv[2], 16), 6))
`;

function python(script: string, ...args: readonly string[]): string {
  const run = spawnSync(PYTHON, ['-c', script, ...args], { encoding: 'utf8' });
  return run.stdout + run.stderr;
}

function utsSymbol(guest: Guest): string {
  return findVmcoreinfo(guest.notes)!.symbol('init_uts_ns')!.toString(16);
}

t.test(
  'libkdumpfile reads what is kept, and says what is not; drgn finds its way',
  { skip: noGuests('linux-1cpu') || noPython },
  async (t) => {
    const guest = await open('linux-1cpu');
    const { path, summary } = await write(guest, { format: 'kdump-raw-lzo', dumpLevel: 31 });
    const pages = guest.blocks[0]!.length / 4096;
    const ram = (await oracleGuest('linux-1cpu')).path('guest.ram');
    const { excluded = 0 } = summary.pages;
    t.equal(python(READ_ALL, path, ram, String(pages)), `${pages - excluded} ${excluded}\n`);
    t.equal(python(READ_WITH_DRGN, path, utsSymbol(guest)), "X86_64 b'Linux\\x00'\n");
    guest.close();
  },
);

t.test(
  'makedumpfile takes it, leaves out more, and puts flattened ones together',
  { skip: noGuests('linux-1cpu', 'linux-5g') || noMakedumpfile },
  async (t) => {
    const large = await open('linux-5g');
    const some = await write(large, { format: 'kdump-raw-lzo', dumpLevel: 17 });
    const more = await write(large, { format: 'kdump-raw-lzo', dumpLevel: 31 });
    const refiltered = makedumpfile(31, some.path);
    t.equal(refiltered.status, 0);
    t.strictSame(await storedPages(refiltered.path), await storedPages(more.path));
    large.close();

    const guest = await open('linux-1cpu');
    const raw = await write(guest, { format: 'kdump-raw-lzo', dumpLevel: 31 });
    const flattened = await write(guest, { format: 'kdump-lzo', dumpLevel: 31 });
    const stdin = openSync(flattened.path, 'r');
    const rearranged = join(folder, `${++files}`);
    execFileSync('makedumpfile', ['-R', rearranged], { stdio: [stdin, 'ignore', 'pipe'] });
    closeSync(stdin);
    t.equal(Buffer.compare(readFileSync(raw.path), readFileSync(rearranged)), 0);
    guest.close();
  },
);

t.test(
  'an ELF vmcore with segments that end: readelf, gdb, drgn, makedumpfile and we ourselves',
  { skip: noGuests('linux-1cpu') || noPython || noMakedumpfile || needsTools('readelf', 'gdb') },
  async (t) => {
    const guest = await open('linux-1cpu');
    const plain = await write(guest, { dumpLevel: 31 });
    const paging = await write(guest, { dumpLevel: 31, paging: true });
    const kept = await write(guest, { dumpLevel: 31, keepLayout: true });
    t.ok(statSync(plain.path).size < statSync(kept.path).size / 4, 'less in the file');
    t.equal(kept.summary.mappings, guest.blocks.length, 'the segments that a whole dump has');
    t.ok(plain.summary.mappings! > guest.blocks.length);

    for (const { path } of [plain, paging]) {
      const { status, stderr } = spawnSync('readelf', ['-aW', path], { encoding: 'utf8', maxBuffer: 1 << 28 });
      t.strictSame({ status, stderr }, { status: 0, stderr: '' }, 'readelf has nothing to complain of');
    }
    // The guest is idle, so its CPU is in the kernel, whose pages are all there.
    const commands = ['-ex', `core-file ${paging.path}`, '-ex', 'x/3i $rip'];
    const gdb = spawnSync('gdb', ['-nx', '-batch', ...commands], { encoding: 'utf8' });
    t.match(gdb.stdout, new RegExp(`=> 0x${guest.cpus[0]!.rip.toString(16)}:\\s+\\w`));
    t.notMatch(gdb.stdout + gdb.stderr, /Cannot access memory|\(bad\)/);
    t.equal(python(READ_WITH_DRGN, paging.path, utsSymbol(guest)), "X86_64 b'Linux\\x00'\n");

    const kdump = await write(guest, { format: 'kdump-raw-lzo', dumpLevel: 31 });
    for (const { path } of [plain, kept]) {
      // What it wrote says more than its exit code.
      const stored = await storedPages(makedumpfile(31, path).path);
      t.strictSame(stored, await storedPages(kdump.path, guest.blocks[0]!.length / 4096), 'nothing was lost');
    }
    const reopened = await openGuest(plain.path);
    const back = await openGuest(kdump.path);
    t.equal(await firstDifference(back, reopened), null, 'the ELF vmcore and the kdump have the same memory');
    for (const each of [guest, reopened, back]) each.close();
  },
);

/** PT_LOADs without their file offsets; what makedumpfile adds to the segment before is a segment of its own. */
async function segments(path: string): Promise<unknown[]> {
  const core = await openElfCore(path);
  core.close();
  return core.programHeaders.flatMap(({ type, vaddr, paddr, memsz, filesz }) => {
    if (type !== PT_LOAD) return [];
    const gap = { vaddr: vaddr + BigInt(filesz), paddr: paddr + filesz, memsz: memsz - filesz, filesz: 0 };
    return [...(filesz > 0 ? [{ vaddr, paddr, memsz: filesz, filesz }] : []), ...(memsz > filesz ? [gap] : [])];
  });
}

t.test(
  'segments end where those of makedumpfile -E end',
  { skip: noGuests('linux-1cpu') || noMakedumpfile },
  async (t) => {
    const guest = await open('linux-1cpu');
    const whole = await write(guest, {});
    // Not 31: it would end segments at zeros, too, for which it reads all memory twice.
    const ours = await write(guest, { dumpLevel: 30 });
    const theirs = join(folder, `${++files}`);
    t.equal(spawnSync('makedumpfile', ['-E', '-d', '30', whole.path, theirs]).status, 0);
    t.strictSame(await segments(ours.path), await segments(theirs));
    guest.close();
  },
);

/** Where one guest's memory is not in another; null when it is. */
async function firstDifference(from: Guest, inside: Guest): Promise<number | null> {
  for await (const { paddr, length, data, release } of plainly(from.chunks())) {
    const other = Buffer.alloc(data ? length : 0);
    if (data) inside.memory!.read(paddr, other);
    const differs = data && Buffer.compare(other, data) !== 0;
    release?.();
    if (differs) return paddr;
  }
  return null;
}

t.test(
  'a raw memory file and nothing else: VMCOREINFO is found, and drgn opens what is made',
  { skip: noGuests('linux-5g') || noPython },
  async (t) => {
    const oracle = await oracleGuest('linux-5g');
    const guest = await openGuestDescription(oracle.path('guest.json'));
    const path = join(folder, `${++files}`);
    const split = ['--below-4g', String(oracle.manifest.ram.below4g)];
    const args = ['dump', `raw:${oracle.path('guest.ram')}`, ...split, '-f', 'kdump-raw-lzo', '-d', '31', '-o', path];
    const { status, stdout, stderr } = spawnSync(process.execPath, [CLI, ...args], { encoding: 'utf8' });
    t.equal(status, 0, stderr);
    t.match(stdout, /^VMCOREINFO found in guest memory at 0x[0-9a-f]+$/m);
    t.match(stdout, /, \d+ left out \(\d+ cache, \d+ user, \d+ free\)$/m);
    t.equal(python(READ_WITH_DRGN, path, utsSymbol(guest)), "X86_64 b'Linux\\x00'\n");

    const found = await openGuest(path);
    t.strictSame(
      found.notes.map(({ raw }) => Buffer.from(raw)),
      guest.notes.map(({ raw }) => Buffer.from(raw)),
      'the note is the one that the kernel gave QEMU',
    );
    const described = await write(guest, { format: 'kdump-raw-lzo', dumpLevel: 31 });
    const end = oracle.manifest.ram.below4g / 4096;
    t.strictSame(await storedPages(path, end), await storedPages(described.path, end));
    for (const each of [found, guest]) each.close();
  },
);

t.test('inspect tells what would be left out, and what was', { skip: noGuests('linux-1cpu') }, async (t) => {
  const oracle = await oracleGuest('linux-1cpu');
  const guest = await open('linux-1cpu');
  const { path, summary } = await write(guest, { format: 'kdump-raw-lzo', dumpLevel: 31 });
  guest.close();
  const { excluded = 0, excludedByReason, data, zero, deviceLeftOut = 0 } = summary.pages;
  const total = summary.pages.total + deviceLeftOut;
  const whole = await inspect(oracle.path('guest.json'), { pages: true });
  t.match(whole.pages, { total, excluded: excludedByReason, kept: total - excluded, undecided: 0, vmcoreinfoAt: null });
  const made = await inspect(path, { pages: true });
  t.match(made.kdump, {
    excludes: ['zero', 'cache', 'cache-private', 'user', 'free'],
    pages: { memory: summary.pages.total, excluded, zero },
  });
  t.equal(made.kdump!.pages.plain + made.kdump!.pages.compressed, data);
  const { total: all, kept } = whole.pages!;
  const without = { ...whole.pages, total: all - deviceLeftOut, kept: kept - deviceLeftOut };
  t.strictSame(made.pages, without, 'what the kernel knows of its pages is kept');
  const raw = await inspect(`raw:${oracle.path('guest.ram')}`, { pages: true });
  t.match(raw.pages, { vmcoreinfoAt: /^0x/, excluded: excludedByReason });
  t.equal(raw.vmcoreinfo?.osRelease, whole.vmcoreinfo?.osRelease);
});

t.test(
  'what a partial dump lacks stays left out of what is made of it',
  { skip: noGuests('linux-1cpu') },
  async (t) => {
    const guest = await open('linux-1cpu');
    const request = { format: 'kdump-raw-lzo', dumpLevel: 31, keepDeviceMemory: true } as const;
    const { path, summary } = await write(guest, request);
    const partial = await openGuest(path);
    const kdump = await write(partial, { format: 'kdump-raw-zlib' });
    t.strictSame(await storedPages(kdump.path), await storedPages(path));
    const { headers, close } = await headersOf(kdump.path);
    t.equal(headers.subHeader?.dumpLevel, 31);
    close();
    t.match(kdump.summary.pages, { excluded: summary.pages.excluded, zero: summary.pages.zero });
    const elf = await write(partial, {});
    t.match(elf.summary, { pages: { excludedByReason: { missing: summary.pages.excluded } }, warnings: [] });
    const direct = await write(guest, { dumpLevel: 31 });
    t.equal(elf.summary.size, direct.summary.size, 'the ELF vmcore that the guest itself makes at that level');
    for (const each of [guest, partial]) each.close();
  },
);
