/**
 * CPU states from what QEMU's monitor prints for `info registers -a` (target/i386/cpu-dump.c).
 *
 * The text is nearly the machine's whole state, but not quite what QEMU writes into its `QEMU` note:
 *
 * - Registers and segment bases have 64 bits only while the CPU executes 64-bit code. In compatibility mode the text
 *   has neither R8-R15 nor any upper half; they come out as 0. CR2, CR3, GDT and IDT go by EFER.LMA and are whole.
 * - Segment flags are printed without bits 31:24 and 7:0. Under TCG these hold what the descriptor has there, bits of
 *   the base, and the note has them: see `withBaseBits`. Under KVM they are 0.
 * - MSR_KERNEL_GS_BASE is not printed: 0.
 *
 * RFL/EFL is complete for a stopped guest: QEMU computes the lazy flags of TCG when a CPU leaves its execution loop.
 */

import { VmcoreError } from '../../model/errors.js';
import {
  type CpuState,
  type DebugRegisters,
  GENERAL_REGISTERS,
  type GeneralRegister,
  SEGMENT_REGISTERS,
  type Segment,
  type SegmentRegister,
  SYSTEM_SEGMENTS,
  type SystemSegment,
} from '../../model/guest.js';
import { readSmallFile } from '../../io/small-file.js';

/** EFER.LMA: long mode is active. */
export const EFER_LMA = 0x400n;

const CR0_PE = 1n;
const RFLAGS_VM = 1n << 17n;

/** Descriptor flags, as they stand in the second dword (Intel SDM vol. 3, 3.4.5). */
const DESC_P = 1 << 15;
const DESC_G = 1 << 23;
/** In a TSS descriptor: the busy bit of its type. */
const DESC_TSS_BUSY = 1 << 9;
const DESC_LIMIT_HIGH = 0x000f_0000;
/** What the text leaves out of the flags: bits 31:24 and 23:16 of the base, in bits 31:24 and 7:0. */
const DESC_BASE_HIGH = 0xff00_0000n;

const CONTROL_REGISTERS = ['cr0', 'cr2', 'cr3', 'cr4'] as const;
const DEBUG_REGISTERS = ['dr0', 'dr1', 'dr2', 'dr3', 'dr6', 'dr7'] as const;
type ControlRegister = (typeof CONTROL_REGISTERS)[number];
type ScalarName = GeneralRegister | ControlRegister | keyof DebugRegisters | 'efer' | 'mxcsr';
type SegmentName = SegmentRegister | SystemSegment;

/** `RAX` and `EAX` are both rax: the text uses the E names outside of 64-bit code. */
const SCALAR_BY_TEXT = new Map<string, ScalarName>([
  ...[...GENERAL_REGISTERS, ...CONTROL_REGISTERS, ...DEBUG_REGISTERS, 'efer' as const, 'mxcsr' as const].map(
    (name) => [name.toUpperCase(), name] as const,
  ),
  ...GENERAL_REGISTERS.map((name) => [name.toUpperCase().replace('R', 'E'), name] as const),
  ['RFL', 'rflags'],
  ['EFL', 'rflags'],
]);

const CPU_HEADER = /^\s*CPU#\d+/;
/** `RAX=0000000000000000`, `R8 =…`, `CR0=80050033`; what is not a register of ours matches too and is left out. */
const SCALAR = /\b([A-Z][A-Z0-9]{1,4}) ?=([0-9a-f]{8,16})\b/g;
/** `CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]`: selector, base, limit, flags. */
const SEGMENT = /^([C-GS]S|LDT|TR) *=([0-9a-f]{4}) ([0-9a-f]{8,16}) ([0-9a-f]{8}) ([0-9a-f]{8})\b/;
/** `GDT=     fffffe0000001000 0000007f`: base, limit. */
const TABLE = /^(GDT|IDT) *= +([0-9a-f]{8,16}) ([0-9a-f]{8})\b/;

/** Hexadecimal digits of a base where the text has 64 bits of it. */
const DIGITS_64 = 16;

/** `A20=1 SMM=0` in the line of the instruction pointer */
const A20_AND_SMM = /\bA20=([01]) SMM=([01])\b/;

/** What the lines of one CPU have yielded so far. */
interface Found {
  readonly scalars: Map<ScalarName, bigint>;
  readonly segments: Map<SegmentName, Segment>;
  /** whether the bases of GDT and IDT had 64 bits: they do by EFER.LMA */
  wideTables: boolean;
  /** the A20 gate is closed */
  a20Masked: boolean;
}

/**
 * Reads a file with what `info registers -a` prints.
 * @throws VmcoreError READ, BAD_INPUT
 */
