/**
 * ELF notes of a vmcore: NT_PRSTATUS and QEMU's own `QEMU` note for each CPU, VMCOREINFO for the kernel.
 *
 * A note is three 32-bit words (n_namesz, n_descsz, n_type), the name with its NUL and the descriptor, each padded to
 * 4 bytes; the header is the same in ELF32 and ELF64 (gABI, "Note Section"). Layouts of the descriptors follow
 * QEMU's target/i386/arch_dump.c and Linux's `struct elf_prstatus`.
 */

import { VmcoreError } from '../model/errors.js';
import {
  type CpuState,
  GENERAL_REGISTERS,
  type GeneralRegister,
  NULL_SEGMENT,
  pagingEnabled,
  SEGMENT_REGISTERS,
  type Segment,
  type SegmentRegister,
  SYSTEM_SEGMENTS,
  type SystemState,
} from '../model/guest.js';
import type { ElfNote } from '../model/note.js';

/** Elf64_Nhdr / Elf32_Nhdr: 12 bytes either way. */
export const NOTE_HEADER_SIZE = 12;
/** n_type of NT_PRSTATUS (elf.h) */
export const NT_PRSTATUS = 1;
/** Name of the notes that hold NT_PRSTATUS */
export const NOTE_NAME_CORE = 'CORE';
/** Name of the notes that hold `struct QEMUCPUState`; their n_type is 0 */
export const NOTE_NAME_QEMU = 'QEMU';
/** Name of the note that holds the kernel's key=value lines; its n_type is 0 */
export const NOTE_NAME_VMCOREINFO = 'VMCOREINFO';

/** Rounds up to the 4 bytes that names and descriptors of notes are padded to. */
export function align4(size: number): number {
  return Math.ceil(size / 4) * 4;
}

/** Encodes a note. */
export function encodeNote(name: string, type: number, desc: Uint8Array): ElfNote {
  const nameBytes = Buffer.from(`${name}\0`, 'latin1');
  const raw = new Uint8Array(NOTE_HEADER_SIZE + align4(nameBytes.length) + align4(desc.length));
  const view = new DataView(raw.buffer);
  view.setUint32(0, nameBytes.length, true);
  view.setUint32(4, desc.length, true);
  view.setUint32(8, type, true);
  raw.set(nameBytes, NOTE_HEADER_SIZE);
  raw.set(desc, NOTE_HEADER_SIZE + align4(nameBytes.length));
  return { name, type, desc, raw };
}

/**
 * Splits the bytes of a PT_NOTE segment into its notes. The last note may lack its padding.
 * @param bytes the segment
 * @param where what to call it in messages
 * @throws VmcoreError BAD_INPUT when a note claims to be longer than the segment
 */
export function parseNotes(bytes: Uint8Array, where: string): ElfNote[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const notes: ElfNote[] = [];
  for (let at = 0; at + NOTE_HEADER_SIZE <= bytes.length;) {
    const nameSize = view.getUint32(at, true);
    const descSize = view.getUint32(at + 4, true);
    const type = view.getUint32(at + 8, true);
    // Some writers pad the segment with zeros behind the last note.
    if (nameSize === 0 && descSize === 0 && type === 0) break;
    const descAt = at + NOTE_HEADER_SIZE + align4(nameSize);
    if (descAt + descSize > bytes.length)
      throw new VmcoreError(
        'BAD_INPUT',
        `${where}: note at byte ${at} claims a name of ${nameSize} and a descriptor of ${descSize} bytes, but only ${bytes.length - at} bytes of notes remain`,
      );
    const end = Math.min(bytes.length, descAt + align4(descSize));
    const nameBytes = bytes.subarray(at + NOTE_HEADER_SIZE, at + NOTE_HEADER_SIZE + nameSize);
    notes.push({
      name: Buffer.from(nameBytes).toString('latin1').replace(/\0.*$/s, ''),
      type,
      desc: bytes.subarray(descAt, descAt + descSize),
      raw: bytes.subarray(at, end),
    });
    at = end;
  }
  return notes;
}

// ---------------------------------------------------------------------------------------------------------------------
// NT_PRSTATUS
// ---------------------------------------------------------------------------------------------------------------------

