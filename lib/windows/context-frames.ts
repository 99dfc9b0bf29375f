/** Where a Windows kernel keeps the registers of each processor: its context frames. */

import type { VirtualMemory } from '../paging/virtual-memory.js';
import { KDBG } from './kdbg.js';
import { winDumpError } from './win-dump-error.js';

/** What leads to the context frames of a kernel. */
export interface FramePlaces {
  readonly KiProcessorBlock: bigint;
  readonly OffsetPrcbContext: bigint;
}

/** @throws VmcoreError BAD_INPUT when KDBG ends too early */
export function framePlaces(virtual: VirtualMemory, kdbg: bigint): FramePlaces {
  const KiProcessorBlock = virtual.pointer(kdbg + BigInt(KDBG.KiProcessorBlock));
  if (KiProcessorBlock === null) throw winDumpError('failed to read KiProcessorBlock');
  const OffsetPrcbContext = virtual.number(kdbg + BigInt(KDBG.OffsetPrcbContext), 2);
  if (OffsetPrcbContext === null) throw winDumpError('failed to read OffsetPrcbContext');
  return { KiProcessorBlock, OffsetPrcbContext };
}

/** The virtual address of a processor's context frame. @throws VmcoreError BAD_INPUT */
export function frameOf(virtual: VirtualMemory, places: FramePlaces, index: number): bigint {
  const prcb = virtual.pointer(places.KiProcessorBlock + BigInt((index * virtual.bits) / 8));
  if (prcb === null) throw winDumpError(`failed to read CPU #${index} PRCB location`);
  const frame = virtual.pointer(prcb + places.OffsetPrcbContext);
  if (frame === null) throw winDumpError(`failed to read CPU #${index} ContextFrame location`);
  return frame;
}