export async function readRegisters(path: string): Promise<CpuState[]> {
  const text = await readSmallFile(path, 'what "info registers -a" prints');
  return parseRegisters(text.toString('latin1'), path);
}

/**
 * CPU states from what the monitor prints for `info registers -a`, or for `info registers` (one CPU). Anything around
 * the registers (prompts, FPU and SSE lines) is left out.
 * @param text  what the monitor printed, with LF or CRLF
 * @param where what to call it in messages: a path
 * @returns the CPUs in the order of the text; `kernelGsBase` is 0, the text does not have it
 * @throws VmcoreError BAD_INPUT when there is no CPU or one lacks a register
 */
export function parseRegisters(text: string, where: string): CpuState[] {
  const cpus = collect(text).map((found, index) => cpuState(found, `${where}: CPU#${index}`));
  if (cpus.length > 0) return cpus;
  throw new VmcoreError(
    'BAD_INPUT',
    `${where}: no CPU registers found; save what QEMU's monitor prints for "info registers -a"`,
  );
}

/** Sorts lines by CPU: a new one begins at `CPU#`, and at a second RAX where there are no such headers. */
function collect(text: string): Found[] {
  const cpus: Found[] = [];
  let current: Found | undefined;
  for (const line of text.split(/\r?\n/)) {
    const scalars = scalarsOf(line);
    const headless = scalars.some(([name]) => name === 'rax') && (current?.scalars.has('rax') ?? true);
    if (CPU_HEADER.test(line) || headless) {
      current = { scalars: new Map(), segments: new Map(), wideTables: false, a20Masked: false };
      cpus.push(current);
    }
    if (current) takeLine(current, line, scalars);
  }
  return cpus;
}

function scalarsOf(line: string): [ScalarName, bigint][] {
  return [...line.matchAll(SCALAR)].flatMap(([, text, digits]) => {
    const name = SCALAR_BY_TEXT.get(text!);
    return name ? [[name, hex(digits!)]] : [];
  });
}

function takeLine(found: Found, line: string, scalars: readonly [ScalarName, bigint][]): void {
  for (const [name, value] of scalars) found.scalars.set(name, value);
  const [, a20, smm] = A20_AND_SMM.exec(line) ?? [];
  // System management mode sees all of memory, whatever the gate (QEMU: x86_get_a20_mask).
  if (a20) found.a20Masked = a20 === '0' && smm === '0';
  const [, segment, selector, base, limit, flags] = SEGMENT.exec(line) ?? [];
  if (segment)
    found.segments.set(segment.toLowerCase() as SegmentName, {
      selector: Number(hex(selector!)),
      limit: Number(hex(limit!)),
      flags: Number(hex(flags!)),
      base: hex(base!),
    });
  const [, table, tableBase, tableLimit] = TABLE.exec(line) ?? [];
  if (table) {
    const name = table.toLowerCase() as 'gdt' | 'idt';
    found.segments.set(name, { selector: 0, limit: Number(hex(tableLimit!)), flags: 0, base: hex(tableBase!) });
    found.wideTables ||= tableBase!.length === DIGITS_64;
  }
}

function hex(digits: string): bigint {
  return BigInt(`0x${digits}`);
}

/** @throws VmcoreError BAD_INPUT when a register is missing: a cut text is not a machine with zeros */
function cpuState(found: Found, where: string): CpuState {
  const missing = (name: string) =>
    new VmcoreError('BAD_INPUT', `${where} has no ${name.toUpperCase()}; the text of "info registers -a" is not whole`);
  const efer = found.scalars.get('efer');
  // Very old QEMUs do not print EFER.
  const longMode = efer === undefined ? found.wideTables : (efer & EFER_LMA) !== 0n;

  const scalar = (name: ScalarName): bigint => {
    const value = found.scalars.get(name) ?? (/^r(8|9|1\d)$/.test(name) ? 0n : undefined);
    if (value === undefined) throw missing(name);
    return value;
  };
  const scalars = <N extends ScalarName>(names: readonly N[]) =>
    Object.fromEntries(names.map((name) => [name, scalar(name)])) as Record<N, bigint>;
  const segments = <N extends SegmentName>(names: readonly N[]) =>
    Object.fromEntries(
      names.map((name) => {
        const segment = found.segments.get(name);
        if (!segment) throw missing(name);
        return [name, segment];
      }),
    ) as Record<N, Segment>;

  const general = scalars(GENERAL_REGISTERS);
  const controls = scalars(CONTROL_REGISTERS);
  const all = segments([...SEGMENT_REGISTERS, ...SYSTEM_SEGMENTS]);
  const whole = withBaseBits(all, { longMode, protectedMode: isProtected(controls.cr0, general.rflags) });
  const { ldt, tr, gdt, idt, ...registers } = whole;
  const mode = found.a20Masked ? { longMode, a20Masked: true } : { longMode };
  const mxcsr = found.scalars.get('mxcsr');
  const rest = {
    // Not all versions of QEMU print all of them.
    ...(DEBUG_REGISTERS.every((name) => found.scalars.has(name)) ? { debug: scalars(DEBUG_REGISTERS) } : {}),
    ...(mxcsr === undefined ? {} : { mxcsr: Number(mxcsr) }),
  };
  return {
    ...general,
    ...registers,
    ...mode,
    ...rest,
    system: { ldt, tr, gdt, idt, ...controls, cr1: 0n, kernelGsBase: 0n },
  };
}

