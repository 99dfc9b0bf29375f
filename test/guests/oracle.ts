/**
 * The oracle: what one paused guest is (its RAM and registers) and what QEMU makes of it, in one cached folder.
 *
 * | file                     | what |
 * | ------------------------ | ---- |
 * | guest.json               | the guest description, a source for `vmcore dump` |
 * | guest.ram                | the RAM file, copied before any dump, sparse |
 * | rom.bin                  | blocks that QEMU dumps and that are not in the RAM file |
 * | registers.txt            | HMP `info registers -a` |
 * | vmcoreinfo.note          | the whole ELF note, where the guest has one |
 * | qemu.elf                 | QEMU's dump |
 * | qemu-paging.elf          | the same with `paging`; not of hostile guests |
 * | qemu-range-N[-paging].elf | with `begin` and `length` |
 * | qemu.kdump-zlib          | the flattened kdump |
 * | manifest.json            | `OracleManifest` |
 *
 * All of it is taken in one pause.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { assemble, bareMetalSources, bootBareMetal } from './bare-metal.js';
import { type ElfOracle, kernelGsBases, readElf, readPhysical } from './elf-oracle.js';
import { GUEST_NAMES, type GuestName, type GuestTraits, ORACLE_GUESTS } from './guests.js';
import { bootLinux, linuxKernel, missingForLinux } from './linux.js';
import { makeOnce } from './make-once.js';
import { cacheFolder, GUESTS_SOURCE } from './places.js';
import { type DumpRequest, type Qemu, QmpError, RAM_ID, withParent } from './qemu.js';
import { registersLost } from './registers-lost.js';

export { GUEST_NAMES, type GuestName, type GuestTraits, ORACLE_GUESTS } from './guests.js';

/** Addresses and lengths are numbers in the manifest; "0x…" strings in guest.json and where they exceed 2^53. */
export interface OracleManifest {
  readonly name: GuestName;
  readonly traits: GuestTraits;
  /** `qemu-system-… --version`, first line. */
  readonly qemu: string;
  /** Linux only: `uname -r`. */
  readonly release?: string;
  /** Bytes of RAM below and from 4 GiB on: the `--below-4g` of a raw source. */
  readonly ram: { readonly size: number; readonly below4g: number; readonly above4g: number };
  /** As in guest.json. */
  readonly blocks: readonly OracleBlock[];
  /** Of each CPU, "0x…": not in registers.txt. */
  readonly kernelGsBase: readonly string[];
  /**
   * What the `QEMU` notes have and registers.txt has not, such as "cpu0.fs.flags". `info registers` shows bits 8-23 of a
   * segment's flags only (the others follow from the base, unless an MSR has changed that) and 32-bit registers outside
   * 64-bit code segments.
   */
  readonly registersLost: readonly string[];
  readonly ranges: readonly OracleRange[];
  /** Whether there is qemu-paging.elf. */
  readonly pagingElf: boolean;
}

export interface OracleBlock {
  readonly base: number;
  readonly length: number;
  readonly file: 'guest.ram' | 'rom.bin';
  readonly offset: number;
}

export interface OracleRange {
  readonly about: string;
  readonly begin: number;
  readonly length: number;
  readonly paging: boolean;
  /** Absent where QEMU refused. */
  readonly file?: string;
  /** What QEMU said when it refused. */
  readonly error?: string;
}

export interface OracleGuest {
  readonly name: GuestName;
  readonly traits: GuestTraits;
  readonly folder: string;
  readonly manifest: OracleManifest;
  /** The path of a file of the folder. */
  path(file: string): string;
}

/** Tools that building a guest needs and that are absent; of all guests when none is named. */
export function missingTools(name?: GuestName): string[] {
  const names = name === undefined ? GUEST_NAMES : [name];
  const linux = names.some((name) => ORACLE_GUESTS[name].kind === 'linux');
  const bareMetal = names.some((name) => ORACLE_GUESTS[name].kind === 'bare-metal');
  const binaries = names.map((name) => ORACLE_GUESTS[name].qemu.binary ?? 'qemu-system-x86_64');
  const tools = [...new Set([...binaries, ...(bareMetal ? ['as', 'ld'] : []), 'dd', 'cp', 'mkfifo'])];
  const missing = tools.filter((tool) => spawnSync(tool, ['--version']).status !== 0);
  return [...missing, ...(linux ? missingForLinux(cacheFolder()) : [])];
}

