/**
 * The headers of an ELF core, from whatever can be read: a file, or the front of a stream.
 *
 * All of it is hostile input. Every number is checked before it is used as an offset or as a size, what a core may
 * make us hold is bounded by `ElfLimits`, and whatever is wrong ends as one VmcoreError. Layouts are those of the gABI
 * (formats/elf.ts); what the writers do differently:
 *
 * - QEMU 7.2 and later put section headers between the ELF header and the program headers: e_phoff is to be believed.
 * - VirtualBox leaves e_ident[EI_VERSION] 0, and gives MMIO ranges as PT_LOADs with p_filesz 0, as others do memory that
 *   they left out.
 * - /proc/kcore has p_paddr -1 where a segment has no physical address (fs/proc/kcore.c).
 */

import {
  type DecodedElfHeader,
  decodeElfHeader,
  decodeProgramHeader,
  decodeSectionHeader,
  ELF_SIZES,
  ELFCLASS64,
  ELFMAG,
  EM_386,
  EM_X86_64,
  ET_CORE,
  NO_PHYSICAL_ADDRESS,
  NOT_STORED,
  PN_XNUM,
  type ProgramHeader,
  PT_LOAD,
  PT_NOTE,
} from '../../formats/elf.js';
import { NOTE_NAME_CORE, parseNotes, splitNotes } from '../../formats/notes.js';
import { VmcoreError } from '../../model/errors.js';
import type { Architecture, CpuState } from '../../model/guest.js';
import type { ElfNote } from '../../model/note.js';
import { PHYSICAL_ADDRESS_LIMIT } from '../../model/physical-memory.js';
import { NOTE_NAME_VBCORE, splitVirtualBoxNotes } from './vbox-notes.js';

/** What a core's headers may make us hold, and go through. */
export interface ElfLimits {
  /** number of program headers */
  readonly maxProgramHeaders: number;
  /** size of all notes in bytes */
  readonly maxNoteBytes: number;
  /** bytes of memory that were left out of the core, which nothing else bounds */
  readonly maxLeftOutBytes: number;
}

/** Enough for 2^18 mappings, for the notes of QEMU's 4096 CPUs (3.4 MB), and for 64 TiB that makedumpfile left out. */
export const DEFAULT_ELF_LIMITS: ElfLimits = {
  maxProgramHeaders: 2 ** 18,
  maxNoteBytes: 2 ** 22,
  maxLeftOutBytes: 2 ** 46,
};

/** Reads parts of a core while its headers are looked at. */
export interface CoreReader {
  /** what to call it in messages */
  readonly name: string;
  /**
   * The bytes [offset, offset + length).
   * @param what what they are, for the message when they are not there: `the program header table`
   * @throws VmcoreError TRUNCATED when the core ends before them; READ; UNSUPPORTED when a stream is too far
   */
  read(offset: number, length: number, what: string): Promise<Uint8Array>;
}

/** A PT_LOAD that is memory; its numbers are checked. */
export interface LoadSegment {
  /** its place in the program header table, for messages and for precedence */
  readonly index: number;
  /** guest physical address */
  readonly paddr: number;
  /** p_offset: where the bytes are in the file, or would be */
  readonly offset: number;
  /** p_filesz: bytes in the file; 0 when all of it was left out */
  readonly filesz: number;
  /** p_memsz: bytes of memory, at least p_filesz */
  readonly memsz: number;
  /** p_vaddr is neither 0 nor p_paddr: the table describes virtual memory */
  readonly isVirtual: boolean;
}

/** A PT_NOTE: where its bytes are in the file. */
interface NoteSegment {
  readonly index: number;
  readonly offset: number;
  readonly size: number;
}

/** What the headers of a core say. */
export interface CoreHeaders {
  readonly arch: Architecture;
  /** in the order of the table */
  readonly loads: readonly LoadSegment[];
  readonly cpus: readonly CpuState[];
  /** notes other than those of the CPUs */
  readonly notes: readonly ElfNote[];
  /** names of all notes, those of the CPUs too: who wrote a core shows in them */
  readonly noteNames: ReadonlySet<string>;
  /** the table as it stands; empty for a core that has sections instead */
  readonly programHeaders: readonly ProgramHeader[];
  /** what was decided by a rule, and whoever opens the core should know */
  readonly assumption?: string | undefined;
}

