/**
 * A Linux kernel's memory by virtual address, through the kernel's own page tables (`init_top_pgt`, 32-bit: `swapper_pg_dir`),
 * of which VMCOREINFO says where they are: no CPU is needed, and a raw memory file has none.
 *
 * paging/mapping-resolver.ts walks the tables of a CPU, and does what QEMU does with entries that no kernel makes.
 * Here it is as the Intel SDM has it (volume 3, 4.5), with two things that Linux needs: the bit that marks encrypted
 * memory (`sme_mask`) is no bit of an address, and who reads an array wants to know how far a mapping goes.
 */

import { VmcoreError } from '../model/errors.js';
import type { PhysicalMemory } from '../model/physical-memory.js';
import { PAGE_SIZE } from '../model/stage.js';
import type { KernelSymbols } from './kernel-symbols.js';

/** Where x86_64 maps the kernel's image (__START_KERNEL_map, arch/x86/include/asm/page_64_types.h) */
export const START_KERNEL_MAP = 0xffff_ffff_8000_0000n;

/** Bits of an entry: P, present, and PS, maps a page and no table. */
const P = 1;
const PS = 1 << 7;
/** Bits 12-51 of an entry: the address. */
const ADDRESS = 0x000f_ffff_ffff_f000n;
/** The same in its upper half. */
const HIGH_ADDRESS = 0x000f_ffff;
const FOUR_GIB = 2 ** 32;
/** Linear addresses have 12 bits for a byte of a page, and a number for each level. */
const PAGE_BITS = 12;

/** A kind of page tables. */
interface TableFormat {
  readonly entryBytes: 4 | 8;
  /** bits of a linear address for each level: a table has 2^levelBits entries */
  readonly levelBits: number;
  /** bits of a linear address */
  readonly bits: number;
  /** bytes of a pointer of a kernel that has such tables */
  readonly long: 4 | 8;
  /** the highest level at which an entry may map a page, and not a table */
  readonly largestLeafLevel: number;
}

/** The kinds by their number of levels (Intel SDM vol. 3, 4.3 to 4.5). PAE's top table of 4 entries maps no page. */
const TABLE_FORMATS: Readonly<Record<KernelTables['levels'], TableFormat>> = {
  2: { entryBytes: 4, levelBits: 10, bits: 32, long: 4, largestLeafLevel: 2 },
  3: { entryBytes: 8, levelBits: 9, bits: 32, long: 4, largestLeafLevel: 2 },
  4: { entryBytes: 8, levelBits: 9, bits: 48, long: 8, largestLeafLevel: 3 },
  5: { entryBytes: 8, levelBits: 9, bits: 57, long: 8, largestLeafLevel: 3 },
};
/** Where 32-bit kernels can have been configured to begin (PAGE_OFFSET, arch/x86/Kconfig, VMSPLIT_*) */
const PAGE_OFFSETS = [0xc000_0000n, 0xb000_0000n, 0x8000_0000n, 0x7800_0000n, 0x4000_0000n] as const;
/** Upper 32 bits of the least address that a 64-bit kernel has, with any number of levels */
const KERNEL_HALF = 0xff00_0000;

/** Where a virtual address is. */
export interface Translation {
  /** guest physical address; memory is there */
  readonly paddr: number;
  /** bytes from there to the end of the page, which is one of 4 KiB, 2 MiB, 4 MiB or 1 GiB */
  readonly length: number;
}

/** Where the page tables are and of what kind. */
export interface KernelTables {
  /** guest physical address of the top table */
  readonly root: number;
  /** those of a 32-bit kernel are 3 with PAE, 2 without */
  readonly levels: 2 | 3 | 4 | 5;
  /** where a 32-bit kernel begins, virtual */
  readonly pageOffset?: bigint;
  /** bits of an entry that are no part of an address though they are among its bits; 0 without memory encryption */
  readonly encryptionMask: bigint;
}

/** Told which guest physical memory a translation goes by, in bytes. */
export interface Footprint {
  /** a page table, of PAGE_SIZE bytes */
  table(paddr: number): void;
  /** what was asked for */
  data(paddr: number, length: number): void;
}

