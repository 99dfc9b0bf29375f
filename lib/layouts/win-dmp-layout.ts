/**
 * win-dmp layout: everything of a Windows crash dump that is known before the first page moves.
 *
 *   header | the runs of memory that its table lists, in the order of the table
 *
 * The guest's driver (virtio-win's fwcfg) leaves a header in the note that it announces to QEMU as VMCOREINFO; what is
 * put right in it, and the registers that go into the kernel's context frames, is QEMU's (dump/win_dump.c), and so are
 * the order in which things are looked at and what is said when one is wrong. Unlike QEMU we do not write to the guest:
 * frames are replaced on their way (memory-overlay.ts).
 */

import { VmcoreError } from '../model/errors.js';
import { KDBG, KDBG_TAG } from '../windows/kdbg.js';
import { type ElfNote, NOTE_HEADER_SIZE } from '../formats/notes.js';
import {
  bugcheckDataSize,
  CONTEXT_SIZE,
  clearUnused,
  decodeWinDmpHeader,
  encodeWinContext,
  setBugcheckData,
  setWinDmpFields,
  WIN_DMP_HEADER_SIZE,
  WIN_DMP_MAX_RUNS,
  WIN_DMP_SIGNATURE,
  WIN_DMP_VALID,
  type WinDmpBits,
  type WinDmpHeader,
  type WinDmpRun,
} from '../formats/win-dmp.js';
import {
  type CpuState,
  GENERAL_REGISTERS,
  type Guest,
  NULL_SEGMENT,
  SEGMENT_REGISTERS,
  SYSTEM_SEGMENTS,
  type SystemState,
} from '../model/guest.js';
import { type MemoryBlock, PHYSICAL_ADDRESS_LIMIT, type PhysicalMemory } from '../model/physical-memory.js';
import { missingBytes } from '../sources/run-source.js';
import { PAGE_SIZE } from '../model/stage.js';
import { OverlaidMemory, type OverlayPages } from '../transforms/memory-overlay.js';
import { VirtualMemory } from '../paging/virtual-memory.js';

/** The plan of a Windows crash dump. */
export interface WinDmpLayout {
  readonly format: 'win-dmp';
  readonly bits: WinDmpBits;
  /** the header as it is written */
  readonly header: Uint8Array;
  /** what it says */
  readonly fields: WinDmpHeader;
  /** the memory in the order of the file, as guest physical addresses; may overlap, and cover what is not memory */
  readonly runs: readonly MemoryBlock[];
  /** pages with context frames in them, as they are written */
  readonly pages: OverlayPages;
  /** RequiredDumpSpace, which QEMU calls `total`: by NumberOfPages, whatever the runs add up to */
  readonly requiredBytes: number;
  /** bytes of the runs that the guest has no memory for */
  readonly missingBytes: number;
  /** size of the file in bytes */
  readonly size: number;
}

/** What decides a win-dmp layout beside the guest. */
export interface WinDmpLayoutOptions {
  /** told what is wrong but does not keep the dump from being made */
  readonly onWarning?: ((text: string) => void) | undefined;
}

/** Memory that runs may claim beyond the guest's. Holes cost nothing in a file, but much in a pipe. */
const MAX_MISSING_BYTES = 2 ** 36;

/** What QEMU takes a note's header and name to have, whatever the name's length: 12 + `VMCOREINFO` padded. */
const NOTE_HEADER_AND_NAME = NOTE_HEADER_SIZE + 12;

const QEMU_BAD_SIZE = 'win-dump: invalid vmcoreinfo note size';

/** CR0.PE and PG; CR4.PSE and PAE (Intel SDM vol. 3, 2.5): paging as a kernel has it whose registers are not known. */
const CR0_PAGING = 0x8000_0001n;
const CR4_PSE = 1n << 4n;
const CR4_PAE = 1n << 5n;

/** Bytes of a note as QEMU reckons them: by the sizes that it announces, each padded. */
function noteSize({ raw }: ElfNote): number {
  const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  const padded = (at: number) => Math.ceil(view.getUint32(at, true) / 4) * 4;
  return NOTE_HEADER_SIZE + padded(0) + padded(4);
}

function isHeaderSize(size: number): boolean {
  return ([64, 32] as const).some((bits) => size === NOTE_HEADER_AND_NAME + WIN_DMP_HEADER_SIZE[bits]);
}