/** e_type as people say it */
const TYPE_NAMES: Readonly<Record<number, string>> = {
  1: 'a relocatable object',
  2: 'an executable',
  3: 'a shared object or a position-independent executable',
};

/** e_machine of what users are likely to have besides x86 (elf.h) */
const MACHINE_NAMES: Readonly<Record<number, string>> = {
  8: 'MIPS',
  20: 'PowerPC',
  21: 'PowerPC64',
  22: 'S/390',
  40: 'ARM',
  50: 'IA-64',
  183: 'AArch64',
  243: 'RISC-V',
  258: 'LoongArch',
};

/** e_ident[EI_DATA] of a big-endian file */
const ELFDATA2MSB = 2;
/** bytes of e_ident, which says how long the rest of the header is */
const EI_NIDENT = 16;
/** n_type of CORE notes that only the core of a process has (elf.h) */
const PROCESS_NOTES: ReadonlySet<number> = new Set([3 /* NT_PRPSINFO */, 6 /* NT_AUXV */]);

/** `name ends at byte 100, but the ELF header reaches to byte 120` */
export function truncatedError(name: string, end: number, what: string, claimed: number): VmcoreError {
  return new VmcoreError('TRUNCATED', `${name} ends at byte ${end}, but ${what} reaches to byte ${claimed}`);
}

/** One past the last byte that a PT_LOAD has in the file; 0 when it has none. */
export function storedEnd({ offset, filesz }: LoadSegment): number {
  return filesz === 0 ? 0 : offset + filesz;
}

/** Checks that a core that ends at byte `end` has all bytes of its PT_LOADs. @throws VmcoreError TRUNCATED */
export function checkStored(name: string, end: number, loads: readonly LoadSegment[]): void {
  for (const load of loads)
    if (storedEnd(load) > end)
      throw truncatedError(name, end, `the memory of program header ${load.index}`, storedEnd(load));
}

/**
 * Reads and checks an ELF core's header.
 * @throws VmcoreError BAD_INPUT when it is not the core of an x86 machine; TRUNCATED; READ
 */
export async function readElfHeader(reader: CoreReader): Promise<DecodedElfHeader> {
  const { name } = reader;
  const ident = await reader.read(0, EI_NIDENT, 'an ELF header');
  if (ELFMAG.some((byte, i) => ident[i] !== byte)) throw badInput(`${name} is not an ELF file`);
  if (ident[5] === ELFDATA2MSB) throw badInput(`${name} is a big-endian ELF file, so not the core of an x86 machine`);
  const size = ident[4] === ELFCLASS64 ? ELF_SIZES[2].ehdr : ELF_SIZES[1].ehdr;
  const header = decodeElfHeader(await reader.read(0, size, 'the ELF header'));
  if (!header) throw badInput(`${name} has an ELF header of unknown class ${ident[4]} or byte order ${ident[5]}`);
  if (header.type !== ET_CORE)
    throw badInput(`${name} is an ELF file but not a core: ${TYPE_NAMES[header.type] ?? `of e_type ${header.type}`}`);
  if (header.machine !== EM_386 && header.machine !== EM_X86_64)
    throw badInput(
      `${name} is a core of ${MACHINE_NAMES[header.machine] ?? `e_machine ${header.machine}`}, not of x86`,
    );
  return header;
}

/**
 * Reads what follows from an ELF core's header: program headers and notes.
 * @param options `notesFirst`: the core is a stream, whose notes must stand before its memory
 * @throws VmcoreError BAD_INPUT, TRUNCATED, LIMIT, READ; UNSUPPORTED for notes that a stream has behind its memory
 */
export async function readCoreHeaders(
  reader: CoreReader,
  header: DecodedElfHeader,
  limits: ElfLimits,
  options: { readonly notesFirst: boolean },
): Promise<CoreHeaders> {
  const programHeaders = await readProgramHeaderTable(reader, header, limits);
  const { loads: allLoads, noteSegments } = readSegments(reader.name, programHeaders);
  if (options.notesFirst) checkNotesFirst(reader.name, allLoads, noteSegments);
  const notes = await readNotes(reader, noteSegments, limits);
  const noteNames = new Set(notes.map((note) => note.name));
  const loads = isVirtualBoxCore(noteNames) ? allLoads.filter(({ filesz }) => filesz > 0) : allLoads;
  checkMachine(reader.name, loads, notes);
  return { ...sortNotes(reader.name, notes, header.machine), loads, noteNames, programHeaders };
}