const inFlight = new Map<GuestName, Promise<OracleGuest>>();

/** The guest, made when nobody has made it before. */
export function oracleGuest(name: GuestName): Promise<OracleGuest> {
  let guest = inFlight.get(name);
  if (guest === undefined) {
    guest = findOrMake(name);
    inFlight.set(name, guest);
    guest.catch(() => inFlight.delete(name));
  }
  return guest;
}

async function findOrMake(name: GuestName): Promise<OracleGuest> {
  const traits = ORACLE_GUESTS[name];
  const qemu = qemuVersion(traits);
  const folder = join(cacheFolder(), `${name}-${fingerprint(name, traits, qemu)}`);
  await makeOnce(folder, (into) => make(name, traits, qemu, into));
  const path = (file: string) => join(folder, file);
  const manifest = JSON.parse(readFileSync(path('manifest.json'), 'utf8')) as OracleManifest;
  return { name, traits, folder, manifest, path };
}

/** Removes what other versions of the sources or of QEMU have left in the cache. */
export function prune(): void {
  const cache = cacheFolder();
  if (!existsSync(cache)) return;
  for (const name of GUEST_NAMES) {
    const traits = ORACLE_GUESTS[name];
    const current = `${name}-${fingerprint(name, traits, qemuVersion(traits))}`;
    const old = readdirSync(cache).filter(
      (file) => new RegExp(`^${name}-[0-9a-f]{12}$`).test(file) && file !== current,
    );
    for (const file of old) rmSync(join(cache, file), { recursive: true, force: true });
  }
}

function qemuVersion({ qemu }: GuestTraits): string {
  const binary = qemu.binary ?? 'qemu-system-x86_64';
  return execFileSync(binary, ['--version'], { encoding: 'utf8' }).split('\n')[0]!;
}

/** Of everything that a guest is made from, but for the version of Debian's kernel. */
function fingerprint(name: GuestName, traits: GuestTraits, qemu: string): string {
  const modules = ['oracle', 'qemu', 'registers-lost', traits.kind].map((module) =>
    join(GUESTS_SOURCE, `${module}.ts`),
  );
  const sources = traits.kind === 'linux' ? modules : [...modules, ...bareMetalSources(traits.source ?? name)];
  const hash = createHash('sha256').update(JSON.stringify([name, traits, qemu]));
  for (const source of sources) hash.update(readFileSync(source));
  return hash.digest('hex').slice(0, 12);
}

async function make(name: GuestName, traits: GuestTraits, version: string, into: string): Promise<void> {
  const linux = traits.kind === 'linux' ? await linuxKernel(cacheFolder()) : undefined;
  const qemu =
    linux !== undefined
      ? await bootLinux(linux, traits.qemu)
      : await bootBareMetal(assemble(traits.source ?? name, into), traits.qemu);
  try {
    await qemu.stop();
    const rest = await take(qemu, traits, into);
    const manifest: OracleManifest = { name, traits, qemu: version, ...(linux && { release: linux.release }), ...rest };
    writeJson(join(into, 'manifest.json'), manifest);
  } finally {
    await qemu.quit();
  }
}

/** What `take` knows of a guest. */
export type Taken = Omit<OracleManifest, 'name' | 'traits' | 'qemu' | 'release'>;

