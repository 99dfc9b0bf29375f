/**
 * Windows crash dumps as values: the header of a full dump, 64 and 32 bit, and the context record of a processor.
 *
 *   header, 0x2000 or 0x1000 bytes | the runs of memory, back to back, in the order of the header's table
 *
 * Layouts are those of DUMP_HEADER64, DUMP_HEADER32 and CONTEXT, of which QEMU's include/qemu/win_dump_defs.h has what a
 * dumper needs, and volatility3's crash64.json and crash.json what readers look at. Names are Microsoft's, so that what
 * `vmcore inspect` prints can be looked up. All is little-endian.
 */

import {
  type CpuState,
  type DebugRegisters,
  GENERAL_REGISTERS,
  type GeneralRegister,
  NULL_SEGMENT,
  SEGMENT_REGISTERS,
  type SegmentRegister,
} from '../model/guest.js';

/** Width of the kernel's pointers, which decides the layout. */
export type WinDmpBits = 64 | 32;

/** Signature */
export const WIN_DMP_SIGNATURE = 'PAGE';
/** ValidDump, which tells the two layouts apart */
export const WIN_DMP_VALID = { 64: 'DU64', 32: 'DUMP' } as const;
/** Bytes of the header; the first run follows */
export const WIN_DMP_HEADER_SIZE = { 64: 0x2000, 32: 0x1000 } as const;
/** Runs that PhysicalMemoryBlock has room for */
export const WIN_DMP_MAX_RUNS = { 64: 43, 32: 86 } as const;
/** DumpType of a full dump (DUMP_TYPE_FULL) */
export const DUMP_TYPE_FULL = 1;
/** BugcheckCode of a dump of a system that has not crashed (LIVE_SYSTEM_DUMP) */
export const LIVE_SYSTEM_DUMP = 0x161;
/** MachineImageType (IMAGE_FILE_MACHINE_AMD64, IMAGE_FILE_MACHINE_I386) */
export const WIN_DMP_MACHINE = { 64: 0x8664, 32: 0x14c } as const;

/** A run of pages that the dump has. */
export interface WinDmpRun {
  /** page frame number of the first page */
  readonly BasePage: bigint;
  readonly PageCount: bigint;
}

/** How a field stands in the header: a number by its bits, `text` up to a NUL, or as many `text` bytes. */
type FieldType = 'u8' | 'u16' | 'u32' | 'u64' | 'ptr' | { readonly text: number };
type FieldTable = Readonly<Record<string, readonly [offset: number, type: FieldType]>>;

const FIELDS_64 = {
  Signature: [0x0, { text: 4 }],
  ValidDump: [0x4, { text: 4 }],
  MajorVersion: [0x8, 'u32'],
  MinorVersion: [0xc, 'u32'],
  DirectoryTableBase: [0x10, 'u64'],
  PfnDatabase: [0x18, 'u64'],
  PsLoadedModuleList: [0x20, 'u64'],
  PsActiveProcessHead: [0x28, 'u64'],
  MachineImageType: [0x30, 'u32'],
  NumberProcessors: [0x34, 'u32'],
  BugcheckCode: [0x38, 'u32'],
  BugcheckParameter1: [0x40, 'u64'],
  BugcheckParameter2: [0x48, 'u64'],
  BugcheckParameter3: [0x50, 'u64'],
  BugcheckParameter4: [0x58, 'u64'],
  VersionUser: [0x60, { text: 32 }],
  KdDebuggerDataBlock: [0x80, 'u64'],
  NumberOfRuns: [0x88, 'u32'],
  NumberOfPages: [0x90, 'u64'],
  ExceptionCode: [0xf00, 'u32'],
  ExceptionFlags: [0xf04, 'u32'],
  ExceptionRecord: [0xf08, 'u64'],
  ExceptionAddress: [0xf10, 'u64'],
  NumberParameters: [0xf18, 'u32'],
  DumpType: [0xf98, 'u32'],
  RequiredDumpSpace: [0xfa0, 'u64'],
  SystemTime: [0xfa8, 'u64'],
  Comment: [0xfb0, { text: 128 }],
  SystemUpTime: [0x1030, 'u64'],
  MiniDumpFields: [0x1038, 'u32'],
  SecondaryDataState: [0x103c, 'u32'],
  ProductType: [0x1040, 'u32'],
  SuiteMask: [0x1044, 'u32'],
  WriterStatus: [0x1048, 'u32'],
  KdSecondaryVersion: [0x104d, 'u8'],
  Attributes: [0x1050, 'u32'],
  BootId: [0x1054, 'u32'],
} as const satisfies FieldTable;