/** x86_64 `struct elf_prstatus`: pr_pid at 32, pr_reg (27 × 8 bytes) at 112, pr_fpvalid behind it. */
const PRSTATUS64 = { size: 336, pid: 32, regs: 112, regsEnd: 328 } as const;

/** pr_reg of x86_64, in order (`struct user_regs_struct`). */
const PRSTATUS64_REGS = [
  'r15',
  'r14',
  'r13',
  'r12',
  'rbp',
  'rbx',
  'r11',
  'r10',
  'r9',
  'r8',
  'rax',
  'rcx',
  'rdx',
  'rsi',
  'rdi',
  'orig_rax',
  'rip',
  'cs',
  'rflags',
  'rsp',
  'ss',
  'fs_base',
  'gs_base',
  'ds',
  'es',
  'fs',
  'gs',
] as const;

/** i386 `struct elf_prstatus`: pr_pid at 24, pr_reg (17 × 4 bytes) at 72, pr_fpvalid behind it. */
const PRSTATUS32 = { size: 144, pid: 24, regs: 72, regsEnd: 140 } as const;

/** pr_reg of i386, in order. */
const PRSTATUS32_REGS = [
  'rbx',
  'rcx',
  'rdx',
  'rsi',
  'rdi',
  'rbp',
  'rax',
  'ds',
  'es',
  'fs',
  'gs',
  'orig_rax',
  'rip',
  'cs',
  'rflags',
  'rsp',
  'ss',
] as const;

type PrstatusSlot = (typeof PRSTATUS64_REGS)[number] | (typeof PRSTATUS32_REGS)[number];

/** Size in bytes of the NT_PRSTATUS descriptor. */
export function prstatusSize(longMode: boolean): number {
  return longMode ? PRSTATUS64.size : PRSTATUS32.size;
}

/**
 * Whether an NT_PRSTATUS descriptor of so many bytes has the layout of x86_64; null when it has neither that nor the
 * one of i386. Some writers leave out pr_fpvalid, or its padding: all registers are there without.
 */
export function prstatusLongMode(size: number): boolean | null {
  if (size >= PRSTATUS64.regsEnd && size <= PRSTATUS64.size) return true;
  if (size >= PRSTATUS32.regsEnd && size <= PRSTATUS32.size) return false;
  return null;
}

function slotValue(cpu: CpuState, slot: PrstatusSlot): bigint {
  switch (slot) {
    case 'orig_rax':
      return 0n; // no system call was interrupted; QEMU writes 0 too
    case 'fs_base':
      return cpu.fs.base;
    case 'gs_base':
      return cpu.gs.base;
    case 'cs':
    case 'ds':
    case 'es':
    case 'fs':
    case 'gs':
    case 'ss':
      return BigInt(cpu[slot].selector);
    default:
      return cpu[slot];
  }
}

/**
 * The NT_PRSTATUS descriptor of a CPU.
 * @param pid      pr_pid: QEMU numbers CPUs from 1
 * @param longMode which of the two layouts: QEMU takes that of the first CPU for all of them
 */
export function encodePrstatus(cpu: CpuState, pid: number, longMode: boolean): Uint8Array {
  if (cpu.prstatus?.length === prstatusSize(longMode)) return cpu.prstatus;
  const layout = longMode ? PRSTATUS64 : PRSTATUS32;
  const desc = new Uint8Array(layout.size);
  const view = new DataView(desc.buffer);
  view.setUint32(layout.pid, pid, true);
  if (longMode)
    PRSTATUS64_REGS.forEach((slot, i) => {
      view.setBigUint64(layout.regs + 8 * i, slotValue(cpu, slot), true);
    });
  else
    PRSTATUS32_REGS.forEach((slot, i) => {
      view.setUint32(layout.regs + 4 * i, Number(BigInt.asUintN(32, slotValue(cpu, slot))), true);
    });
  return desc;
}

