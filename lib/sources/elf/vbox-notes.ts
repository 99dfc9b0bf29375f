/**
 * The CPUs of a VirtualBox core (`VBoxManage debugvm NAME dumpvmcore`), which has no NT_PRSTATUS: a `VBCORE` note
 * describes the core, a `VBCPU` note for each CPU holds a DBGFCORECPU (VirtualBox, include/VBox/vmm/dbgfcorefmt.h).
 *
 * Versions 1.4 to 1.6 of the format agree in all that is read here; before, VBCPU held VirtualBox's internal CPU
 * context, whose layout was that of the build.
 */

import type { CpuState, GeneralRegister, Segment, SegmentRegister } from '../../model/guest.js';
import type { ElfNote } from '../../model/note.js';

/** Name and n_type of the note that describes the core (g_pcszCoreVBoxCore, NT_VBOXCORE) */
export const NOTE_NAME_VBCORE = 'VBCORE';
export const NT_VBOXCORE = 0xb00;
/** Name and n_type of the note of one CPU (g_pcszCoreVBoxCpu, NT_VBOXCPU) */
export const NOTE_NAME_VBCPU = 'VBCPU';
export const NT_VBOXCPU = 0xb01;

/** DBGFCOREDESCRIPTOR: u32Magic at 0, u32FmtVersion at 4: 16 bits each of major and minor */
const DBGFCORE_MAGIC = 0xc01ac0de;
const FIRST_VERSION = 0x00010004;
const LAST_VERSION = 0x00010006;
const DESCRIPTOR_SIZE = 24;

/** General registers of DBGFCORECPU, in order from its start, 8 bytes each. */
const GENERAL_AT_0: readonly GeneralRegister[] = [
  'rax',
  'rbx',
  'rcx',
  'rdx',
  'rsi',
  'rdi',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
  'rip',
  'rsp',
  'rbp',
  'rflags',
];

/** Offsets of fields of DBGFCORECPU; its segments (DBGFCORESEL, 24 bytes) and table registers (16 bytes) follow. */
const CPU = { cs: 144, ds: 168, es: 192, fs: 216, gs: 240, ss: 264 } as const;
const CR = { cr0: 288, cr2: 296, cr3: 304, cr4: 312 } as const;
const GDTR = 384;
const IDTR = 400;
const LDTR = 416;
const TR = 440;
const MSR_EFER = 488;
const MSR_KERNEL_GS_BASE = 536;
/** What is read of it; the rest (APIC base, XSAVE area) has no place in a CpuState. */
const READ_SIZE = 544;

/** EFER.LMA (Intel SDM vol. 3, 2.2.1) */
const EFER_LMA = 1n << 10n;
/** X86DESCATTR: the unusable bit of VT-x, and where limit bits stand that QEMU's flags do not have */
const ATTR_UNUSABLE = 1 << 16;
const ATTR_PRESENT = 1 << 7;
const ATTR_FLAGS = 0xf0ff;

/** The notes of a core, with the CPUs of VirtualBox's apart. */
export interface VirtualBoxNotes {
  readonly cpus: readonly CpuState[];
  /** the notes as they were, without those of the CPUs that could be read */
  readonly others: readonly ElfNote[];
  /** what could not be read; null when nothing, or when they are not VirtualBox's */
  readonly unknown: string | null;
}

/** Takes the CPUs out of the notes of a VirtualBox core. */
export function splitVirtualBoxNotes(notes: readonly ElfNote[]): VirtualBoxNotes {
  const descriptor = notes.find(({ name, type }) => name === NOTE_NAME_VBCORE && type === NT_VBOXCORE);
  const isAnyCpu = ({ name, type }: ElfNote): boolean => name === NOTE_NAME_VBCPU && type === NT_VBOXCPU;
  if (!descriptor || !isKnownDescriptor(descriptor))
    return { cpus: [], others: notes, unknown: notes.some(isAnyCpu) ? unknownVersion(descriptor) : null };
  const isCpu = (note: ElfNote): boolean => isAnyCpu(note) && note.desc.length >= READ_SIZE;
  const cut = notes.filter((note) => isAnyCpu(note) && !isCpu(note)).length;
  return {
    cpus: notes.filter(isCpu).map((note) => decodeCpu(viewOf(note.desc))),
    others: notes.filter((note) => !isCpu(note)),
    unknown: cut === 0 ? null : `${cut} of VirtualBox's CPU notes are too short, and their registers are left aside`,
  };
}

/** `VirtualBox's CPU notes are of format 1.3, …` */
function unknownVersion(descriptor: ElfNote | undefined): string {
  const isVersioned = descriptor !== undefined && descriptor.desc.length >= 8;
  const version = isVersioned ? viewOf(descriptor.desc).getUint32(4, true) : null;
  const format = version === null ? 'a format that is not told' : `format ${version >>> 16}.${version & 0xffff}`;
  return `VirtualBox's CPU notes are of ${format}, not 1.4 to 1.6, and their registers are left aside`;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function isKnownDescriptor(note: ElfNote): boolean {
  if (note.desc.length < DESCRIPTOR_SIZE) return false;
  const view = viewOf(note.desc);
  const version = view.getUint32(4, true);
  return view.getUint32(0, true) === DBGFCORE_MAGIC && version >= FIRST_VERSION && version <= LAST_VERSION;
}

function decodeCpu(view: DataView): CpuState {
  const u64 = (at: number): bigint => view.getBigUint64(at, true);
  const general = Object.fromEntries(GENERAL_AT_0.map((name, i) => [name, u64(8 * i)])) as Record<
    GeneralRegister,
    bigint
  >;
  const segments = Object.fromEntries(
    Object.entries(CPU).map(([name, at]) => [name, decodeSelector(view, at)]),
  ) as Record<SegmentRegister, Segment>;
  return {
    ...general,
    ...segments,
    longMode: (u64(MSR_EFER) & EFER_LMA) !== 0n,
    system: {
      ldt: decodeSelector(view, LDTR),
      tr: decodeSelector(view, TR),
      gdt: decodeTable(view, GDTR),
      idt: decodeTable(view, IDTR),
      cr0: u64(CR.cr0),
      cr1: 0n,
      cr2: u64(CR.cr2),
      cr3: u64(CR.cr3),
      cr4: u64(CR.cr4),
      kernelGsBase: u64(MSR_KERNEL_GS_BASE),
    },
  };
}

/** DBGFCORESEL: uBase u64, uLimit u32, uAttr u32, uSel u16. */
function decodeSelector(view: DataView, at: number): Segment {
  const attributes = view.getUint32(at + 12, true);
  const usable = attributes & ATTR_UNUSABLE ? attributes & ~ATTR_PRESENT : attributes;
  return {
    base: view.getBigUint64(at, true),
    limit: view.getUint32(at + 8, true),
    // QEMU keeps the same bits at the place that they have in a descriptor's second dword.
    flags: (usable & ATTR_FLAGS) << 8,
    selector: view.getUint16(at + 16, true),
  };
}

/** DBGFCOREXDTR: uAddr u64, cb u32. */
function decodeTable(view: DataView, at: number): Segment {
  return { base: view.getBigUint64(at, true), limit: view.getUint32(at + 8, true), flags: 0, selector: 0 };
}