const FIELDS_32 = {
  Signature: [0x0, { text: 4 }],
  ValidDump: [0x4, { text: 4 }],
  MajorVersion: [0x8, 'u32'],
  MinorVersion: [0xc, 'u32'],
  DirectoryTableBase: [0x10, 'ptr'],
  PfnDatabase: [0x14, 'ptr'],
  PsLoadedModuleList: [0x18, 'ptr'],
  PsActiveProcessHead: [0x1c, 'ptr'],
  MachineImageType: [0x20, 'u32'],
  NumberProcessors: [0x24, 'u32'],
  BugcheckCode: [0x28, 'u32'],
  BugcheckParameter1: [0x2c, 'ptr'],
  BugcheckParameter2: [0x30, 'ptr'],
  BugcheckParameter3: [0x34, 'ptr'],
  BugcheckParameter4: [0x38, 'ptr'],
  VersionUser: [0x3c, { text: 32 }],
  PaeEnabled: [0x5c, 'u8'],
  KdSecondaryVersion: [0x5d, 'u8'],
  KdDebuggerDataBlock: [0x60, 'ptr'],
  NumberOfRuns: [0x64, 'u32'],
  NumberOfPages: [0x68, 'ptr'],
  ExceptionCode: [0x7d0, 'u32'],
  ExceptionFlags: [0x7d4, 'u32'],
  ExceptionRecord: [0x7d8, 'ptr'],
  ExceptionAddress: [0x7dc, 'ptr'],
  NumberParameters: [0x7e0, 'u32'],
  Comment: [0x820, { text: 128 }],
  Attributes: [0x8a0, 'u32'],
  BootId: [0x8a4, 'u32'],
  DumpType: [0xf88, 'u32'],
  MiniDumpFields: [0xf8c, 'u32'],
  SecondaryDataState: [0xf90, 'u32'],
  ProductType: [0xf94, 'u32'],
  SuiteMask: [0xf98, 'u32'],
  WriterStatus: [0xf9c, 'u32'],
  // 64 bits to Windows; QEMU knows of the lower half only, and writes no other.
  RequiredDumpSpace: [0xfa0, 'ptr'],
  SystemUpTime: [0xfb8, 'u64'],
  SystemTime: [0xfc0, 'u64'],
} as const satisfies FieldTable;

const FIELDS: Readonly<Record<WinDmpBits, FieldTable>> = { 64: FIELDS_64, 32: FIELDS_32 };

/** PhysicalMemoryBlock.Run */
const RUNS_AT = { 64: 0x98, 32: 0x6c } as const;
/** Bytes of a PHYSICAL_MEMORY_RUN */
const RUN_SIZE = { 64: 16, 32: 8 } as const;
/** BugcheckData: code and parameters as the kernel has them in KiBugcheckData */
const BUGCHECK_DATA = { 64: { at: 0x38, size: 40 }, 32: { at: 0x28, size: 20 } } as const;
/** What nobody has a name for: behind NumberOfRuns, and behind DumpType; QEMU makes zeros of them */
const UNUSED_64 = [0x8c, 0xf9c] as const;
/** ExceptionInformation: as many parameters of the exception as NumberParameters says, at most 15 */
const EXCEPTION_INFORMATION = { 64: { at: 0xf20, size: 8 }, 32: { at: 0x7e4, size: 4 } } as const;
const EXCEPTION_MAXIMUM_PARAMETERS = 15;
/** The upper half of RequiredDumpSpace in 32 bit */
const REQUIRED_DUMP_SPACE_HIGH_32 = 0xfa4;
/** ContextRecord */
const CONTEXT_AT = { 64: 0x348, 32: 0x320 } as const;

/** Names of the header's fields that both layouts have. */
export type WinDmpField = Extract<keyof typeof FIELDS_64, keyof typeof FIELDS_32>;
type TextField = 'Signature' | 'ValidDump' | 'VersionUser' | 'Comment';
type NumberField = Exclude<WinDmpField, TextField>;

/**
 * A dump header: fields by Microsoft's names. All numbers are bigints, so that no field needs to be treated apart;
 * texts end at their first NUL.
 */
