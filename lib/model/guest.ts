/**
 * A guest: one machine at one instant. Everything that a vmcore is made of, whatever it came from.
 */

import type { MissingPages, PageExclusion } from './page-exclusion.js';
import type { MemoryBlock, PhysicalMemory } from './physical-memory.js';
import type { SlabPool } from './slab-pool.js';
import type { Chunk, Source } from './stage.js';
import type { ElfNote } from './note.js';

/** The machine's architecture: what the emulator or host can run, not the mode that a CPU is in. */
export type Architecture = 'x86_64' | 'i386';

/** A segment register or descriptor table register with its hidden part (QEMU: `SegmentCache`). */
export interface Segment {
  /** 16 bits */
  readonly selector: number;
  /** bytes - 1, 32 bits */
  readonly limit: number;
  /** the second dword of the descriptor, bits 8-23 (type, S, DPL, P, AVL, L, D/B, G), as QEMU keeps it */
  readonly flags: number;
  /** linear address, 64 bits */
  readonly base: bigint;
}

/** Names of the general registers, in the order of the QEMU note (`struct QEMUCPUState`, target/i386/arch_dump.c). */
export const GENERAL_REGISTERS = [
  'rax',
  'rbx',
  'rcx',
  'rdx',
  'rsi',
  'rdi',
  'rsp',
  'rbp',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
  'rip',
  'rflags',
] as const;

/** Names of the segment registers, in the order of the QEMU note. */
export const SEGMENT_REGISTERS = ['cs', 'ds', 'es', 'fs', 'gs', 'ss'] as const;

/** Names of the system segment and table registers, in the order of the QEMU note. */
export const SYSTEM_SEGMENTS = ['ldt', 'tr', 'gdt', 'idt'] as const;

/** One of GENERAL_REGISTERS. */
export type GeneralRegister = (typeof GENERAL_REGISTERS)[number];
/** One of SEGMENT_REGISTERS. */
export type SegmentRegister = (typeof SEGMENT_REGISTERS)[number];
/** One of SYSTEM_SEGMENTS. */
export type SystemSegment = (typeof SYSTEM_SEGMENTS)[number];

/** What NT_PRSTATUS does not carry and the QEMU note does. */
export interface SystemState extends Readonly<Record<SystemSegment, Segment>> {
  readonly cr0: bigint;
  readonly cr1: bigint;
  readonly cr2: bigint;
  readonly cr3: bigint;
  readonly cr4: bigint;
  /** MSR_KERNEL_GS_BASE, the hidden base that `swapgs` brings in */
  readonly kernelGsBase: bigint;
}

/** The debug registers; DR4 and DR5 are the same as DR6 and DR7. */
export type DebugRegisters = Readonly<Record<'dr0' | 'dr1' | 'dr2' | 'dr3' | 'dr6' | 'dr7', bigint>>;

/** One CPU's registers; 64-bit values whatever the mode. */
export interface CpuState
  extends Readonly<Record<GeneralRegister, bigint>>, Readonly<Record<SegmentRegister, Segment>> {
  /** EFER.LMA: the CPU is in long mode (64-bit or compatibility) */
  readonly longMode: boolean;
  /** control registers and tables; null when the source had nothing but NT_PRSTATUS (/proc/vmcore, VirtualBox) */
  readonly system: SystemState | null;
  /** the A20 gate is closed: bit 20 of physical addresses reads as 0. QEMU's text tells it, a vmcore does not */
  readonly a20Masked?: boolean;
  /** debug registers; QEMU's text tells them, a vmcore does not */
  readonly debug?: DebugRegisters;
  /** control and status of SSE; QEMU's text tells it, a vmcore does not */
  readonly mxcsr?: number;
  /** the NT_PRSTATUS descriptor as the source had it, to be written back unchanged; absent when there was none */
  readonly prstatus?: Uint8Array;
}

