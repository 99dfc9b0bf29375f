/**
 * The Windows oracle: paused guests that look like Windows to a dumper (bare-metal/win*.S), and what QEMU's win-dmp
 * makes of each, and of each with something in its memory changed. Cached as the other oracle guests are (oracle.ts),
 * of which these are not: what is in the table there is dumped in all the other formats.
 *
 * | file                | what |
 * | ------------------- | ---- |
 * | guest.json          | the guest description, a source for `vmcore dump` |
 * | guest.ram, rom.bin, registers.txt, vmcoreinfo.note, qemu.elf | as in oracle.ts |
 * | qemu.win-dmp        | QEMU's win-dmp |
 * | qemu-CASE.win-dmp   | the same with the patches of a case in memory |
 * | manifest.json       | `WindowsManifest` |
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { closeSync, openSync, readFileSync, readSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { assemble, bareMetalSources, bootBareMetal } from './bare-metal.js';
import { type ElfOracle, readElf } from './elf-oracle.js';
import { makeOnce } from './make-once.js';
import { cacheFolder, GUESTS_SOURCE } from './places.js';
import { type Qemu, type QemuOptions, QmpError } from './qemu.js';

const MIB = 2 ** 20;
const FOUR_GIB = 2 ** 32;

/** RAM in two parts of 17 MiB. */
const BELOW_4G = 17 * MIB;
const QEMU: QemuOptions = {
  machine: 'pc',
  machineOptions: ['max-ram-below-4g=17M'],
  memory: 34 * MIB,
  args: ['-device', 'vmcoreinfo'],
};

export const WINDOWS_GUESTS = {
  'win-64': { bits: 64, cpus: 1 },
  'win-64-smp': { bits: 64, cpus: 2 },
  'win-32': { bits: 32, cpus: 1 },
  'win-32-pae': { bits: 32, cpus: 1 },
} as const;
export type WindowsGuestName = keyof typeof WINDOWS_GUESTS;
export const WINDOWS_GUEST_NAMES = Object.keys(WINDOWS_GUESTS) as WindowsGuestName[];

/** Where win.inc puts things: physical addresses, but for `kern` and `kdbg`, which are virtual. */
export const WINDOWS_PLACES = {
  note: 0x300000,
  header: 0x300018,
  ownerTag: 0x310e10,
  bugcheckPointer: 0x310e88,
  processorBlockPointer: 0x318018,
  processorBlock: 0x311100,
  bugcheckData: 0x311ff0,
  contextPointer: 0x312120,
  /** offsets from `kern` of what is not mapped, and of what is mapped to nothing */
  unmapped: 0x30000,
  nowhere: 0x20000,
} as const;

/** Offsets of header fields that cases change. */
const FIELDS = {
  64: { KdDebuggerDataBlock: 0x80, NumberProcessors: 0x34, NumberOfRuns: 0x88, BugcheckParameter1: 0x40 },
  32: { KdDebuggerDataBlock: 0x60, NumberProcessors: 0x24, NumberOfRuns: 0x64, BugcheckParameter1: 0x2c },
} as const;

/** Bytes put into the guest's memory before a dump. */
export interface Patch {
  readonly paddr: number;
  /** hexadecimal */
  readonly bytes: string;
}

export interface WindowsCase {
  readonly about: string;
  readonly patches: readonly Patch[];
  /** Absent where QEMU refused. */
  readonly file?: string;
  /** What QEMU said when it refused. */
  readonly error?: string;
}

export interface WindowsManifest {
  readonly name: WindowsGuestName;
  readonly qemu: string;
  readonly bits: 64 | 32;
  /** The first is the guest as it is, `qemu.win-dmp`. */
  readonly cases: readonly WindowsCase[];
}

export interface WindowsGuest {
  readonly folder: string;
  readonly manifest: WindowsManifest;
  /** The path of a file of the folder. */
  path(file: string): string;
}

const inFlight = new Map<WindowsGuestName, Promise<WindowsGuest>>();

/** The guest, made when nobody has made it before. */
export function windowsGuest(name: WindowsGuestName): Promise<WindowsGuest> {
  const guest = inFlight.get(name) ?? findOrMake(name);
  inFlight.set(name, guest);
  return guest;
}