/** Protected mode but not virtual-8086 mode, where segment registers work as in real mode. */
function isProtected(cr0: bigint, rflags: bigint): boolean {
  return (cr0 & CR0_PE) !== 0n && (rflags & RFLAGS_VM) === 0n;
}

// ---------------------------------------------------------------------------------------------------------------------
// The bits of segment flags that the text leaves out
// ---------------------------------------------------------------------------------------------------------------------

type Segments = Readonly<Record<SegmentName, Segment>>;

interface Mode {
  /** EFER.LMA */
  readonly longMode: boolean;
  /** segment registers are loaded from descriptors */
  readonly protectedMode: boolean;
}

/**
 * Puts bits of the base into the flags where QEMU has them.
 *
 * Under TCG a segment that is loaded from a descriptor keeps its second dword whole (`load_seg_cache_raw_dt`). KVM
 * hands QEMU the attributes one by one and the other bits stay 0. The text does not say which it was, but TCG leaves
 * two traces: the limit's bits 19:16 in the flags, and a task register that is not marked busy.
 *
 * Not to be had from the text, and left as printed: real mode, where loads change base and selector and leave flags
 * behind from whatever descriptor was there before. Taken for a descriptor's in error: FS or GS in long mode whose
 * base was set by MSR, below 4 GiB, on top of a selector that is not null. `cpus` of a guest description can say it.
 */
function withBaseBits(segments: Segments, mode: Mode): Segments {
  const byTcg = isIdleTss(segments.tr) || Object.values(segments).some(hasLimitBits);
  if (!byTcg) return segments;
  const restored = Object.entries(segments).map(([name, segment]) => [
    name,
    keepsDescriptor(name as SegmentName, segment, mode) ? withOwnBaseBits(segment) : segment,
  ]);
  return Object.fromEntries(restored) as Segments;
}

/** Whether this segment, on a CPU run by TCG, was loaded from a descriptor with the base it has now. */
function keepsDescriptor(name: SegmentName, segment: Segment, { longMode, protectedMode }: Mode): boolean {
  if ((segment.flags & DESC_P) === 0) return false;
  // These two are loaded in protected mode and stay as they are in real mode.
  if (name === 'tr') return isIdleTss(segment);
  if (name === 'ldt') return true;
  if (!protectedMode || isRealModeRemnant(segment) || !limitBitsAgree(segment)) return false;
  // In long mode the base of FS and GS can come from an MSR: certainly so above 4 GiB or with a null selector.
  const mayBeMsr = longMode && (name === 'fs' || name === 'gs');
  return !mayBeMsr || (segment.base < 2n ** 32n && (segment.selector & ~3) !== 0);
}

/** Bits 19:16 of the limit as the descriptor has them. */
function limitBits(segment: Segment): number {
  return (segment.flags & DESC_G ? segment.limit >>> 12 : segment.limit) & DESC_LIMIT_HIGH;
}

function hasLimitBits(segment: Segment): boolean {
  return (segment.flags & DESC_LIMIT_HIGH) !== 0 && limitBitsAgree(segment);
}

function limitBitsAgree(segment: Segment): boolean {
  return (segment.flags & DESC_LIMIT_HIGH) === limitBits(segment);
}

/** LTR of TCG marks the descriptor in memory as busy, but not the register; a processor, and so KVM, marks both. */
function isIdleTss(tr: Segment): boolean {
  return (tr.flags & DESC_P) !== 0 && (tr.flags & DESC_TSS_BUSY) === 0;
}

/** Loaded in real mode and never since: base and selector follow each other, the flags are those after reset. */
function isRealModeRemnant(segment: Segment): boolean {
  return segment.base === BigInt(segment.selector) << 4n && segment.limit === 0xffff && (segment.flags & DESC_G) === 0;
}

function withOwnBaseBits(segment: Segment): Segment {
  const base = BigInt.asUintN(32, segment.base);
  const bits = Number((base & DESC_BASE_HIGH) | ((base >> 16n) & 0xffn));
  return { ...segment, flags: (segment.flags | bits) >>> 0 };
}
