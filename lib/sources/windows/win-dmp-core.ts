/**
 * A full Windows crash dump as a guest: ours, QEMU's, or Windows' own, 64 or 32 bit.
 *
 * Memory is where the header's runs have it. The CPUs are what the kernel's context frames say, found through KDBG; a
 * dump whose KDBG is encoded has the CPU of the header's ContextRecord, if any. A CONTEXT has no control registers:
 * they are those that the kernel runs with (paging, with the header's DirectoryTableBase), so that addresses can be
 * translated. The header itself becomes the note that the guest's driver left it in, and so finds its way through an
 * ELF vmcore back into a Windows crash dump.
 */

import { messageOf, VmcoreError } from '../../model/errors.js';
import { encodeNote, NOTE_NAME_VMCOREINFO } from '../../formats/notes.js';
import {
  CONTEXT_SIZE,
  DUMP_TYPE_FULL,
  decodeWinContext,
  decodeWinDmpHeader,
  headerContext,
  WIN_DMP_HEADER_SIZE,
  type WinDmpBits,
  type WinDmpHeader,
  winDmpBits,
} from '../../formats/win-dmp.js';
import type { CpuState } from '../../model/guest.js';
import { blockEnd, type MemoryBlock, type MemoryRegion, PhysicalMemory } from '../../model/physical-memory.js';
import { VirtualMemory } from '../../paging/virtual-memory.js';
import { checkRuns } from '../../layouts/win-dmp-layout.js';
import { FileBacking } from '../../io/file-backing.js';
import { MemoryGuest, type MemoryGuestFields } from '../memory-guest.js';
import { frameOf, framePlaces } from '../../windows/context-frames.js';
import { kernelControl, kernelCpu } from '../../windows/kernel-cpu.js';

/** A guest that came from a Windows crash dump. */
export class WinDmpGuest extends MemoryGuest {
  constructor(
    fields: MemoryGuestFields,
    /** what the dump's header says */
    readonly header: WinDmpHeader,
    /** why there are no CPUs of the kernel's context frames; null when there are */
    readonly withoutFrames: string | null,
  ) {
    super(fields);
  }
}

/** DumpType of dumps that have not all of the memory, or have it in another order (WDK, DUMP_TYPE_…). */
const OTHER_TYPES: Readonly<Record<string, string>> = {
  2: 'a kernel dump',
  3: 'a header',
  4: 'a minidump',
  5: 'a full dump with a bitmap',
  6: 'a kernel dump with a bitmap',
};

/** `PAGE`: what stands in fields that a dumper leaves out, as QEMU's guests of Windows XP leave DumpType. */
const NO_VALUE = 0x4547_4150n;

/** More frames than this are not looked for. */
const MAX_CPUS = 4096;

/**
 * Opens a full Windows crash dump.
 * @throws VmcoreError BAD_INPUT, TRUNCATED, READ; UNSUPPORTED for dumps that are not full
 */
export function openWinDmp(path: string): WinDmpGuest {
  const file = FileBacking.open(path);
  try {
    return readWinDmp(file);
  } catch (error) {
    file.close();
    if (error instanceof VmcoreError && !error.message.includes(path))
      throw new VmcoreError(error.code, `${path}: ${error.message.replace(/^win-dump: /, '')}`, { cause: error });
    throw error;
  }
}

function readWinDmp(file: FileBacking): WinDmpGuest {
  const { bytes, bits } = readHeader(file);
  const header = decodeWinDmpHeader(bytes, bits);
  checkType(header);
  const regions = placeRuns(header, file);
  const memory = new PhysicalMemory(regions);
  const { cpus, withoutFrames } = readCpus(memory, header, bytes);
  return new WinDmpGuest(
    {
      name: file.name,
      arch: bits === 64 ? 'x86_64' : 'i386',
      regions,
      cpus,
      notes: [encodeNote(NOTE_NAME_VMCOREINFO, 0, bytes)],
    },
    header,
    withoutFrames,
  );
}

