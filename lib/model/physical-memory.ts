/**
 * The guest's RAM as random access: what reads page tables, notes and kernel structures before anything streams.
 * The memory itself moves through the stages (see sources/memory-source.ts) and not through here.
 */

import { VmcoreError } from './errors.js';
import { PAGE_SIZE } from './page-size.js';

/** A contiguous piece of guest physical memory. Addresses are exact as numbers: x86 has at most 52 physical bits. */
export interface MemoryBlock {
  /** guest physical address of the first byte */
  readonly base: number;
  /** number of bytes */
  readonly length: number;
}

/** One past the highest physical address that x86 can have (52 bits). */
export const PHYSICAL_ADDRESS_LIMIT = 2 ** 52;

/** A run of bytes of a backing that holds data; what lies between two runs reads as zeros. */
export interface DataRun {
  /** offset of the first byte */
  readonly start: number;
  /** offset behind the last byte */
  readonly end: number;
}

/** A place in an open file, for pread(2). */
export interface FilePlace {
  /** descriptor; it is not the reader's to close */
  readonly fd: number;
  /** from the start of the file, in bytes */
  readonly offset: number;
}

/** A place in a file that stays open until it is let go of, also when its owner closes it. */
export interface HeldPlace extends FilePlace {
  /** lets the file be closed; call it once, when nobody reads there any more */
  release(): void;
}

/** Where bytes of memory come from: a file, a buffer, a decompressor. */
export interface Backing {
  /** what to call it in messages: a path */
  readonly name: string;
  /** Fills `into` from `offset`; throws a VmcoreError (READ, TRUNCATED) when that is not possible. */
  readSync(offset: number, into: Uint8Array): void;
  /** The same without blocking the event loop. */
  read(offset: number, into: Uint8Array): Promise<void>;
  /**
   * The first run of data that ends behind `offset` and starts before `end`, clipped to both; null when all is zeros.
   * A backing that cannot tell omits the method. Where a run ends can take as long to find as the run is long: whoever
   * wants all of it asks once.
   */
  nextData?(offset: number, end: number): DataRun | null;
  /**
   * Where the byte at `offset` is in a file that has all bytes as they are; a backing without such a file omits the
   * method.
   * @throws VmcoreError READ when the backing has been closed
   */
  locate?(offset: number): HeldPlace;
  /** Releases what the backing holds, as soon as nobody reads it any more; what is asked for from now on is refused. */
  close(): void;
}

/** A block and where its bytes are. */
export interface MemoryRegion extends MemoryBlock {
  /** where the bytes are; null reads as zeros */
  readonly backing: Backing | null;
  /** offset of the region's first byte in the backing */
  readonly offset: number;
}

/** The end (exclusive) of a block. */
export function blockEnd(block: MemoryBlock): number {
  return block.base + block.length;
}

/**
 * The runs of data of a region between two guest physical addresses, as such addresses: whole pages, as far as the
 * addresses allow. All of it is data when the backing cannot tell. Each run is asked for once, whatever its length.
 */
export function* dataRuns(
  { base, offset, backing }: MemoryRegion,
  from: number,
  to: number,
): Generator<DataRun, undefined> {
  if (!backing) return;
  if (!backing.nextData) {
    yield { start: from, end: to };
    return;
  }
  const shift = base - offset;
  for (let at = from; at < to;) {
    const run = backing.nextData(at - shift, to - shift);
    if (!run) return;
    const end = Math.min(pageUp(run.end + shift), to);
    yield { start: Math.max(pageDown(run.start + shift), at), end };
    at = end;
  }
}

function pageDown(address: number): number {
  return address - (address % PAGE_SIZE);
}

function pageUp(address: number): number {
  return pageDown(address + PAGE_SIZE - 1);
}

/** Sorted, non-overlapping regions with synchronous random access. */
export class PhysicalMemory {
  /** the regions, sorted by base, none overlapping another */
  readonly regions: readonly MemoryRegion[];

  /** @throws VmcoreError BAD_INPUT when regions overlap or leave the 52 bits of x86 physical addresses */
  constructor(regions: readonly MemoryRegion[]) {
    this.regions = sortedBlocks(regions);
  }

  /** The region that contains `paddr`, or undefined. */
  regionAt(paddr: number): MemoryRegion | undefined {
    const region = this.regions[lastIndexAtOrBelow(this.regions, paddr)];
    return region && paddr < blockEnd(region) ? region : undefined;
  }

  /** Whether there is memory at `paddr`. */
  has(paddr: number): boolean {
    return this.regionAt(paddr) !== undefined;
  }

  /**
   * Reads `into.length` bytes at `paddr`. What is not memory reads as zeros.
   * @returns whether every byte was memory
   * @throws VmcoreError READ or TRUNCATED when a backing fails
   */
  read(paddr: number, into: Uint8Array): boolean {
    let whole = true;
    for (let done = 0; done < into.length;) {
      const at = paddr + done;
      const index = lastIndexAtOrBelow(this.regions, at);
      const region = this.regions[index];
      if (region && at < blockEnd(region)) {
        const part = into.subarray(done, Math.min(into.length, done + blockEnd(region) - at));
        if (region.backing) region.backing.readSync(region.offset + (at - region.base), part);
        else part.fill(0);
        done += part.length;
      } else {
        const next = this.regions[index + 1];
        const end = Math.min(into.length, next ? next.base - paddr : into.length);
        into.fill(0, done, end);
        done = end;
        whole = false;
      }
    }
    return whole;
  }
}

/** Bytes of a run that the guest has no memory for. */
export function missingBytes({ regions }: PhysicalMemory, run: MemoryBlock): number {
  return regions.reduce((missing, region) => {
    const overlap = Math.min(blockEnd(region), blockEnd(run)) - Math.max(region.base, run.base);
    return missing - Math.max(0, overlap);
  }, run.length);
}

/** Index of the last block whose base is at or below `paddr`; -1 when there is none. */
export function lastIndexAtOrBelow(blocks: readonly MemoryBlock[], paddr: number): number {
  let low = 0;
  let high = blocks.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (blocks[middle]!.base <= paddr) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/**
 * Blocks sorted by base, checked to be memory that an x86 machine can have.
 * @throws VmcoreError BAD_INPUT when one is empty, out of range or overlaps another
 */
export function sortedBlocks<T extends MemoryBlock>(blocks: readonly T[]): readonly T[] {
  const sorted = [...blocks].sort((a, b) => a.base - b.base);
  let previous: T | undefined;
  for (const block of sorted) {
    if (!Number.isSafeInteger(block.base) || block.base < 0 || !Number.isSafeInteger(block.length) || block.length <= 0)
      throw new VmcoreError('BAD_INPUT', `memory block ${describeBlock(block)}: base and length must be positive`);
    if (blockEnd(block) > PHYSICAL_ADDRESS_LIMIT)
      throw new VmcoreError(
        'BAD_INPUT',
        `memory block ${describeBlock(block)} ends above the 52 bits of x86 addresses`,
      );
    if (previous && block.base < blockEnd(previous))
      throw new VmcoreError(
        'BAD_INPUT',
        `memory blocks ${describeBlock(previous)} and ${describeBlock(block)} overlap; give each byte of memory once`,
      );
    previous = block;
  }
  return sorted;
}

/** A block as people read it: `0x100000+0x1ff00000`. */
export function describeBlock(block: MemoryBlock): string {
  return `0x${block.base.toString(16)}+0x${block.length.toString(16)}`;
}
