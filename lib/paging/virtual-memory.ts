/**
 * A guest's memory by virtual address, through the page tables of one CPU: what reads a kernel's own structures.
 */

import type { CpuState } from '../model/guest.js';
import type { PhysicalMemory } from '../model/physical-memory.js';
import { PAGE_SIZE } from '../model/stage.js';
import { translate } from './mapping-resolver.js';

/** A piece of a virtual range that is in one page. */
export interface VirtualPiece {
  /** guest physical address */
  readonly paddr: number;
  /** offset in the range */
  readonly start: number;
  readonly length: number;
}

/** Memory as a CPU sees it. */
export class VirtualMemory {
  /**
   * @param memory the guest's memory
   * @param cpu    whose CR0, CR3, CR4 and EFER.LMA decide
   * @param bits   width of the addresses: those of 32 bits wrap at 4 GiB
   */
  constructor(
    readonly memory: PhysicalMemory,
    readonly cpu: CpuState,
    readonly bits: 64 | 32,
  ) {}

  /** Where a range is, page by page; null when a part of it is not mapped. */
  pieces(vaddr: bigint, length: number): VirtualPiece[] | null {
    const pieces: VirtualPiece[] = [];
    for (let start = 0; start < length;) {
      const at = BigInt.asUintN(this.bits, vaddr + BigInt(start));
      const paddr = translate(this.memory, this.cpu, at);
      if (paddr === null) return null;
      const part = Math.min(length - start, PAGE_SIZE - Number(at % BigInt(PAGE_SIZE)));
      pieces.push({ paddr, start, length: part });
      start += part;
    }
    return pieces;
  }

  /**
   * The bytes of a range; null when a part of it is not mapped, or is mapped to what is not memory.
   * @throws VmcoreError READ
   */
  read(vaddr: bigint, length: number): Uint8Array | null {
    const pieces = this.pieces(vaddr, length);
    if (!pieces) return null;
    const bytes = new Uint8Array(length);
    const whole = pieces.every(({ paddr, start, length }) =>
      this.memory.read(paddr, bytes.subarray(start, start + length)),
    );
    return whole ? bytes : null;
  }

  /** A little-endian number of `size` bytes; null as `read`. */
  number(vaddr: bigint, size: number): bigint | null {
    const bytes = this.read(vaddr, size);
    return bytes === null ? null : bytes.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);
  }

  /** A pointer; null as `read`. */
  pointer(vaddr: bigint): bigint | null {
    return this.number(vaddr, this.bits / 8);
  }
}
