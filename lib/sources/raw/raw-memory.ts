/**
 * A guest whose memory is one plain file: the RAM of a PC, laid out as QEMU does it. The first bytes are at address 0,
 * and what does not fit below the hole for devices is at 4 GiB.
 */

import { FileBacking } from '../../io/file-backing.js';
import { VmcoreError } from '../../model/errors.js';
import type { Architecture, Guest } from '../../model/guest.js';
import { PAGE_SIZE } from '../../model/page-size.js';
import type { MemoryRegion } from '../../model/physical-memory.js';
import { formatSize, sizeArgument } from '../../model/sizes.js';
import { notRawMemory, START_BYTES } from '../known-start.js';
import { MemoryGuest } from '../memory-guest.js';
import { readRegisters } from './registers.js';
import { readVmcoreinfo } from './vmcoreinfo-file.js';

const MIB = 2 ** 20;
/** Where memory goes on that does not fit below the hole. */
export const FOUR_GIB = 2 ** 32;

/** Machines that differ in where memory splits. */
export type PcMachine = 'pc' | 'q35' | 'microvm' | 'firecracker';

/** Where a machine's memory splits. */
interface Split {
  /** from so many bytes of RAM on, only `below` of them are below 4 GiB; with less, all are */
  readonly from: number;
  readonly below: number;
  /** who has it, for messages */
  readonly machines: string;
}

/**
 * QEMU's are those of hw/i386/pc_piix.c, pc_q35.c and microvm.c without `max-ram-below-4g`; Cloud Hypervisor and VMware
 * have their hole from 3 GiB on, too. Firecracker's had 768 MiB (MEM_32BIT_GAP_SIZE) before it had PCI.
 */
const SPLITS: Readonly<Record<PcMachine, Split>> = {
  pc: { from: 3584 * MIB, below: 3072 * MIB, machines: 'pc' },
  q35: { from: 2816 * MIB, below: 2048 * MIB, machines: 'a q35' },
  microvm: { from: 3072 * MIB, below: 3072 * MIB, machines: 'microvm, Cloud Hypervisor and VMware' },
  firecracker: { from: 3328 * MIB, below: 3328 * MIB, machines: 'an older Firecracker' },
};

/** What a raw memory file does not say of itself. */
export interface RawMemoryOptions {
  /**
   * bytes of RAM below 4 GiB; the rest begins at 4 GiB. By QEMU's rule for `pc` when absent: all of less than 3.5 GiB,
   * else 3 GiB. `assumption` of the guest says so where other machines have another rule
   */
  readonly below4g?: number | undefined;
  /** file with what HMP `info registers -a` prints; without it the guest has no CPUs, so no page tables to follow */
  readonly registers?: string | undefined;
  /** file with the text of VMCOREINFO or its whole ELF note */
  readonly vmcoreinfo?: string | undefined;
  /** take the file for memory although it begins as a vmcore or another known file does */
  readonly forceRaw?: boolean | undefined;
  /** what the machine can run; x86_64 when absent */
  readonly arch?: Architecture | undefined;
}

/**
 * How much of a PC's memory QEMU puts below 4 GiB.
 * @param size bytes of RAM
 * @returns bytes; the rest is at 4 GiB
 */
export function pcMemorySplit(size: number, machine: PcMachine = 'pc'): number {
  const { from, below } = SPLITS[machine];
  return size >= from ? below : size;
}

/**
 * Opens a raw memory file as a guest.
 * @throws VmcoreError READ, USAGE (a split that cannot be), BAD_INPUT (not whole pages, a file of another kind, bad
 *   registers, no VMCOREINFO)
 */
export async function openRawMemory(path: string, options: RawMemoryOptions = {}): Promise<Guest> {
  const backing = FileBacking.open(path);
  try {
    if (!options.forceRaw) checkIsMemory(backing);
    return new MemoryGuest({
      name: path,
      arch: options.arch ?? 'x86_64',
      regions: pcRegions(backing, options.below4g),
      assumption: options.below4g === undefined ? splitAssumption(backing) : undefined,
      cpus: options.registers === undefined ? [] : await readRegisters(options.registers),
      notes: options.vmcoreinfo === undefined ? [] : [await readVmcoreinfo(options.vmcoreinfo)],
    });
  } catch (error) {
    backing.close();
    throw error;
  }
}

/** A vmcore that is read as memory makes a vmcore of nonsense. @throws VmcoreError BAD_INPUT */
function checkIsMemory(file: FileBacking): void {
  const start = new Uint8Array(Math.min(START_BYTES, file.size));
  file.readSync(0, start);
  const kind = notRawMemory(file.name, start);
  if (kind === null) return;
  throw new VmcoreError('BAD_INPUT', `${file.name} ${kind} (--force-raw takes it for memory all the same)`);
}

function pcRegions(backing: FileBacking, below4g: number | undefined): MemoryRegion[] {
  const { name, size } = backing;
  if (size === 0) throw new VmcoreError('BAD_INPUT', `${name} is empty or not a regular file; no memory there`);
  if (size % PAGE_SIZE !== 0)
    throw new VmcoreError(
      'BAD_INPUT',
      `${name} has ${size} bytes, which is not a whole number of pages (${PAGE_SIZE}); it is cut or is not raw memory`,
    );
  if (below4g !== undefined) checkSplit(below4g);
  const below = Math.min(size, below4g ?? pcMemorySplit(size));
  const low = { base: 0, length: below, backing, offset: 0 };
  return below === size ? [low] : [low, { base: FOUR_GIB, length: size - below, backing, offset: below }];
}

/** A file does not tell which machine it was memory of; undefined where all split it in the same way. */
function splitAssumption({ name, size }: FileBacking): string | undefined {
  const assumed = pcMemorySplit(size);
  const others = (Object.keys(SPLITS) as PcMachine[])
    .map((machine) => ({ below: pcMemorySplit(size, machine), machines: SPLITS[machine].machines }))
    .filter(({ below }) => below !== assumed)
    .map(({ below, machines }) => `for ${machines} say --below-4g ${sizeArgument(below)}`);
  if (others.length === 0) return undefined;
  return `${name} was taken for the memory of QEMU's machine pc, which has ${formatSize(assumed)} of it below 4 GiB; ${others.join(', ')}`;
}

function checkSplit(below4g: number): void {
  if (Number.isSafeInteger(below4g) && below4g > 0 && below4g <= FOUR_GIB && below4g % PAGE_SIZE === 0) return;
  throw new VmcoreError(
    'USAGE',
    `${describeSize(below4g)} cannot be the memory below 4 GiB: give whole pages (${PAGE_SIZE} bytes), at most 4G`,
  );
}

function describeSize(size: number): string {
  return Number.isSafeInteger(size) ? sizeArgument(size) : String(size);
}