async function findOrMake(name: WindowsGuestName): Promise<WindowsGuest> {
  const qemu = execFileSync('qemu-system-x86_64', ['--version'], { encoding: 'utf8' }).split('\n')[0]!;
  const folder = join(cacheFolder(), `${name}-${fingerprint(name, qemu)}`);
  await makeOnce(folder, (into) => make(name, qemu, into));
  const path = (file: string) => join(folder, file);
  return { folder, path, manifest: JSON.parse(readFileSync(path('manifest.json'), 'utf8')) as WindowsManifest };
}

function fingerprint(name: WindowsGuestName, qemu: string): string {
  const sources = bareMetalSources(name);
  const modules = ['windows', 'bare-metal'].map((module) => join(GUESTS_SOURCE, `${module}.ts`));
  const hash = createHash('sha256').update(`${name} ${qemu}`);
  for (const source of [...modules, ...sources, join(dirname(sources[0]!), 'win.inc')])
    hash.update(readFileSync(source));
  return hash.digest('hex').slice(0, 12);
}

/** Boots a guest, whose kernel is made in the folder `into`. It is not paused. */
export function bootWindows(
  name: WindowsGuestName,
  into: string,
  { args = [], ...options }: Partial<QemuOptions> = {},
): Promise<Qemu> {
  const { cpus } = WINDOWS_GUESTS[name];
  return bootBareMetal(assemble(name, into), { ...QEMU, cpus, ...options, args: [...QEMU.args!, ...args] });
}

async function make(name: WindowsGuestName, version: string, into: string): Promise<void> {
  const { bits, cpus } = WINDOWS_GUESTS[name];
  const qemu = await bootWindows(name, into);
  try {
    await qemu.stop();
    const ram = readFileSync(qemu.ramFile);
    execFileSync('cp', ['--sparse=always', qemu.ramFile, join(into, 'guest.ram')]);
    await describe(qemu, bits, ram, into);
    const cases: WindowsCase[] = [];
    for (const [about, patches] of Object.entries(casesOf(bits, cpus)))
      cases.push({ about, patches, ...(await dumpPatched(qemu, ram, patches, about, into)) });
    const manifest: WindowsManifest = { name, qemu: version, bits, cases };
    writeFileSync(join(into, 'manifest.json'), `${JSON.stringify(manifest, undefined, 2)}\n`);
  } finally {
    await qemu.quit();
  }
}

/** The guest description, and QEMU's ELF. */
async function describe(qemu: Qemu, bits: 64 | 32, ram: Buffer, into: string): Promise<void> {
  const file = (name: string) => join(into, name);
  writeFileSync(file('registers.txt'), await qemu.hmp('info registers -a'));
  const dense = `${qemu.ramFile}.elf`;
  await qemu.dump({ paging: false, file: dense });
  execFileSync('cp', ['--sparse=always', dense, file('qemu.elf')]);
  rmSync(dense, { force: true });
  const elf = readElf(file('qemu.elf'));
  const note = elf.notes.find(({ name }) => name === 'VMCOREINFO');
  if (note === undefined) throw new Error('the guest has not announced its note');
  writeFileSync(file('vmcoreinfo.note'), note.raw);
  const description = {
    version: 1,
    arch: bits === 64 ? 'x86_64' : 'i386',
    memory: placeBlocks(elf, ram, file('rom.bin')),
    registers: 'registers.txt',
    vmcoreinfo: 'vmcoreinfo.note',
  };
  writeFileSync(file('guest.json'), `${JSON.stringify(description, undefined, 2)}\n`);
}

/** The blocks of QEMU's ELF; those whose bytes are not those of the RAM file come from rom.bin. */
function placeBlocks(elf: ElfOracle, ram: Buffer, rom: string) {
  const roms: Buffer[] = [];
  const core = openSync(elf.path, 'r');
  const blocks = elf.loads.map(({ paddr, memsz, offset: at }) => {
    const [base, length] = [Number(paddr), Number(memsz)];
    const bytes = Buffer.alloc(length);
    readSync(core, bytes, 0, length, Number(at));
    let offset = base < FOUR_GIB ? base : base - FOUR_GIB + BELOW_4G;
    const isRam = bytes.equals(ram.subarray(offset, offset + length));
    if (!isRam) {
      offset = roms.reduce((sum, { length }) => sum + length, 0);
      roms.push(bytes);
    }
    return { base, length, file: isRam ? 'guest.ram' : 'rom.bin', offset };
  });
  closeSync(core);
  writeFileSync(rom, Buffer.concat(roms));
  return blocks;
}