/** What a guest's memory stream can be asked for. */
export interface ChunkOptions {
  /** where slabs come from; a pool without a limit by default */
  readonly pool?: SlabPool | undefined;
  /** only this range of physical addresses, in bytes; all of the memory by default */
  readonly range?: MemoryBlock | undefined;
  /**
   * pages that whoever asks has no use for: a source that need not read them passes long runs of them on as chunks
   * without data. Others come as they are
   */
  readonly skip?: PageExclusion | undefined;
  /**
   * whole pages may come as deferred chunks, which say where the bytes are, from a source that has them in a file. What
   * reads them has to be done before a live machine runs on
   */
  readonly deferred?: boolean | undefined;
}

/** One machine at one instant. */
export interface Guest {
  /** what it came from, for messages: a path, `stdin`, `demo:` */
  readonly name: string;
  readonly arch: Architecture;
  /** the memory, sorted by base, none overlapping another; QEMU's GuestPhysBlock list */
  readonly blocks: readonly MemoryBlock[];
  readonly cpus: readonly CpuState[];
  /** notes other than those of the CPUs, in their order; VMCOREINFO is among them when the guest has it */
  readonly notes: readonly ElfNote[];
  /** random access to the memory; null when the guest is a stream that cannot seek */
  readonly memory: PhysicalMemory | null;
  /**
   * The memory, in ascending order of addresses, as a stream of chunks that never cross a block.
   * A guest that is a stream itself can be asked once.
   */
  chunks(options?: ChunkOptions): Source<Chunk>;
  /** pages of the memory that the source lacks; absent or null when it has all */
  readonly missing?: MissingPages | null;
  /** what the source leaves open and was decided by a rule, with what to do where that is wrong; absent as a rule */
  readonly assumption?: string | undefined;
  /** the machine, where it is alive and stands still for us; absent for what was saved */
  readonly live?: LiveMachine | undefined;
  /** Closes the files behind the guest; a live machine is released. */
  close(): void;
}

/** A machine that stands still while it is read. */
export interface LiveMachine {
  /** how it was read, as far as it was */
  readonly report: LiveReport;
  /**
   * Lets the machine run again if it ran before, and settles when it does. One that is no longer as it was stopped (it
   * was migrated away, say) is left alone, with a warning. Its memory is to be read no more, unless it was copied. Later
   * calls do nothing.
   * @throws VmcoreError READ when the machine could not be resumed
   */
  release(): Promise<void>;
}

/** How a live machine was read. */
export interface LiveReport {
  /** how most of its memory is read: from the file behind it, from the process's memory, through QEMU's own dump */
  readonly memoryPath: 'file' | 'proc' | 'stream';
  /** how each block is read, and where from */
  readonly memory: readonly (MemoryBlock & { readonly way: 'file' | 'proc' | 'stream'; readonly from: string })[];
  /** whether it ran before, and so runs again afterwards */
  readonly wasRunning: boolean;
  /** QEMU's run state before: `running`, `paused`, `suspended` */
  readonly statusBefore: string;
  /** QEMU's run state since the release; absent before that, and where QEMU could not be asked */
  readonly statusAfter?: string | undefined;
  /** seconds for which it had to stand still, so far */
  readonly pausedSeconds: number;
  /** bytes of its memory that were copied before it ran on; absent when it was read as it stood still */
  readonly copiedBytes?: number | undefined;
  /** how many of them went to a temporary file */
  readonly spooledBytes?: number | undefined;
  readonly warnings: readonly string[];
}

/** A segment register of zeros. */
export const NULL_SEGMENT: Segment = { selector: 0, limit: 0, flags: 0, base: 0n };

/** CR0.PG: paging is enabled (Intel SDM vol. 3, 2.5). */
export const CR0_PG = 1n << 31n;

/** Whether the CPU translates addresses by page tables. */
export function pagingEnabled(cpu: CpuState): boolean {
  return cpu.system !== null && (cpu.system.cr0 & CR0_PG) !== 0n;
}
