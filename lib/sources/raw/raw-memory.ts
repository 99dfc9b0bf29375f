/**
 * A guest whose memory is one plain file: the RAM of a PC, laid out as QEMU does it. The first bytes are at address 0,
 * and what does not fit below the hole for devices is at 4 GiB.
 */

import { VmcoreError } from '../../model/errors.js';
import type { Architecture, Guest } from '../../model/guest.js';
import type { MemoryRegion } from '../../model/physical-memory.js';
import { formatSize, sizeArgument } from '../../model/sizes.js';
import { PAGE_SIZE } from '../../model/stage.js';
import { FileBacking } from '../../io/file-backing.js';
import { MemoryGuest } from '../memory-guest.js';
import { readRegisters } from './registers.js';
import { readVmcoreinfo } from './vmcoreinfo-file.js';

const MIB = 2 ** 20;
/** Where memory goes on that does not fit below the hole. */
export const FOUR_GIB = 2 ** 32;

/** Machine types of QEMU that differ in where memory splits. */
export type PcMachine = 'pc' | 'q35';

/**
 * From `from` bytes of RAM on, only `below` of them are below 4 GiB; with less, all are (hw/i386/pc_piix.c and
 * pc_q35.c, without `max-ram-below-4g`).
 */
const SPLITS: Readonly<Record<PcMachine, { readonly from: number; readonly below: number }>> = {
  pc: { from: 3584 * MIB, below: 3072 * MIB },
  q35: { from: 2816 * MIB, below: 2048 * MIB },
};

/** What a raw memory file does not say of itself. */
export interface RawMemoryOptions {
  /**
   * bytes of RAM below 4 GiB; the rest begins at 4 GiB. By QEMU's rule for `pc` when absent: all of less than 3.5 GiB,
   * else 3 GiB. `assumption` of the guest says so where that is not the rule for `q35`
   */
  readonly below4g?: number | undefined;
  /** file with what HMP `info registers -a` prints; without it the guest has no CPUs, so no page tables to follow */
  readonly registers?: string | undefined;
  /** file with the text of VMCOREINFO or its whole ELF note */
  readonly vmcoreinfo?: string | undefined;
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
 * @throws VmcoreError READ, USAGE (a split that cannot be), BAD_INPUT (not whole pages, bad registers, no VMCOREINFO)
 */
export async function openRawMemory(path: string, options: RawMemoryOptions = {}): Promise<Guest> {
  const backing = FileBacking.open(path);
  try {
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
  const below = pcMemorySplit(size);
  const other = pcMemorySplit(size, 'q35');
  if (below === other) return undefined;
  return `${name} was taken for the memory of QEMU's machine pc, which has ${formatSize(below)} of it below 4 GiB; for a q35 say --below-4g ${sizeArgument(other)}`;
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