/** Whether VirtualBox wrote a core, and nobody since: its CPUs would have NT_PRSTATUS then. */
function isVirtualBoxCore(noteNames: ReadonlySet<string>): boolean {
  return noteNames.has(NOTE_NAME_VBCORE) && !noteNames.has(NOTE_NAME_CORE);
}

/** The architecture and the CPUs; e_machine is the mode of the first CPU, by QEMU's rule. */
function sortNotes(
  name: string,
  notes: readonly ElfNote[],
  machine: number,
): Pick<CoreHeaders, 'arch' | 'cpus' | 'notes' | 'assumption'> {
  const isX86_64 = machine === EM_X86_64;
  const arch = isX86_64 ? 'x86_64' : 'i386';
  const { cpus, others } = splitNotes(notes, isX86_64);
  if (cpus.length > 0) return { arch, cpus, notes: others };
  const vbox = splitVirtualBoxNotes(others);
  const { unknown } = vbox;
  return {
    arch,
    cpus: vbox.cpus,
    notes: vbox.others,
    assumption: unknown === null ? undefined : `${name}: ${unknown}`,
  };
}

/**
 * The program headers of a core, as they stand.
 * @throws VmcoreError BAD_INPUT, TRUNCATED, LIMIT, READ
 */
export async function readProgramHeaderTable(
  reader: CoreReader,
  header: DecodedElfHeader,
  limits: ElfLimits,
): Promise<ProgramHeader[]> {
  const { name } = reader;
  const count = await countProgramHeaders(reader, header);
  if (count === 0) throw badInput(`${name} has no program headers, so no memory`);
  if (count > limits.maxProgramHeaders)
    throw new VmcoreError(
      'LIMIT',
      `${name} claims ${count} program headers, more than maxProgramHeaders = ${limits.maxProgramHeaders}`,
    );
  checkProgramHeaderTable(name, header);
  const { phdr: size } = ELF_SIZES[header.class];
  const bytes = await reader.read(header.phoff, count * size, `the table of ${count} program headers`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: count }, (_, index) => decodeProgramHeader(view, index * size, header.class));
}

function readSegments(
  name: string,
  programHeaders: readonly ProgramHeader[],
): { loads: LoadSegment[]; noteSegments: NoteSegment[] } {
  const loads: LoadSegment[] = [];
  const noteSegments: NoteSegment[] = [];
  for (const [index, phdr] of programHeaders.entries()) {
    if (phdr.type === PT_NOTE) noteSegments.push({ index, offset: phdr.offset, size: phdr.filesz });
    if (phdr.type === PT_LOAD && isMemory(phdr)) loads.push(loadSegment(name, index, phdr));
  }
  return { loads, noteSegments };
}

/** e_phnum, or sh_info of section 0 when there are PN_XNUM program headers or more. */
async function countProgramHeaders(reader: CoreReader, header: DecodedElfHeader): Promise<number> {
  if (header.phnum !== PN_XNUM) return header.phnum;
  const { shdr: size } = ELF_SIZES[header.class];
  const what = 'section header 0, which holds the number of program headers (PN_XNUM),';
  if (header.shoff === 0)
    throw badInput(`${reader.name} has PN_XNUM program headers but no section header to count them`);
  checkOffset(reader.name, header.shoff, what);
  const bytes = await reader.read(header.shoff, size, what);
  return decodeSectionHeader(new DataView(bytes.buffer, bytes.byteOffset, size), 0, header.class).info;
}

function checkProgramHeaderTable(name: string, header: DecodedElfHeader): void {
  const { ehdr, phdr } = ELF_SIZES[header.class];
  if (header.phentsize !== phdr)
    throw badInput(
      `${name} has an e_phentsize of ${header.phentsize}, but program headers of its class have ${phdr} bytes`,
    );
  if (header.phoff < ehdr) throw badInput(`${name} has an e_phoff of ${header.phoff}, which is inside the ELF header`);
  checkOffset(name, header.phoff, 'the program header table');
}