export interface WinDmpHeader extends Readonly<Record<NumberField, bigint>>, Readonly<Record<TextField, string>> {
  readonly bits: WinDmpBits;
  /** PhysicalMemoryBlock.Run: the first NumberOfRuns, as far as there is room for them */
  readonly runs: readonly WinDmpRun[];
  /** the first NumberParameters of them; none when there is no room for as many */
  readonly ExceptionInformation: readonly bigint[];
  /** 32 bit only: the kernel uses PAE */
  readonly PaeEnabled?: bigint;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function textOf(bytes: Uint8Array): string {
  const nul = bytes.indexOf(0);
  return Buffer.from(nul < 0 ? bytes : bytes.subarray(0, nul)).toString('utf8');
}

function readField(bytes: Uint8Array, at: number, type: FieldType): bigint | string {
  const view = viewOf(bytes);
  if (typeof type === 'object') return textOf(bytes.subarray(at, at + type.text));
  if (type === 'u64') return view.getBigUint64(at, true);
  if (type === 'u16') return BigInt(view.getUint16(at, true));
  return BigInt(type === 'u8' ? view.getUint8(at) : view.getUint32(at, true));
}

/** Which header it is by its first 8 bytes; null when it is none. */
export function winDmpBits(start: Uint8Array): WinDmpBits | null {
  const text = Buffer.from(start.subarray(0, 8)).toString('latin1');
  return ([64, 32] as const).find((bits) => text === WIN_DMP_SIGNATURE + WIN_DMP_VALID[bits]) ?? null;
}

/**
 * Decodes a header.
 * @param bytes all of it, WIN_DMP_HEADER_SIZE
 */
export function decodeWinDmpHeader(bytes: Uint8Array, bits: WinDmpBits): WinDmpHeader {
  const fields = Object.entries(FIELDS[bits]).map(([name, [at, type]]) => [name, readField(bytes, at, type)]);
  const header = Object.fromEntries(fields) as Omit<WinDmpHeader, 'bits' | 'runs' | 'ExceptionInformation'>;
  return {
    ...header,
    bits,
    runs: decodeRuns(bytes, bits, header.NumberOfRuns),
    ExceptionInformation: decodeParameters(bytes, bits, header.NumberParameters),
  };
}

function decodeParameters(bytes: Uint8Array, bits: WinDmpBits, claimed: bigint): bigint[] {
  const { at, size } = EXCEPTION_INFORMATION[bits];
  const type = bits === 64 ? 'u64' : 'u32';
  const length = claimed > EXCEPTION_MAXIMUM_PARAMETERS ? 0 : Number(claimed);
  return Array.from({ length }, (_, i) => readField(bytes, at + size * i, type) as bigint);
}

function decodeRuns(bytes: Uint8Array, bits: WinDmpBits, claimed: bigint): WinDmpRun[] {
  const length = Math.min(Number(claimed), WIN_DMP_MAX_RUNS[bits]);
  const type = bits === 64 ? 'u64' : 'u32';
  return Array.from({ length }, (_, i) => {
    const at = RUNS_AT[bits] + RUN_SIZE[bits] * i;
    const [BasePage, PageCount] = [at, at + RUN_SIZE[bits] / 2].map((at) => readField(bytes, at, type) as bigint);
    return { BasePage: BasePage!, PageCount: PageCount! };
  });
}

/** Writes a number of `size` bytes, cut to them. */
function writeNumber(bytes: Uint8Array, at: number, size: number, value: bigint): void {
  for (let i = 0; i < size; i++) bytes[at + i] = Number((value >> BigInt(8 * i)) & 0xffn);
}

const TYPE_SIZE = { u8: 1, u16: 2, u32: 4, ptr: 4, u64: 8 } as const;

/** Puts values into some fields of a header, and leaves the others. Numbers are cut to the field's width. */
export function setWinDmpFields(
  bytes: Uint8Array,
  bits: WinDmpBits,
  values: Partial<Record<WinDmpField | 'PaeEnabled', bigint | string>>,
): void {
  for (const [name, value] of Object.entries(values)) {
    const [at, type] = FIELDS[bits][name] ?? [];
    if (at === undefined || type === undefined) continue;
    if (typeof type !== 'object') writeNumber(bytes, at, TYPE_SIZE[type], BigInt(value));
    else bytes.set(Buffer.from(`${value}\0`, 'latin1').subarray(0, type.text), at);
  }
}

/** Writes the table of runs and their number; there is room for WIN_DMP_MAX_RUNS. */
export function setWinDmpRuns(bytes: Uint8Array, bits: WinDmpBits, runs: readonly WinDmpRun[]): void {
  const half = RUN_SIZE[bits] / 2;
  const NumberOfPages = runs.reduce((sum, run) => sum + run.PageCount, 0n);
  setWinDmpFields(bytes, bits, { NumberOfRuns: BigInt(runs.length), NumberOfPages });
  runs.forEach(({ BasePage, PageCount }, i) => {
    writeNumber(bytes, RUNS_AT[bits] + 2 * half * i, half, BasePage);
    writeNumber(bytes, RUNS_AT[bits] + 2 * half * i + half, half, PageCount);
  });
}

/** Bytes of BugcheckData. */
export function bugcheckDataSize(bits: WinDmpBits): number {
  return BUGCHECK_DATA[bits].size;
}

/** Puts the kernel's bugcheck data into a header; of a kernel that has none, the code of a live dump. */
export function setBugcheckData(header: Uint8Array, bits: WinDmpBits, data: Uint8Array): void {
  header.set(data, BUGCHECK_DATA[bits].at);
  const code = viewOf(data).getUint32(0, true);
  if (code === 0) setWinDmpFields(header, bits, { BugcheckCode: BigInt(LIVE_SYSTEM_DUMP) });
}

/** A header in which no field has a value yet; what has none in a dump of Windows' own is filled with `PAGE`. */
export function emptyWinDmpHeader(bits: WinDmpBits): Uint8Array {
  const header = Buffer.alloc(WIN_DMP_HEADER_SIZE[bits], WIN_DMP_SIGNATURE, 'latin1');
  for (const [name, [, type]] of Object.entries(FIELDS[bits]))
    setWinDmpFields(header, bits, { [name]: typeof type === 'object' ? '' : 0n });
  if (bits === 32) writeNumber(header, REQUIRED_DUMP_SPACE_HIGH_32, 4, 0n);
  setWinDmpFields(header, bits, { Signature: WIN_DMP_SIGNATURE, ValidDump: WIN_DMP_VALID[bits] });
  return new Uint8Array(header);
}

/** Makes zeros of the two dwords that have no meaning, as QEMU does. */
export function clearUnused(header: Uint8Array, bits: WinDmpBits): void {
  if (bits === 64) for (const at of UNUSED_64) writeNumber(header, at, 4, 0n);
}

/** The header's own ContextRecord, which a kernel that crashed fills in. */
export function headerContext(header: Uint8Array, bits: WinDmpBits): Uint8Array {
  return header.subarray(CONTEXT_AT[bits], CONTEXT_AT[bits] + CONTEXT_SIZE[bits]);
}

// ---------------------------------------------------------------------------------------------------------------------
// CONTEXT
// ---------------------------------------------------------------------------------------------------------------------

/** Bytes of a CONTEXT; that of 32 bits is 716 and 4 more that align it, which QEMU writes too. */
export const CONTEXT_SIZE = { 64: 0x4d0, 32: 720 } as const;

/** CONTEXT_AMD64 or CONTEXT_i386 in ContextFlags, and the bits that say which machine it is */
const CONTEXT_MACHINE = { 64: 0x10_0000, 32: 0x1_0000 } as const;
const CONTEXT_MACHINE_MASK = 0x07ff_0000;
/** ContextFlags that QEMU writes: CONTROL, INTEGER, SEGMENTS, DEBUG_REGISTERS, and with 64 bits FLOATING_POINT */
export const CONTEXT_FLAGS = { 64: 0x10_001f, 32: 0x1_0017 } as const;

/** What a CPU has after a reset, for sources that do not tell (Intel SDM vol. 3, 10.1). */
export const RESET_MXCSR = 0x1f80;
export const RESET_DEBUG: DebugRegisters = { dr0: 0n, dr1: 0n, dr2: 0n, dr3: 0n, dr6: 0xffff_0ff0n, dr7: 0x400n };

type ContextName = GeneralRegister | keyof DebugRegisters;

/** Where ContextFlags, the selectors (16 bits each, or 32), EFlags and the registers are. */
const CONTEXT_LAYOUT: Readonly<
  Record<
    WinDmpBits,
    {
      readonly flags: number;
      readonly selectors: Readonly<Record<SegmentRegister, number>>;
      readonly selectorSize: number;
      readonly eflags: number;
      readonly registers: Readonly<Partial<Record<ContextName, number>>>;
      readonly registerSize: number;
      readonly mxcsr: readonly number[];
    }
  >
> = {
  64: {
    flags: 0x30,
    selectors: { cs: 0x38, ds: 0x3a, es: 0x3c, fs: 0x3e, gs: 0x40, ss: 0x42 },
    selectorSize: 2,
    eflags: 0x44,
    registers: placed(
      0x48,
      8,
      'dr0 dr1 dr2 dr3 dr6 dr7 rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 rip',
    ),
    registerSize: 8,
    // MxCsr, and that of FltSave
    mxcsr: [0x34, 0x118],
  },
  32: {
    flags: 0,
    selectors: { gs: 0x8c, fs: 0x90, es: 0x94, ds: 0x98, cs: 0xbc, ss: 0xc8 },
    selectorSize: 4,
    eflags: 0xc0,
    registers: {
      ...placed(0x4, 4, 'dr0 dr1 dr2 dr3 dr6 dr7'),
      ...placed(0x9c, 4, 'rdi rsi rbx rdx rcx rax rbp rip'),
      rsp: 0xc4,
    },
    registerSize: 4,
    mxcsr: [],
  },
};

/** Registers that stand one behind the other. */
function placed(at: number, size: number, names: string): Partial<Record<ContextName, number>> {
  return Object.fromEntries(names.split(' ').map((name, i) => [name, at + size * i]));
}

/** Encodes the CONTEXT of a CPU as QEMU does: without x87 and SSE registers. */
export function encodeWinContext(cpu: CpuState, bits: WinDmpBits): Uint8Array {
  const layout = CONTEXT_LAYOUT[bits];
  const bytes = new Uint8Array(CONTEXT_SIZE[bits]);
  const values = { ...cpu, ...(cpu.debug ?? RESET_DEBUG) };
  writeNumber(bytes, layout.flags, 4, BigInt(CONTEXT_FLAGS[bits]));
  writeNumber(bytes, layout.eflags, 4, cpu.rflags);
  for (const name of SEGMENT_REGISTERS)
    writeNumber(bytes, layout.selectors[name], layout.selectorSize, BigInt(cpu[name].selector));
  for (const [name, at] of Object.entries(layout.registers))
    writeNumber(bytes, at, layout.registerSize, values[name as ContextName]);
  for (const at of layout.mxcsr) writeNumber(bytes, at, 4, BigInt(cpu.mxcsr ?? RESET_MXCSR));
  return bytes;
}

/**
 * What a CONTEXT says of a CPU: control registers and segment bases are not in it.
 * @param bytes CONTEXT_SIZE of them
 * @returns null when ContextFlags is not that of a CONTEXT of this machine
 */
export function decodeWinContext(bytes: Uint8Array, bits: WinDmpBits): CpuState | null {
  const layout = CONTEXT_LAYOUT[bits];
  const view = viewOf(bytes);
  const flags = view.getUint32(layout.flags, true);
  if ((flags & CONTEXT_MACHINE_MASK) !== CONTEXT_MACHINE[bits]) return null;
  const register = (name: ContextName): bigint => {
    const at = layout.registers[name];
    return at === undefined ? 0n : (readField(bytes, at, bits === 64 ? 'u64' : 'u32') as bigint);
  };
  const each = <N extends string, V>(names: readonly N[], value: (name: N) => V) =>
    Object.fromEntries(names.map((name) => [name, value(name)])) as Record<N, V>;
  const [mxcsrAt] = layout.mxcsr;
  return {
    ...each(GENERAL_REGISTERS, register),
    rflags: BigInt(view.getUint32(layout.eflags, true)),
    ...each(SEGMENT_REGISTERS, (name) => ({
      ...NULL_SEGMENT,
      selector: view.getUint16(layout.selectors[name], true),
    })),
    longMode: bits === 64,
    system: null,
    debug: each(['dr0', 'dr1', 'dr2', 'dr3', 'dr6', 'dr7'] as const, register),
    ...(mxcsrAt === undefined ? {} : { mxcsr: view.getUint32(mxcsrAt, true) }),
  };
}