/** Fills a folder, but for the manifest, from a guest that is paused. */
export async function take(qemu: Qemu, traits: GuestTraits, into: string): Promise<Taken> {
  const file = (name: string) => join(into, name);
  // The RAM first: a dump touches all of it, and then the copy would still be sparse but the file it came from not.
  execFileSync('cp', ['--sparse=always', qemu.ramFile, file('guest.ram')]);
  const registers = await qemu.hmp('info registers -a');
  writeFileSync(file('registers.txt'), registers);

  await dumpSparse(qemu, { paging: false, file: file('qemu.elf') });
  const elf = readElf(file('qemu.elf'));
  check(traits, elf);
  const blocks = findBlocks(elf, parseMemoryTree(await qemu.hmp('info mtree -f')), file('rom.bin'));
  verifyBlocks(elf, blocks, into);

  const vmcoreinfo = elf.notes.find(({ name }) => name === 'VMCOREINFO');
  if (vmcoreinfo !== undefined) writeFileSync(file('vmcoreinfo.note'), vmcoreinfo.raw);
  const hex = (value: number) => `0x${value.toString(16)}`;
  writeJson(file('guest.json'), {
    version: 1,
    arch: traits.arch,
    memory: blocks.map((block) => ({
      ...block,
      base: hex(block.base),
      length: hex(block.length),
      offset: hex(block.offset),
    })),
    registers: 'registers.txt',
    ...(vmcoreinfo && { vmcoreinfo: 'vmcoreinfo.note' }),
  });

  if (!traits.hostile) await dumpSparse(qemu, { paging: true, file: file('qemu-paging.elf') });
  const ranges = await dumpRanges(qemu, blocks, traits.hostile ? [false] : [false, true], into);
  await qemu.dump({ paging: false, file: file('qemu.kdump-zlib'), format: 'kdump-zlib' });

  const size = statSync(file('guest.ram')).size;
  const above4g = blocks.find(({ base }) => base === 2 ** 32)?.length ?? 0;
  return {
    ram: { size, below4g: size - above4g, above4g },
    blocks,
    kernelGsBase: kernelGsBases(elf).map((base) => `0x${base.toString(16)}`),
    registersLost: registersLost(registers, elf),
    ranges,
    pagingElf: !traits.hostile,
  };
}

function check(traits: GuestTraits, elf: ElfOracle): void {
  const cpus = elf.notes.filter(({ name }) => name === 'QEMU').length;
  const vmcoreinfo = elf.notes.some(({ name }) => name === 'VMCOREINFO');
  const arch = { 3: 'i386', 62: 'x86_64' }[elf.machine];
  const found = { arch, elfClass: elf.class, cpus, vmcoreinfo };
  for (const [trait, value] of Object.entries(found)) {
    const said = traits[trait as keyof typeof found];
    if (said !== value) throw new Error(`the guest's ${trait} is ${value}, not ${said}`);
  }
}

/** QEMU writes into a FIFO, dd keeps what is not zero: nothing dense ever reaches the disk. */
export async function dumpSparse(qemu: Qemu, request: DumpRequest): Promise<void> {
  const fifo = `${request.file}.fifo`;
  execFileSync('mkfifo', [fifo]);
  const options = [`if=${fifo}`, `of=${request.file}`, 'bs=64k', 'iflag=fullblock', 'conv=sparse', 'status=none'];
  const dd = spawn(...withParent('dd', options));
  const ended = once(dd, 'exit');
  try {
    await qemu.dump({ ...request, file: fifo });
    const [code] = (await ended) as [number | null];
    if (code !== 0) throw new Error(`dd failed on ${request.file}`);
  } catch (error) {
    dd.kill('SIGKILL');
    await ended;
    rmSync(request.file, { force: true });
    throw error;
  } finally {
    rmSync(fifo, { force: true });
  }
}

interface Section {
  readonly base: number;
  readonly length: number;
  readonly region: string;
  readonly offset: number;
}

