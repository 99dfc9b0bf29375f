/** A CPU as a Windows kernel has it: with the page tables that its dump header names. */

import type { WinDmpHeader } from '../formats/win-dmp.js';
import {
  type CpuState,
  GENERAL_REGISTERS,
  NULL_SEGMENT,
  SEGMENT_REGISTERS,
  SYSTEM_SEGMENTS,
  type SystemState,
} from '../model/guest.js';

/** CR0.PE and PG; CR4.PSE and PAE (Intel SDM vol. 3, 2.5): paging as a kernel has it whose registers are not known. */
const CR0_PAGING = 0x8000_0001n;
const CR4_PSE = 1n << 4n;
const CR4_PAE = 1n << 5n;

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