/** A note that a Windows driver left, by its size; or one that begins as a dump header does, of the wrong size. */
function findHeaderNote(notes: readonly ElfNote[]): ElfNote | undefined {
  return (
    notes.find((note) => isHeaderSize(noteSize(note))) ??
    notes.find(({ raw }) => text(raw.subarray(NOTE_HEADER_AND_NAME), 4) === WIN_DMP_SIGNATURE)
  );
}

/** Whether a guest has a note with a dump header, be it right or wrong. */
export function hasWinDmpHeader(guest: Pick<Guest, 'notes'>): boolean {
  return findHeaderNote(guest.notes) !== undefined;
}

/**
 * The dump header that the guest's driver left, as it is.
 * @throws VmcoreError BAD_INPUT, with QEMU's text, when there is none or it is none
 */
export function winDmpHeaderOf(guest: Pick<Guest, 'notes'>): Uint8Array {
  const note = findHeaderNote(guest.notes);
  if (!note || !isHeaderSize(noteSize(note))) throw new VmcoreError('BAD_INPUT', QEMU_BAD_SIZE);
  // The last note of a segment may lack its padding.
  const header = new Uint8Array(noteSize(note) - NOTE_HEADER_AND_NAME);
  header.set(note.raw.subarray(NOTE_HEADER_AND_NAME));
  return header.subarray(0, WIN_DMP_HEADER_SIZE[checkHeader(header)]);
}

function text(bytes: Uint8Array, length: number): string {
  return Buffer.from(bytes.subarray(0, length)).toString('latin1');
}

/** As C's `%.4s` prints it, in JSON; but a message is one line, and moves no cursor. */
function shown(bytes: Uint8Array): string {
  const text = Buffer.from(bytes.subarray(0, 4)).toString('utf8').replace(/\0.*$/s, '');
  return text.replaceAll(/\p{Cc}/gu, '\ufffd');
}

/** @returns which header it is */
function checkHeader(header: Uint8Array): WinDmpBits {
  const invalid = (expected: string, got: Uint8Array) =>
    new VmcoreError('BAD_INPUT', `win-dump: invalid header, expected ${expected}, got '${shown(got)}'`);
  if (text(header, 4) !== WIN_DMP_SIGNATURE) throw invalid(`'${WIN_DMP_SIGNATURE}'`, header);
  const valid = header.subarray(4);
  const bits = ([64, 32] as const).find((bits) => text(valid, 4) === WIN_DMP_VALID[bits]);
  if (!bits) throw invalid(`'${WIN_DMP_VALID[32]}' or '${WIN_DMP_VALID[64]}'`, valid);
  if (header.length < WIN_DMP_HEADER_SIZE[bits]) throw new VmcoreError('BAD_INPUT', QEMU_BAD_SIZE);
  return bits;
}

/**
 * The guest's memory, or a refusal where there is no random access to it.
 * @throws VmcoreError UNSUPPORTED
 */
export function requireMemory({ name, memory }: Pick<Guest, 'name' | 'memory'>): PhysicalMemory {
  if (memory) return memory;
  throw new VmcoreError(
    'UNSUPPORTED',
    `win-dmp needs random access to the guest's memory, and ${name} is a stream; save it to a file, and dump that`,
  );
}

/**
 * Plans a Windows crash dump.
 * @param given the header to go by, of the guest's note (`winDmpHeaderOf`) or derived (`findKdbg`); is not changed
 * @throws VmcoreError UNSUPPORTED when the guest's memory is a stream; BAD_INPUT, in QEMU's words where QEMU has any,
 *   when what the header leads to is not there; READ
 */
