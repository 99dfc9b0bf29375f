/**
 * A Windows guest of 256 KiB for unit tests: page tables that map the kernel's window to all of its memory in order, so
 * that what is at physical address x is at KERN + x, and in it KDBG, KPRCBs, frames and bugcheck data.
 */

import { encodeNote } from '../lib/formats/notes.js';
import { emptyWinDmpHeader, setWinDmpFields, setWinDmpRuns, type WinDmpRun } from '../lib/formats/win-dmp.js';
import type { CpuState } from '../lib/model/guest.js';
import { MemoryGuest } from '../lib/sources/memory-guest.js';
import { parseRegisters } from '../lib/sources/raw/registers.js';
import { addressPattern, BufferBacking } from './guest-fixture.js';

export const PAGES = 64;
export const MEMORY = PAGES * 4096;
export const KERN = { 64: 0xffff_f800_0000_0000n, 32: 0x8040_0000n } as const;

/** Physical addresses. */
export const PLACES = {
  tables: 0x1000,
  kdbg: 0x10e00,
  kdbgEnd: 0x11168,
  variables: 0x12000,
  processorBlock: 0x12100,
  buildLab: 0x12200,
  runsVariable: 0x12300,
  runs: 0x12310,
  bugcheck: 0x12ff0,
  prcb: 0x14000,
  frame: 0x16d00,
  frame1: 0x18e80,
} as const;
const PRCB_CONTEXT = 0x120;

/** What of the guest a test wants otherwise. */
export interface WindowsFixtureOptions {
  readonly bits?: 64 | 32;
  readonly cpus?: number;
  readonly processors?: number;
  readonly runs?: readonly WinDmpRun[];
  /** changes the memory before the guest is made */
  readonly change?: (memory: DataView) => void;
  /** changes the header before it becomes a note */
  readonly changeHeader?: (header: Uint8Array) => void;
  /** no note at all */
  readonly withoutNote?: boolean;
}

/** All of the memory. */
export const ALL_RUNS: readonly WinDmpRun[] = [{ BasePage: 0n, PageCount: BigInt(PAGES) }];

/** Makes the guest. Its backing is `bytes`. */
export function windowsGuestFixture(options: WindowsFixtureOptions = {}): { guest: MemoryGuest; bytes: Uint8Array } {
  const { bits = 64, cpus = 1, processors = cpus, runs = ALL_RUNS } = options;
  const bytes = Uint8Array.from(addressPattern(MEMORY));
  const view = new DataView(bytes.buffer);
  bytes.fill(0, PLACES.tables, 0x13000);
  const memory = new KernelMemory(view, bits);
  memory.mapAll();
  memory.layOut(processors, runs);
  options.change?.(view);
  const header = headerOf(bits, processors, runs);
  options.changeHeader?.(header);
  const guest = new MemoryGuest({
    name: 'windows',
    arch: bits === 64 ? 'x86_64' : 'i386',
    regions: [{ base: 0, length: MEMORY, backing: new BufferBacking(bytes), offset: 0 }],
    cpus: Array.from({ length: cpus }, (_, i) => cpuOf(bits, i)),
    notes: options.withoutNote ? [] : [encodeNote('VMCOREINFO', 0, header)],
  });
  return { guest, bytes };
}

function headerOf(bits: 64 | 32, processors: number, runs: readonly WinDmpRun[]): Uint8Array {
  const header = emptyWinDmpHeader(bits);
  setWinDmpFields(header, bits, {
    DirectoryTableBase: BigInt(PLACES.tables),
    NumberProcessors: BigInt(processors),
    KdDebuggerDataBlock: KERN[bits] + BigInt(PLACES.kdbg),
    BugcheckParameter1: KERN[bits] + BigInt(PLACES.kdbg),
    DumpType: 1n,
  });
  setWinDmpRuns(header, bits, runs);
  return header;
}

class KernelMemory {
  constructor(
    readonly view: DataView,
    readonly bits: 64 | 32,
  ) {}

  /** Four tables of 64 bits, or two of 32 without PAE. */
  mapAll(): void {
    const { tables } = PLACES;
    if (this.bits === 64) {
      this.view.setBigUint64(tables + 8 * 496, BigInt(tables + 0x1003), true);
      this.view.setBigUint64(tables + 0x1000, BigInt(tables + 0x2003), true);
      this.view.setBigUint64(tables + 0x2000, BigInt(tables + 0x3003), true);
      for (let i = 0; i < PAGES; i++) this.view.setBigUint64(tables + 0x3000 + 8 * i, BigInt(i * 4096 + 3), true);
    } else {
      this.view.setUint32(tables + 4 * 0x201, tables + 0x3003, true);
      for (let i = 0; i < PAGES; i++) this.view.setUint32(tables + 0x3000 + 4 * i, i * 4096 + 3, true);
    }
  }