/** What an NT_PRSTATUS descriptor says of a CPU; null when its size is neither that of x86_64 nor that of i386. */
export function decodePrstatus(desc: Uint8Array): CpuState | null {
  const longMode = prstatusLongMode(desc.length);
  if (longMode === null) return null;
  const view = new DataView(desc.buffer, desc.byteOffset, desc.byteLength);
  const slots = new Map<PrstatusSlot, bigint>();
  if (longMode)
    PRSTATUS64_REGS.forEach((slot, i) => {
      slots.set(slot, view.getBigUint64(PRSTATUS64.regs + 8 * i, true));
    });
  else
    PRSTATUS32_REGS.forEach((slot, i) => {
      slots.set(slot, BigInt(view.getUint32(PRSTATUS32.regs + 4 * i, true)));
    });
  const value = (slot: PrstatusSlot): bigint => slots.get(slot) ?? 0n;
  const general = Object.fromEntries(
    GENERAL_REGISTERS.map((name) => [name, slots.get(name as PrstatusSlot) ?? 0n]),
  ) as Record<GeneralRegister, bigint>;
  const segments = Object.fromEntries(
    // i386 keeps selectors in 16 bits beside 16 bits of padding.
    SEGMENT_REGISTERS.map((name) => [name, { ...NULL_SEGMENT, selector: Number(value(name) & 0xffffn) }]),
  ) as Record<SegmentRegister, Segment>;
  return {
    ...general,
    ...segments,
    fs: { ...segments.fs, base: value('fs_base') },
    gs: { ...segments.gs, base: value('gs_base') },
    longMode,
    system: null,
    prstatus: wholePrstatus(desc, longMode),
  };
}

/** A descriptor with what it may lack behind its registers: readers count from its end (crash). */
function wholePrstatus(desc: Uint8Array, longMode: boolean): Uint8Array {
  const size = prstatusSize(longMode);
  if (desc.length === size) return desc;
  const whole = new Uint8Array(size);
  whole.set(desc);
  return whole;
}

// ---------------------------------------------------------------------------------------------------------------------
// The QEMU note: struct QEMUCPUState
// ---------------------------------------------------------------------------------------------------------------------

/** QEMUCPUSTATE_VERSION */
const QEMU_CPU_STATE_VERSION = 1;
/** version, size: 2 × u32; 18 general registers; 10 × QEMUCPUSegment; cr[5] and kernel_gs_base: u64 each. */
export const QEMU_CPU_STATE_SIZE = 440;
/** The same before QEMU 2.12, which had no kernel_gs_base. */
const QEMU_CPU_STATE_SIZE_OLD = 432;
/** struct QEMUCPUSegment: selector, limit, flags, pad: u32 each; base: u64 */
const QEMU_CPU_SEGMENT_SIZE = 24;
const QEMU_GENERAL_AT = 8;
const QEMU_SEGMENTS_AT = QEMU_GENERAL_AT + 8 * GENERAL_REGISTERS.length;
const QEMU_CONTROL_AT = QEMU_SEGMENTS_AT + QEMU_CPU_SEGMENT_SIZE * (SEGMENT_REGISTERS.length + SYSTEM_SEGMENTS.length);
const CONTROL_REGISTERS = ['cr0', 'cr1', 'cr2', 'cr3', 'cr4', 'kernelGsBase'] as const;

/** What a CPU's `QEMU` note says of control registers and tables that are not known. */
const UNKNOWN_SYSTEM: SystemState = {
  ...(Object.fromEntries(SYSTEM_SEGMENTS.map((name) => [name, NULL_SEGMENT])) as Pick<
    SystemState,
    (typeof SYSTEM_SEGMENTS)[number]
  >),
  ...(Object.fromEntries(CONTROL_REGISTERS.map((name) => [name, 0n])) as Pick<
    SystemState,
    (typeof CONTROL_REGISTERS)[number]
  >),
};

/** Whether all of it is zeros, which no processor has: CR0.ET is always set since the 486 (Intel SDM vol. 3, 2.5). */
function isUnknown(system: SystemState): boolean {
  return (
    CONTROL_REGISTERS.every((name) => system[name] === 0n) &&
    SYSTEM_SEGMENTS.map((name) => system[name]).every(
      ({ selector, limit, flags, base }) => selector === 0 && limit === 0 && flags === 0 && base === 0n,
    )
  );
}