/** The sections of the flat view that CPU 0 sees, from HMP `info mtree -f`. */
function parseMemoryTree(text: string): Section[] {
  const view = text.split(/^FlatView #\d+$/m).find((view) => view.includes(' AS "memory",'));
  if (view === undefined) throw new Error('no flat view of "memory" in info mtree -f');
  return [
    ...view.matchAll(/^ {2}([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, \w[^)]*\): (\S+)(?: @([0-9a-f]+))?/gm),
  ].map(([, first, last, region, offset]) => ({
    base: Number(`0x${first}`),
    length: Number(`0x${last}`) + 1 - Number(`0x${first}`),
    region: region!,
    offset: Number(`0x${offset ?? 0}`),
  }));
}

/** The blocks of QEMU's dump; those that are not in the RAM file have their bytes put into rom.bin. */
function findBlocks(elf: ElfOracle, sections: readonly Section[], rom: string): OracleBlock[] {
  const ramOffset = (base: number, length: number): number | undefined => {
    let offset: number | undefined;
    for (let at = base; at < base + length;) {
      const section = sections.find((section) => section.base <= at && at < section.base + section.length);
      if (section?.region !== RAM_ID) return undefined;
      const here = section.offset + at - section.base;
      offset ??= here;
      if (here !== offset + at - base) return undefined;
      at = section.base + section.length;
    }
    return offset;
  };
  const romParts: Buffer[] = [];
  let romLength = 0;
  const blocks = elf.loads.map(({ paddr, memsz }): OracleBlock => {
    const base = Number(paddr);
    const length = Number(memsz);
    const offset = ramOffset(base, length);
    if (offset !== undefined) return { base, length, file: 'guest.ram', offset };
    romParts.push(readPhysical(elf, base, length)!);
    romLength += length;
    return { base, length, file: 'rom.bin', offset: romLength - length };
  });
  if (romLength > 0) writeFileSync(rom, Buffer.concat(romParts));
  return blocks;
}

/** The description must say what QEMU dumped. Samples of large blocks will do: reading holes of a file takes memory. */
function verifyBlocks(elf: ElfOracle, blocks: readonly OracleBlock[], folder: string): void {
  const sample = 2 ** 20;
  const [mine, theirs] = [Buffer.alloc(sample), Buffer.alloc(sample)];
  const core = openSync(elf.path, 'r');
  for (const [i, { base, length, file, offset }] of blocks.entries()) {
    const fd = openSync(join(folder, file), 'r');
    const step = length > 2 ** 27 ? 2 ** 26 - 4096 : sample;
    for (let at = 0; at < length; at += step) {
      const n = Math.min(sample, length - at);
      const read = [
        readSync(fd, mine, 0, n, offset + at),
        readSync(core, theirs, 0, n, Number(elf.loads[i]!.offset) + at),
      ];
      if (read.some((count) => count !== n) || mine.compare(theirs, 0, n, 0, n) !== 0) {
        throw new Error(`${file} differs from QEMU's dump within 0x${n.toString(16)} of 0x${(base + at).toString(16)}`);
      }
    }
    closeSync(fd);
  }
  closeSync(core);
}

function rangesOf(blocks: readonly OracleBlock[]): Pick<OracleRange, 'about' | 'begin' | 'length'>[] {
  const end = ({ base, length }: OracleBlock) => base + length;
  const first = blocks[0]!;
  const last = blocks.at(-1)!;
  const next = blocks[1];
  const spanning = (begin: number, to: number, about: string) => ({ about, begin, length: to - begin });
  return [
    { about: 'from 0, whole pages', begin: 0, length: 0x100000 },
    { about: 'unaligned ends', begin: 0x201235, length: 0x5433 },
    { about: 'a few bytes within a page', begin: 0x801008, length: 0x10 },
    ...(next ? [spanning(end(first) - 0x1801, next.base + 0x1003, 'over the hole after the first block')] : []),
    ...(next ? [spanning(end(first) - 0x800, next.base - 0x123, 'ends in a hole')] : []),
    ...(next ? [spanning(end(first) + 0x1234, next.base + 0x2001, 'begins in a hole')] : []),
    { about: 'past the end', begin: end(last) - 0x2345, length: 2 ** 44 },
    { about: 'no memory: a hole', begin: end(first) + 0x1001, length: 0x1000 },
    { about: 'no memory: past the end', begin: 2 ** 45, length: 2 ** 20 },
    { about: 'no length', begin: 0x200000, length: 0 },
  ];
}

async function dumpRanges(
  qemu: Qemu,
  blocks: readonly OracleBlock[],
  pagings: readonly boolean[],
  folder: string,
): Promise<OracleRange[]> {
  const ranges: OracleRange[] = [];
  for (const [i, range] of rangesOf(blocks).entries()) {
    for (const paging of pagings) {
      const file = `qemu-range-${i}${paging ? '-paging' : ''}.elf`;
      const { begin, length } = range;
      try {
        await dumpSparse(qemu, { paging, begin, length, file: join(folder, file) });
        ranges.push({ ...range, paging, file });
      } catch (error) {
        if (!(error instanceof QmpError)) throw error;
        ranges.push({ ...range, paging, error: error.desc });
      }
    }
  }
  return ranges;
}

function writeJson(path: string, value: unknown): void {
  writeFileSync(path, `${JSON.stringify(value, undefined, 2)}\n`);
}