function readHeader(file: FileBacking): { bytes: Uint8Array; bits: WinDmpBits } {
  const start = new Uint8Array(Math.min(8, file.size));
  file.readSync(0, start);
  const bits = winDmpBits(start);
  if (!bits) throw new VmcoreError('BAD_INPUT', `${file.name} is not a Windows crash dump`);
  checkSize(file, WIN_DMP_HEADER_SIZE[bits], 'its header');
  const bytes = new Uint8Array(WIN_DMP_HEADER_SIZE[bits]);
  file.readSync(0, bytes);
  return { bytes, bits };
}

function checkSize(file: FileBacking, size: number, what: string): void {
  if (file.size < size)
    throw new VmcoreError('TRUNCATED', `${file.name} ends at byte ${file.size}, but ${what} reaches to byte ${size}`);
}

function checkType({ DumpType }: WinDmpHeader): void {
  if (DumpType === BigInt(DUMP_TYPE_FULL) || DumpType === NO_VALUE) return;
  const type = OTHER_TYPES[`${DumpType}`] ?? 'of a kind that is not known';
  throw new VmcoreError(
    'UNSUPPORTED',
    `the Windows crash dump is ${type} (DumpType ${DumpType}), not a full one; make a complete memory dump`,
  );
}

/** The memory of the runs. Of what several runs have, the first one's bytes are taken. */
function placeRuns(header: WinDmpHeader, file: FileBacking): MemoryRegion[] {
  const regions: MemoryRegion[] = [];
  let at = WIN_DMP_HEADER_SIZE[header.bits];
  for (const run of checkRuns(header)) {
    for (const { base, length } of without(run, regions))
      regions.push({ base, length, backing: file, offset: at + (base - run.base) });
    at += run.length;
  }
  checkSize(file, at, 'the memory of its runs');
  if (regions.length === 0) throw new VmcoreError('BAD_INPUT', `${file.name} holds no memory: it has no runs`);
  return regions;
}

/** What of a block no other block has. */
function without(block: MemoryBlock, others: readonly MemoryBlock[]): MemoryBlock[] {
  return others.reduce<MemoryBlock[]>(
    (parts, other) =>
      parts.flatMap((part) => {
        const before = { base: part.base, length: Math.min(blockEnd(part), other.base) - part.base };
        const from = Math.max(part.base, blockEnd(other));
        const after = { base: from, length: blockEnd(part) - from };
        const apart = before.length === part.length || after.length === part.length;
        return apart ? part : [before, after].filter(({ length }) => length > 0);
      }),
    [block],
  );
}

function readCpus(
  memory: PhysicalMemory,
  header: WinDmpHeader,
  bytes: Uint8Array,
): { cpus: CpuState[]; withoutFrames: string | null } {
  const system = kernelControl(header);
  try {
    const cpus = readFrames(memory, header);
    return { cpus: cpus.map((cpu) => ({ ...cpu, system })), withoutFrames: null };
  } catch (error) {
    if (!(error instanceof VmcoreError) || error.code !== 'BAD_INPUT') throw error;
    const cpu = decodeWinContext(headerContext(bytes, header.bits), header.bits);
    return { cpus: cpu ? [{ ...cpu, system }] : [], withoutFrames: messageOf(error).replace(/^win-dump: /, '') };
  }
}

/** @throws VmcoreError BAD_INPUT when a frame cannot be reached, or is none */
function readFrames(memory: PhysicalMemory, header: WinDmpHeader): CpuState[] {
  const { bits, KdDebuggerDataBlock, NumberProcessors } = header;
  const virtual = new VirtualMemory(memory, kernelCpu(undefined, header), bits);
  const places = framePlaces(virtual, KdDebuggerDataBlock);
  return Array.from({ length: Math.min(Number(NumberProcessors), MAX_CPUS) }, (_, i) => {
    const frame = virtual.read(frameOf(virtual, places, i), CONTEXT_SIZE[bits]);
    const cpu = frame && decodeWinContext(frame, bits);
    if (!cpu) throw new VmcoreError('BAD_INPUT', `no context in the frame of CPU #${i}`);
    return cpu;
  });
}