/** A table as it was read last. */
interface Table {
  address: number;
  readonly words: Uint32Array;
  readonly bytes: Uint8Array;
}

/** Memory as the kernel sees it. */
export class KernelMemory {
  readonly #memory: PhysicalMemory;
  readonly #tables: KernelTables;
  readonly #format: TableFormat;
  readonly #highAddress: number;
  readonly #lowAddress: number;
  /** the last table of each level, as arrays are read in order */
  readonly #cached: readonly Table[];

  constructor(memory: PhysicalMemory, tables: KernelTables) {
    this.#memory = memory;
    this.#tables = tables;
    this.#format = TABLE_FORMATS[tables.levels];
    const address = ADDRESS & ~tables.encryptionMask;
    this.#highAddress = Number(address >> 32n) & HIGH_ADDRESS;
    this.#lowAddress = Number(address & 0xffff_ffffn);
    this.#cached = Array.from({ length: tables.levels + 1 }, () => emptyTable());
  }

  /** Bytes of a pointer or long. */
  get long(): 4 | 8 {
    return this.#format.long;
  }

  /** Guest physical address of the top table. */
  get root(): number {
    return this.#tables.root;
  }

  /**
   * Translates a virtual address.
   * @returns null when it is not canonical, not mapped, or mapped to what is not memory
   * @throws VmcoreError READ, TRUNCATED
   */
  translate(vaddr: bigint, footprint?: Footprint): Translation | null {
    const { bits, levelBits } = this.#format;
    if (!this.#isLinear(vaddr)) return null;
    const linear = BigInt.asUintN(bits, vaddr);
    let table = this.#tables.root;
    for (let level: number = this.#tables.levels; ; level--) {
      const words = this.#table(level, table);
      if (!words) return null;
      footprint?.table(table);
      const shift = BigInt(PAGE_BITS + levelBits * (level - 1));
      const { low, target } = this.#entry(words, Number(linear >> shift) % 2 ** levelBits);
      if ((low & P) === 0) return null;
      if (level === 1 || (low & PS) !== 0) return this.#leaf(level, target, linear & ((1n << shift) - 1n), shift);
      table = target;
    }
  }

  /**
   * Reads a virtual range.
   * @returns whether all of it is mapped to memory
   * @throws VmcoreError READ, TRUNCATED
   */
  read(vaddr: bigint, into: Uint8Array, footprint?: Footprint): boolean {
    for (let done = 0; done < into.length;) {
      const at = this.translate(BigInt.asUintN(64, vaddr + BigInt(done)), footprint);
      if (!at) return false;
      const length = Math.min(at.length, into.length - done);
      if (!this.#memory.read(at.paddr, into.subarray(done, done + length))) return false;
      footprint?.data(at.paddr, length);
      done += length;
    }
    return true;
  }

  /** The bytes of a range; null as `read` says false. */
  bytes(vaddr: bigint, length: number): Uint8Array | null {
    const bytes = new Uint8Array(length);
    return this.read(vaddr, bytes) ? bytes : null;
  }

  /** A pointer or long; null as `bytes`. */
  pointer(vaddr: bigint): bigint | null {
    const bytes = this.bytes(vaddr, this.long);
    if (bytes === null) return null;
    const view = new DataView(bytes.buffer);
    return this.long === 8 ? view.getBigUint64(0, true) : BigInt(view.getUint32(0, true));
  }

  /** Whether an address is one that a kernel has: in the upper half, canonical. */
  isKernelAddress(vaddr: bigint): boolean {
    const { pageOffset } = this.#tables;
    if (pageOffset !== undefined) return this.#isLinear(vaddr) && vaddr >= pageOffset;
    return this.#isLinear(vaddr) && vaddr >> 63n === 1n;
  }

  /** What no pointer of the kernel's is below: it, or of 64 bits the upper half, as an unsigned number. */
  get pointerFloor(): number {
    return this.#tables.pageOffset === undefined ? KERNEL_HALF : Number(this.#tables.pageOffset);
  }

  /** An entry of a table: its low 32 bits, and the address in it. */
  #entry(words: Uint32Array, index: number): { readonly low: number; readonly target: number } {
    if (this.#format.entryBytes === 4) {
      const low = words[index]!;
      return { low, target: (low & this.#lowAddress) >>> 0 };
    }
    const low = words[2 * index]!;
    const high = words[2 * index + 1]! & this.#highAddress;
    return { low, target: high * FOUR_GIB + ((low & this.#lowAddress) >>> 0) };
  }

  /** Whether an address is canonical, or one of 32 bits. */
  #isLinear(vaddr: bigint): boolean {
    const { bits, long } = this.#format;
    if (long === 4) return BigInt.asUintN(bits, vaddr) === vaddr;
    return BigInt.asUintN(64, BigInt.asIntN(bits, vaddr)) === vaddr;
  }

  #leaf(level: number, target: number, offset: bigint, shift: bigint): Translation | null {
    // Bits of a large page's address that have to be 0, without PAE those above 4 GiB (PSE-36); bit 12 is PAT.
    const size = 2 ** Number(shift);
    const base = level === 1 ? target : target - (target % (2 * PAGE_SIZE));
    if (level > this.#format.largestLeafLevel || base % size !== 0) return null;
    const paddr = base + Number(offset);
    return this.#memory.has(paddr) ? { paddr, length: size - Number(offset) } : null;
  }

  #table(level: number, address: number): Uint32Array | null {
    const table = this.#cached[level]!;
    if (table.address === address) return table.words;
    table.address = -1;
    if (!this.#memory.read(address, table.bytes)) return null;
    table.address = address;
    return table.words;
  }
}

function emptyTable(): Table {
  const words = new Uint32Array(PAGE_SIZE / 4);
  return { address: -1, words, bytes: new Uint8Array(words.buffer) };
}

/**
 * The kernel's memory by what VMCOREINFO says. Its image is mapped linearly, so its tables have to lead to where they are.
 * @throws VmcoreError UNSUPPORTED when it does not say where the page tables are, or they are of no kind that is known;
 *         BAD_INPUT when there are none; READ, TRUNCATED
 */
export function kernelMemory(memory: PhysicalMemory, symbols: KernelSymbols): KernelMemory {
  const { info, guest } = symbols;
  const top = info.symbol('init_top_pgt') ?? info.symbol('init_level4_pgt') ?? symbols.symbol('swapper_pg_dir');
  for (const tables of symbols.long === 8 ? longModeTables(symbols, top) : tablesOf32(symbols, top)) {
    if (tables.root < 0 || tables.root % PAGE_SIZE !== 0) continue;
    const kernel = new KernelMemory(memory, tables);
    if (kernel.translate(top)?.paddr === tables.root) return kernel;
  }
  throw new VmcoreError(
    'BAD_INPUT',
    `${guest}: the kernel's page tables are not where VMCOREINFO puts them (0x${top.toString(16)}); it is of another kernel, or memory is damaged; dump without a level above 1`,
  );
}

function longModeTables(symbols: KernelSymbols, top: bigint): KernelTables[] {
  const { info } = symbols;
  return [
    {
      root: Number(top - START_KERNEL_MAP + symbols.number('phys_base')),
      levels: info.number('pgtable_l5_enabled') ? 5 : 4,
      encryptionMask: BigInt.asUintN(64, info.number('sme_mask') ?? 0n),
    },
  ];
}

/** VMCOREINFO does not say where a 32-bit kernel begins: there are few places. */
function tablesOf32({ info }: KernelSymbols, top: bigint): KernelTables[] {
  const levels = info.get('CONFIG_X86_PAE') === 'y' ? 3 : 2;
  return PAGE_OFFSETS.filter((pageOffset) => pageOffset <= top).map((pageOffset) => ({
    root: Number(top - pageOffset),
    levels,
    encryptionMask: 0n,
    pageOffset,
  }));
}
