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

import { KDBG, KDBG_TAG } from '../windows/kdbg.js';
import {
  bugcheckDataSize,
  CONTEXT_SIZE,
  clearUnused,
  decodeWinDmpHeader,
  encodeWinContext,
  setBugcheckData,
  setWinDmpFields,
  WIN_DMP_MAX_RUNS,
  type WinDmpBits,
  type WinDmpHeader,
  type WinDmpRun,
} from '../formats/win-dmp.js';
import { type CpuState, type Guest } from '../model/guest.js';
import { type MemoryBlock, PHYSICAL_ADDRESS_LIMIT } from '../model/physical-memory.js';
import { PAGE_SIZE } from '../model/stage.js';
import { OverlaidMemory, type OverlayPages } from '../model/overlaid-memory.js';
import { framePlaces, frameOf } from '../windows/context-frames.js';
import { checkHeader, shown, text } from '../windows/header-note.js';
import { kernelCpu } from '../windows/kernel-cpu.js';
import { requireMemory } from '../windows/random-access.js';
import { winDumpError } from '../windows/win-dump-error.js';
import { VirtualMemory } from '../paging/virtual-memory.js';
import { missingBytes } from '../model/physical-memory.js';

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
  if (missing > MAX_MISSING_BYTES)
    throw winDumpError(`the runs of the dump header cover ${missing} bytes that are not memory`);
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

/**
 * The address of KDBG. A block whose tag is wrong is encoded, most likely: the driver then left the address of a copy
 * in BugcheckParameter1.
 */
function checkKdbg(virtual: VirtualMemory, header: WinDmpHeader): bigint {
  let tag: Uint8Array | null = null;
  for (const address of [header.KdDebuggerDataBlock, header.BugcheckParameter1]) {
    tag = virtual.read(address + BigInt(KDBG.OwnerTag), KDBG_TAG.length);
    if (!tag) throw winDumpError('failed to read OwnerTag');
    if (text(tag, KDBG_TAG.length) === KDBG_TAG) return address;
  }
  throw winDumpError(`invalid KDBG OwnerTag, expected '${KDBG_TAG}', got '${shown(tag!)}'`);
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
    if (!pieces) throw winDumpError(`failed to save CPU #${i} context`);
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
    throw winDumpError(
      `the dump header claims ${NumberOfRuns} runs of memory, and has room for ${WIN_DMP_MAX_RUNS[bits]}`,
    );
  return runs.filter(({ PageCount }) => PageCount > 0n).map(blockOf);
}

function blockOf({ BasePage, PageCount }: WinDmpRun): MemoryBlock {
  const end = (BasePage + PageCount) * BigInt(PAGE_SIZE);
  if (end > BigInt(PHYSICAL_ADDRESS_LIMIT))
    throw winDumpError(
      `a run of 0x${PageCount.toString(16)} pages from page 0x${BasePage.toString(16)} on ends above the 52 bits of x86 addresses`,
    );
  return { base: Number(BasePage) * PAGE_SIZE, length: Number(PageCount) * PAGE_SIZE };
}