/** The descriptor of a CPU's `QEMU` note (`struct QEMUCPUState`). */
export function encodeQemuCpuState(cpu: CpuState, system: SystemState): Uint8Array {
  const desc = new Uint8Array(QEMU_CPU_STATE_SIZE);
  const view = new DataView(desc.buffer);
  view.setUint32(0, QEMU_CPU_STATE_VERSION, true);
  view.setUint32(4, QEMU_CPU_STATE_SIZE, true);
  GENERAL_REGISTERS.forEach((name, i) => {
    view.setBigUint64(QEMU_GENERAL_AT + 8 * i, cpu[name], true);
  });
  const segments = [...SEGMENT_REGISTERS.map((name) => cpu[name]), ...SYSTEM_SEGMENTS.map((name) => system[name])];
  segments.forEach((segment, i) => {
    const at = QEMU_SEGMENTS_AT + QEMU_CPU_SEGMENT_SIZE * i;
    view.setUint32(at, segment.selector, true);
    view.setUint32(at + 4, segment.limit, true);
    view.setUint32(at + 8, segment.flags, true);
    view.setBigUint64(at + 16, segment.base, true);
  });
  CONTROL_REGISTERS.forEach((name, i) => {
    view.setBigUint64(QEMU_CONTROL_AT + 8 * i, system[name], true);
  });
  return desc;
}

/**
 * A CPU from its `QEMU` note.
 * @param desc     the descriptor
 * @param longMode EFER.LMA, which the note does not hold: the vmcore's e_machine says it for the first CPU
 * @returns null when the descriptor is not a QEMUCPUState of version 1
 */
export function decodeQemuCpuState(desc: Uint8Array, longMode: boolean): CpuState | null {
  if (desc.length < QEMU_CPU_STATE_SIZE_OLD) return null;
  const view = new DataView(desc.buffer, desc.byteOffset, desc.byteLength);
  if (view.getUint32(0, true) !== QEMU_CPU_STATE_VERSION) return null;
  const segmentAt = (i: number): Segment => {
    const at = QEMU_SEGMENTS_AT + QEMU_CPU_SEGMENT_SIZE * i;
    return {
      selector: view.getUint32(at, true),
      limit: view.getUint32(at + 4, true),
      flags: view.getUint32(at + 8, true),
      base: view.getBigUint64(at + 16, true),
    };
  };
  const control = (i: number): bigint => {
    const at = QEMU_CONTROL_AT + 8 * i;
    return at + 8 <= desc.length ? view.getBigUint64(at, true) : 0n;
  };
  const general = Object.fromEntries(
    GENERAL_REGISTERS.map((name, i) => [name, view.getBigUint64(QEMU_GENERAL_AT + 8 * i, true)]),
  ) as Record<GeneralRegister, bigint>;
  const segments = Object.fromEntries(SEGMENT_REGISTERS.map((name, i) => [name, segmentAt(i)])) as Record<
    SegmentRegister,
    Segment
  >;
  const tables = Object.fromEntries(
    SYSTEM_SEGMENTS.map((name, i) => [name, segmentAt(SEGMENT_REGISTERS.length + i)]),
  ) as Record<(typeof SYSTEM_SEGMENTS)[number], Segment>;
  const controls = Object.fromEntries(CONTROL_REGISTERS.map((name, i) => [name, control(i)])) as Record<
    (typeof CONTROL_REGISTERS)[number],
    bigint
  >;
  const system = { ...tables, ...controls };
  return { ...general, ...segments, longMode, system: isUnknown(system) ? null : system };
}

// ---------------------------------------------------------------------------------------------------------------------
// All notes of a guest
// ---------------------------------------------------------------------------------------------------------------------

/**
 * The notes of a vmcore in QEMU's order: NT_PRSTATUS of every CPU, the `QEMU` note of every CPU, then the others.
 *
 * Readers (crash, libkdumpfile) take the n-th note of each kind for those of the n-th CPU. So there are `QEMU` notes for
 * all CPUs or for none: where the control registers of but some are known, those of the others are zeros.
 * @param longMode layout of NT_PRSTATUS; QEMU takes the first CPU's mode for all
 */
export function guestNotes(
  guest: { readonly cpus: readonly CpuState[]; readonly notes: readonly ElfNote[] },
  longMode: boolean,
): ElfNote[] {
  const { cpus } = guest;
  const prstatus = cpus.map((cpu, i) => encodeNote(NOTE_NAME_CORE, NT_PRSTATUS, encodePrstatus(cpu, i + 1, longMode)));
  const qemu = cpus.some(({ system }) => system !== null)
    ? cpus.map((cpu) => encodeNote(NOTE_NAME_QEMU, 0, encodeQemuCpuState(cpu, cpu.system ?? UNKNOWN_SYSTEM)))
    : [];
  return [...prstatus, ...qemu, ...guest.notes];
}