/** Has QEMU dump the guest with patches in its memory, and puts the memory right again. */
async function dumpPatched(
  qemu: Qemu,
  ram: Buffer,
  patches: readonly Patch[],
  about: string,
  into: string,
): Promise<Pick<WindowsCase, 'file' | 'error'>> {
  const file = patches.length === 0 ? 'qemu.win-dmp' : `qemu-${about.replaceAll(/\W+/g, '-')}.win-dmp`;
  const dense = `${qemu.ramFile}.dmp`;
  write(qemu, (fd) => {
    for (const { paddr, bytes } of patches) writeSync(fd, Buffer.from(bytes, 'hex'), 0, undefined, paddr);
  });
  try {
    await qemu.execute('dump-guest-memory', { paging: false, protocol: `file:${dense}`, format: 'win-dmp' });
    execFileSync('cp', ['--sparse=always', '--no-preserve=mode', dense, join(into, file)]);
    return { file };
  } catch (error) {
    if (error instanceof QmpError) return { error: error.desc };
    throw error;
  } finally {
    rmSync(dense, { force: true });
    write(qemu, (fd) => writeSync(fd, ram, 0, undefined, 0));
  }
}

function write(qemu: Qemu, work: (fd: number) => void): void {
  const fd = openSync(qemu.ramFile, 'r+');
  work(fd);
  closeSync(fd);
}

/** What is tried, by what it is about. None of it crashes QEMU 7.2, or has it write where it should not. */
function casesOf(bits: 64 | 32, cpus: number): Record<string, Patch[]> {
  const { note, header, ...places } = WINDOWS_PLACES;
  const fields = FIELDS[bits];
  const kern = bits === 64 ? 0xfffff80000000000n : 0x80400000n;
  const text = (paddr: number, value: string): Patch => ({ paddr, bytes: Buffer.from(value).toString('hex') });
  const u32 = (paddr: number, value: number): Patch => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value);
    return { paddr, bytes: bytes.toString('hex') };
  };
  const pointer = (paddr: number, offset: number): Patch => {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(kern + BigInt(offset));
    return { paddr, bytes: bytes.subarray(0, bits / 8).toString('hex') };
  };
  const field = (name: keyof typeof fields) => header + fields[name];
  const { unmapped, nowhere } = places;
  return {
    live: [],
    'a bugcheck': [u32(places.bugcheckData, 0x1e)],
    'KDBG by BugcheckParameter1': [pointer(field('KdDebuggerDataBlock'), 0x12000)],
    'frame over KDBG': [pointer(places.contextPointer, 0x10e00)],
    'frame over KiProcessorBlock': [pointer(places.contextPointer, 0x12080)],
    'no bugcheck data': [pointer(places.bugcheckPointer, unmapped)],
    'no runs': [u32(field('NumberOfRuns'), 0)],
    'one run': [u32(field('NumberOfRuns'), 1)],
    'a longer name': [u32(note, 9)],
    ...(cpus > 1 ? { 'more CPUs than processors': [u32(field('NumberProcessors'), 1)] } : {}),
    'a note too short': [u32(note + 4, 0xffc)],
    'a name too short': [u32(note, 8)],
    'another signature': [text(header, 'PAGF')],
    'another ValidDump': [text(header + 4, 'DU65')],
    'a signature that is no text': [u32(header, 0x00c3_2841)],
    'KDBG not mapped': [pointer(field('KdDebuggerDataBlock'), unmapped)],
    'KDBG where nothing is': [pointer(field('KdDebuggerDataBlock'), nowhere)],
    'no KDBG': [text(places.ownerTag, 'XDBG')],
    'no KDBG at either place': [
      pointer(field('KdDebuggerDataBlock'), 0x12000),
      pointer(field('BugcheckParameter1'), 0x14000),
    ],
    'the second KDBG not mapped': [
      pointer(field('KdDebuggerDataBlock'), 0x12000),
      pointer(field('BugcheckParameter1'), unmapped),
    ],
    'KDBG ends too early': [pointer(field('KdDebuggerDataBlock'), 0x19f00), text(0x31bf10, 'KDBG')],
    'no KPRCBs': [pointer(places.processorBlockPointer, unmapped)],
    'no KPRCB': [pointer(places.processorBlock, unmapped)],
    'no frame': [pointer(places.contextPointer, unmapped)],
    'half a frame': [pointer(places.contextPointer, 0x19f00)],
    'a frame where nothing is': [pointer(places.contextPointer, nowhere)],
  };
}