export function planWinDmp(
  guest: Pick<Guest, 'name' | 'cpus' | 'memory'>,
  given: Uint8Array,
  { onWarning = () => {} }: WinDmpLayoutOptions = {},
): WinDmpLayout {
  const memory = requireMemory(guest);
  const header = Uint8Array.from(given);
  const bits = checkHeader(header);
  const overlaid = new OverlaidMemory(memory);
  const virtual = new VirtualMemory(overlaid, kernelCpu(guest.cpus[0], decodeWinDmpHeader(header, bits)), bits);

  const kdbg = checkKdbg(virtual, decodeWinDmpHeader(header, bits));
  setWinDmpFields(header, bits, { KdDebuggerDataBlock: kdbg });
  correctHeader(virtual, header, kdbg, onWarning);
  const fields = decodeWinDmpHeader(header, bits);
  replaceContexts(virtual, overlaid, guest.cpus, fields, onWarning);

  const runs = checkRuns(fields);
  const missing = runs.reduce((sum, run) => sum + missingBytes(memory, run), 0);
  if (missing > MAX_MISSING_BYTES) throw bad(`the runs of the dump header cover ${missing} bytes that are not memory`);
  return {
    format: 'win-dmp',
    bits,
    header,
    fields,
    runs,
    pages: overlaid.pages,
    requiredBytes: Number(fields.RequiredDumpSpace),
    missingBytes: missing,
    size: runs.reduce((sum, run) => sum + run.length, header.length),
  };
}

function bad(message: string): VmcoreError {
  return new VmcoreError('BAD_INPUT', `win-dump: ${message}`);
}

const NO_REGISTERS = Object.fromEntries(GENERAL_REGISTERS.map((name) => [name, 0n])) as Pick<
  CpuState,
  (typeof GENERAL_REGISTERS)[number]
>;
const NO_SEGMENTS = Object.fromEntries(SEGMENT_REGISTERS.map((name) => [name, NULL_SEGMENT])) as Pick<
  CpuState,
  (typeof SEGMENT_REGISTERS)[number]
>;

/** Control registers of a kernel of which nothing is known but its dump header. */
export function kernelControl({ bits, PaeEnabled, DirectoryTableBase }: WinDmpHeader): SystemState {
  const pae = bits === 64 || PaeEnabled === 1n;
  const tables = Object.fromEntries(SYSTEM_SEGMENTS.map((name) => [name, NULL_SEGMENT])) as Pick<
    SystemState,
    (typeof SYSTEM_SEGMENTS)[number]
  >;
  return {
    ...tables,
    cr0: CR0_PAGING,
    cr1: 0n,
    cr2: 0n,
    cr3: DirectoryTableBase,
    cr4: pae ? CR4_PSE | CR4_PAE : CR4_PSE,
    kernelGsBase: 0n,
  };
}

/** The first CPU with the kernel's page tables: whatever process it is in, those have the kernel. */
export function kernelCpu(cpu: CpuState | undefined, header: WinDmpHeader): CpuState {
  if (cpu?.system) return { ...cpu, system: { ...cpu.system, cr3: header.DirectoryTableBase } };
  return {
    ...NO_REGISTERS,
    ...NO_SEGMENTS,
    ...cpu,
    longMode: header.bits === 64,
    system: kernelControl(header),
  };
}

/**
 * The address of KDBG. A block whose tag is wrong is encoded, most likely: the driver then left the address of a copy
 * in BugcheckParameter1.
 */
function checkKdbg(virtual: VirtualMemory, header: WinDmpHeader): bigint {
  let tag: Uint8Array | null = null;
  for (const address of [header.KdDebuggerDataBlock, header.BugcheckParameter1]) {
    tag = virtual.read(address + BigInt(KDBG.OwnerTag), KDBG_TAG.length);
    if (!tag) throw bad('failed to read OwnerTag');
    if (text(tag, KDBG_TAG.length) === KDBG_TAG) return address;
  }
  throw bad(`invalid KDBG OwnerTag, expected '${KDBG_TAG}', got '${shown(tag!)}'`);
}

/** Puts right what the driver could not know, or got wrong. */
function correctHeader(
  virtual: VirtualMemory,
  header: Uint8Array,
  kdbg: bigint,
  onWarning: (text: string) => void,
): void {
  const { bits } = virtual;
  const { NumberOfPages } = decodeWinDmpHeader(header, bits);
  const RequiredDumpSpace = BigInt(header.length) + NumberOfPages * BigInt(PAGE_SIZE);
  setWinDmpFields(header, bits, { RequiredDumpSpace });
  clearUnused(header, bits);
  const PfnDatabase = virtual.pointer(kdbg + BigInt(KDBG.MmPfnDatabase));
  if (PfnDatabase === null) onWarning('win-dump: failed to read MmPfnDatabase');
  else setWinDmpFields(header, bits, { PfnDatabase });
  const at = virtual.pointer(kdbg + BigInt(KDBG.KiBugcheckData));
  const data = at === null ? null : virtual.read(at, bugcheckDataSize(bits));
  if (data) setBugcheckData(header, bits, data);
  else onWarning(`win-dump: failed to read ${at === null ? 'KiBugcheckData' : 'bugcheck data'}`);
}