/** Whether a PT_LOAD is memory, stored or left out; QEMU writes p_offset -1 for what is no memory or out of its range. */
function isMemory({ filesz, memsz, offset, paddr }: ProgramHeader): boolean {
  return (filesz > 0 || memsz > 0) && offset !== NOT_STORED && paddr !== NO_PHYSICAL_ADDRESS;
}

function loadSegment(name: string, index: number, phdr: ProgramHeader): LoadSegment {
  const { paddr, offset, filesz, memsz } = phdr;
  const what = `program header ${index}`;
  // Numbers above 2^53 are rounded, but never to below 2^53: these checks hold for them too.
  if (paddr + memsz > PHYSICAL_ADDRESS_LIMIT)
    throw badInput(`${name}, ${what}: memory ${hex(paddr)}+${hex(memsz)} ends above the 52 bits of x86 addresses`);
  if (filesz > memsz) throw badInput(`${name}, ${what}: p_filesz ${hex(filesz)} is larger than p_memsz ${hex(memsz)}`);
  if (filesz > 0) checkOffset(name, offset + filesz, what);
  return { index, paddr, offset, filesz, memsz, isVirtual: phdr.vaddr !== 0n && phdr.vaddr !== BigInt(paddr) };
}

/** Refuses an offset that no file can have, and that a number cannot hold exactly. */
export function checkOffset(name: string, offset: number, what: string): void {
  if (!Number.isSafeInteger(offset)) throw badInput(`${name}: ${what} stands beyond byte 2^53, where no file reaches`);
}

async function readNotes(
  reader: CoreReader,
  segments: readonly NoteSegment[],
  limits: ElfLimits,
): Promise<readonly ElfNote[]> {
  const notes: ElfNote[][] = [];
  let total = 0;
  for (const { index, offset, size } of segments) {
    if (size === 0) continue;
    const what = `program header ${index} (notes)`;
    if (offset === NOT_STORED) throw badInput(`${reader.name}: ${what} has ${size} bytes, but no p_offset (-1)`);
    total += size;
    if (total > limits.maxNoteBytes)
      throw new VmcoreError(
        'LIMIT',
        `${reader.name}: ${what} brings the notes to ${total} bytes, more than maxNoteBytes = ${limits.maxNoteBytes}`,
      );
    checkOffset(reader.name, offset + size, what);
    notes.push(parseNotes(await reader.read(offset, size, what), `${reader.name}, ${what}`));
  }
  return notes.flat();
}

/** A stream's notes are needed before its memory goes by. */
function checkNotesFirst(name: string, loads: readonly LoadSegment[], segments: readonly NoteSegment[]): void {
  const stored = loads.filter(({ filesz }) => filesz > 0);
  const memory = stored.reduce((first, load) => Math.min(first, load.offset), Number.POSITIVE_INFINITY);
  for (const { index, offset, size } of segments) {
    if (size > 0 && offset >= memory)
      throw new VmcoreError(
        'UNSUPPORTED',
        `${name}: the notes (program header ${index}, byte ${offset}) stand behind the memory (byte ${memory}), ` +
          'which a stream cannot wait for; save it to a file and open that',
      );
  }
}

/**
 * The core of a process, ET_CORE as well, has p_paddr 0 throughout. So may a machine's, whose first bytes QEMU's paging
 * dump gives for each of their mappings: but those are the same bytes of the file.
 */
function checkMachine(name: string, loads: readonly LoadSegment[], notes: readonly ElfNote[]): void {
  const [first] = loads;
  if (!first) throw badInput(`${name} holds no memory: no PT_LOAD has both bytes of memory and a physical address`);
  const virtualOnly = loads.every((load) => load.paddr === 0) && loads.some((load) => load.isVirtual);
  const areAliases = loads.every((load) => load.offset === first.offset);
  const hasProcessNote = notes.some((note) => note.name === NOTE_NAME_CORE && PROCESS_NOTES.has(note.type));
  if (virtualOnly && (hasProcessNote || !areAliases))
    throw badInput(`${name} looks like the core of a process, not of a machine: its memory has no physical addresses`);
}

/** The error of an input that is not what it claims to be. */
export function badInput(message: string): VmcoreError {
  return new VmcoreError('BAD_INPUT', message);
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