  layOut(processors: number, runs: readonly WinDmpRun[]): void {
    const { kdbg, variables } = PLACES;
    const width = this.bits / 8;
    this.pointers(kdbg, variables, variables);
    this.pointers(variables, kdbg, kdbg);
    this.text(kdbg + 0x10, 'KDBG');
    this.view.setUint32(kdbg + 0x14, 0x368, true);
    this.slot(kdbg + 0x18, 0);
    this.slot(kdbg + 0x48, 0x12020);
    this.slot(kdbg + 0x50, 0x12040);
    this.slot(kdbg + 0x88, PLACES.bugcheck);
    this.slot(kdbg + 0xc0, 0x12060);
    this.slot(kdbg + 0x208, PLACES.buildLab);
    this.slot(kdbg + 0x218, PLACES.processorBlock);
    this.slot(kdbg + 0x270, PLACES.runsVariable);
    this.view.setUint16(kdbg + 0x338, PRCB_CONTEXT, true);
    this.text(PLACES.buildLab, '22621.1.amd64fre.test');
    this.pointers(PLACES.runsVariable, PLACES.runs);
    this.view.setUint32(PLACES.runs, runs.length, true);
    runs.forEach(({ BasePage, PageCount }, i) => {
      this.number(PLACES.runs + 2 * width * (i + 1), BasePage);
      this.number(PLACES.runs + 2 * width * (i + 1) + width, PageCount);
    });
    for (let i = 0; i < Math.min(processors, 2); i++) {
      this.pointers(PLACES.processorBlock + width * i, PLACES.prcb + 0x1000 * i);
      this.pointers(PLACES.prcb + 0x1000 * i + PRCB_CONTEXT, i === 0 ? PLACES.frame : PLACES.frame1);
    }
    new Uint8Array(this.view.buffer, PLACES.bugcheck, 40).fill(0);
  }

  /** Pointers to physical addresses, of the kernel's width. */
  pointers(at: number, ...targets: readonly number[]): void {
    targets.forEach((target, i) => {
      this.number(at + (this.bits / 8) * i, KERN[this.bits] + BigInt(target));
    });
  }

  /** A slot of KDBG: 64 bits whatever the kernel. */
  slot(at: number, target: number): void {
    this.view.setBigUint64(at, KERN[this.bits] + BigInt(target), true);
  }

  number(at: number, value: bigint): void {
    if (this.bits === 64) this.view.setBigUint64(at, value, true);
    else this.view.setUint32(at, Number(BigInt.asUintN(32, value)), true);
  }

  text(at: number, text: string): void {
    new Uint8Array(this.view.buffer, at, text.length).set(Buffer.from(text));
  }
}

/** A CPU with paging by the fixture's tables and registers that differ. */
export function cpuOf(bits: 64 | 32, index: number): CpuState {
  return parseRegisters(registersText(bits, index), 'fixture')[0]!;
}

/** The same as QEMU's monitor prints it. */
export function registersText(bits: 64 | 32, index: number): string {
  const wide = bits === 64;
  const value = (i: number) => (0x1111_1111n * BigInt(i + 1) + BigInt(index)).toString(16).padStart(wide ? 16 : 8, '0');
  const names = wide ? 'RAX RBX RCX RDX RSI RDI RBP RSP' : 'EAX EBX ECX EDX ESI EDI EBP ESP';
  const segment = (name: string) =>
    `${name} =0010 ${wide ? '0000000000000000' : '00000000'} ffffffff 00${wide ? 'a' : 'c'}f9b00`;
  const table = wide ? '0000000000000000 00000000' : '00000000 00000000';
  return [
    `CPU#${index}`,
    ...names.split(' ').map((name, i) => `${name}=${value(i)}`),
    ...(wide ? [8, 9, 10, 11, 12, 13, 14, 15].map((n) => `R${n.toString().padEnd(2)}=${value(n)}`) : []),
    wide ? `RIP=${value(16)} RFL=00000246` : `EIP=${value(8)} EFL=00000246`,
    ...['ES', 'CS', 'SS', 'DS', 'FS', 'GS', 'LDT', 'TR'].map((name) => segment(name.padEnd(3).slice(0, 3).trimEnd())),
    `GDT=     ${table}`,
    `IDT=     ${table}`,
    `CR0=80050033 CR2=${value(0)} CR3=${PLACES.tables.toString(16).padStart(wide ? 16 : 8, '0')} CR4=000000${wide ? 'b0' : '90'}`,
    `DR0=${value(1)} DR1=${value(2)} DR2=${value(3)} DR3=${value(4)}`,
    'DR6=00000000ffff0ff0 DR7=0000000000000400',
    `EFER=0000000000000${wide ? '5' : '0'}00`,
    'FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001fa0',
  ].join('\n');
}