/** What leads to the context frames of a kernel. */
export interface FramePlaces {
  readonly KiProcessorBlock: bigint;
  readonly OffsetPrcbContext: bigint;
}

/** @throws VmcoreError BAD_INPUT when KDBG ends too early */
export function framePlaces(virtual: VirtualMemory, kdbg: bigint): FramePlaces {
  const KiProcessorBlock = virtual.pointer(kdbg + BigInt(KDBG.KiProcessorBlock));
  if (KiProcessorBlock === null) throw bad('failed to read KiProcessorBlock');
  const OffsetPrcbContext = virtual.number(kdbg + BigInt(KDBG.OffsetPrcbContext), 2);
  if (OffsetPrcbContext === null) throw bad('failed to read OffsetPrcbContext');
  return { KiProcessorBlock, OffsetPrcbContext };
}

/** The virtual address of a processor's context frame. @throws VmcoreError BAD_INPUT */
export function frameOf(virtual: VirtualMemory, places: FramePlaces, index: number): bigint {
  const prcb = virtual.pointer(places.KiProcessorBlock + BigInt((index * virtual.bits) / 8));
  if (prcb === null) throw bad(`failed to read CPU #${index} PRCB location`);
  const frame = virtual.pointer(prcb + places.OffsetPrcbContext);
  if (frame === null) throw bad(`failed to read CPU #${index} ContextFrame location`);
  return frame;
}

/**
 * Puts the registers of each CPU into its processor's frame: what the kernel saved there may be old.
 * One after the other, each reading what the one before has written, as in QEMU.
 */
function replaceContexts(
  virtual: VirtualMemory,
  overlaid: OverlaidMemory,
  cpus: readonly CpuState[],
  { bits, KdDebuggerDataBlock, NumberProcessors }: WinDmpHeader,
  onWarning: (text: string) => void,
): void {
  const places = framePlaces(virtual, KdDebuggerDataBlock);
  for (const [i, cpu] of cpus.entries()) {
    if (i >= NumberProcessors) {
      onWarning(
        `win-dump: number of CPUs (${cpus.length}) is bigger than NumberProcessors (${NumberProcessors}) in guest Windows: the registers of the others are left out`,
      );
      return;
    }
    const frame = frameOf(virtual, places, i);
    const context = encodeWinContext(cpu, bits);
    const pieces = virtual.read(frame, CONTEXT_SIZE[bits]) && virtual.pieces(frame, CONTEXT_SIZE[bits]);
    if (!pieces) throw bad(`failed to save CPU #${i} context`);
    for (const { paddr, start, length } of pieces) overlaid.write(paddr, context.subarray(start, start + length));
  }
  if (cpus.length < NumberProcessors)
    onWarning(
      `win-dump: number of CPUs (${cpus.length}) is smaller than NumberProcessors (${NumberProcessors}) in guest Windows: the context frames of the others stay as the guest has them`,
    );
}

/** The runs as ranges of memory. @throws VmcoreError BAD_INPUT when they are none, or more than there is room for */
export function checkRuns({ bits, NumberOfRuns, runs }: WinDmpHeader): MemoryBlock[] {
  if (NumberOfRuns > WIN_DMP_MAX_RUNS[bits])
    throw bad(`the dump header claims ${NumberOfRuns} runs of memory, and has room for ${WIN_DMP_MAX_RUNS[bits]}`);
  return runs.filter(({ PageCount }) => PageCount > 0n).map(blockOf);
}

function blockOf({ BasePage, PageCount }: WinDmpRun): MemoryBlock {
  const end = (BasePage + PageCount) * BigInt(PAGE_SIZE);
  if (end > BigInt(PHYSICAL_ADDRESS_LIMIT))
    throw bad(
      `a run of 0x${PageCount.toString(16)} pages from page 0x${BasePage.toString(16)} on ends above the 52 bits of x86 addresses`,
    );
  return { base: Number(BasePage) * PAGE_SIZE, length: Number(PageCount) * PAGE_SIZE };
}