/** CR4.PAE; descriptor flag L: a 64-bit code segment (Intel SDM vol. 3, 2.5 and 3.4.5) */
const CR4_PAE = 1n << 5n;
const DESCRIPTOR_L = 1 << 21;

/**
 * EFER.LMA of a CPU after the first, which no note holds. A CPU with PAE paging is in long mode when its code segment
 * is a 64-bit one, and when the first CPU is: no system runs its CPUs in different modes for longer than a boot.
 */
function looksLongMode(cpu: CpuState, firstInLongMode: boolean): boolean {
  if (!cpu.system) return firstInLongMode;
  const paging = pagingEnabled(cpu) && (cpu.system!.cr4 & CR4_PAE) !== 0n;
  return paging && (firstInLongMode || (cpu.cs.flags & DESCRIPTOR_L) !== 0);
}

/**
 * Sorts the notes of a vmcore into CPUs and the rest.
 * @param longMode EFER.LMA of the first CPU, by e_machine
 */
export function splitNotes(notes: readonly ElfNote[], longMode: boolean): { cpus: CpuState[]; others: ElfNote[] } {
  const prstatus: CpuState[] = [];
  const qemu: CpuState[] = [];
  const others: ElfNote[] = [];
  for (const note of notes) {
    const core = note.name === NOTE_NAME_CORE && note.type === NT_PRSTATUS ? decodePrstatus(note.desc) : null;
    const state = note.name === NOTE_NAME_QEMU && note.type === 0 ? decodeQemuCpuState(note.desc, longMode) : null;
    if (core) prstatus.push(core);
    else if (state) qemu.push(state);
    else others.push(note);
  }
  const states = pairStates(prstatus, qemu).map(({ core, state }, i): CpuState => {
    if (!state) return core!;
    const known = { ...state, longMode: i === 0 ? longMode : looksLongMode(state, longMode) };
    return core?.prstatus ? { ...known, prstatus: core.prstatus } : known;
  });
  return { cpus: states, others };
}

/** What the notes of one CPU say of it, at least one of both. */
interface CpuNotes {
  readonly core?: CpuState | undefined;
  readonly state?: CpuState | undefined;
}

/**
 * Finds the notes that are of the same CPU: the n-th of each kind, where there are as many. A writer that had control
 * registers of some CPUs only may have left out the other `QEMU` notes; then the registers tell, which are in both.
 */
function pairStates(prstatus: readonly CpuState[], qemu: readonly CpuState[]): CpuNotes[] {
  if (prstatus.length === qemu.length) return qemu.map((state, i) => ({ core: prstatus[i], state }));
  const pairs: CpuNotes[] = [];
  const places = placesByRegisters(prstatus);
  let next = 0;
  for (const state of qemu) {
    const candidates = places.get(registersKey(state)) ?? [];
    while (candidates.length > 0 && candidates.at(-1)! < next) candidates.pop();
    const place = candidates.pop();
    if (place === undefined) pairs.push({ state });
    else {
      while (next < place) pairs.push({ core: prstatus[next++] });
      pairs.push({ core: prstatus[next++], state });
    }
  }
  while (next < prstatus.length) pairs.push({ core: prstatus[next++] });
  return pairs;
}

/** Places in a list by what CPUs there have in their registers; the first place comes last. */
function placesByRegisters(cpus: readonly CpuState[]): Map<string, number[]> {
  const places = new Map<string, number[]>();
  for (let i = cpus.length - 1; i >= 0; i--) {
    const key = registersKey(cpus[i]!);
    const known = places.get(key);
    if (known) known.push(i);
    else places.set(key, [i]);
  }
  return places;
}

/** Where a CPU is, and with what stack: as far as NT_PRSTATUS of 32 bits has it. */
function registersKey({ rip, rsp, rbp, rflags }: CpuState): string {
  return [rip, rsp, rbp, rflags].map((value) => BigInt.asUintN(32, value)).join();
}
