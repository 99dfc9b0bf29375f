/**
 * The sections of a Linux kernel's physical memory, and where the `struct page`s of each are: memory models SPARSEMEM
 * and SPARSEMEM_EXTREME, with VMEMMAP or without (mm/sparse.c, include/linux/mmzone.h).
 *
 * A section is a run of 2^SECTION_SIZE_BITS bytes. Its `struct mem_section` holds `section_mem_map`: the address of the
 * `struct page` of page frame 0, as if the section's array reached back to there, with flags in the low bits. VMEMMAP
 * has one such array for all of memory, so there all sections hold the same address; one that differs is damaged.
 *
 * Memory that was plugged in is present before anybody brings it online, and after it was taken offline. Its struct pages
 * then hold what was in that memory before. makedumpfile takes them at their word.
 */

import { VmcoreError } from '../model/errors.js';
import { blockEnd, type MemoryBlock } from '../model/physical-memory.js';
import { PAGE_SIZE } from '../model/stage.js';
import type { KernelMemory } from './kernel-memory.js';
import type { KernelSymbols } from './kernel-symbols.js';
import type { MemoryMap, MemorySection, OnDamage } from './memory-section.js';

/** SECTION_MARKED_PRESENT */
const PRESENT = 1n;
/** SECTION_IS_ONLINE, since 4.13 */
const ONLINE = 4n;
/** SECTION_IS_EARLY, since 5.3: the memory was there when the kernel booted, which brings such memory online */
const EARLY = 8n;
/** Releases whose ONLINE may come without EARLY. In a later one, flags without EARLY are not in the places that are known. */
const BEFORE_EARLY = /^[45]\./;
/** Bits of section_mem_map that are flags, those of all kernels (SECTION_MAP_LAST_BIT): page arrays are page-aligned. */
const FLAGS = 0xfffn;
/** What x86_64 has where VMCOREINFO does not say (arch/x86/include/asm/sparsemem.h). */
const SECTION_SIZE_BITS = 27n;
const MAX_PHYSMEM_BITS = 46n;
const MAX_PHYSMEM_BITS_5_LEVEL = 52n;
/** Bytes of a pointer in the array of roots. */
const POINTER_SIZE = 8;
/** Sections that are looked at to find out what most of them hold: those of 512 GiB. */
const SAMPLE = 4096;

/** A section that has struct pages. */
interface Section extends Omit<MemorySection, 'online'> {
  /** number of the section */
  readonly number: number;
  /** what section_mem_map holds without its flags: where the struct page of page frame 0 would be */
  readonly coded: bigint;
  /** its flags */
  readonly flags: bigint;
}

/** How a kernel divides memory. */
interface SectionModel {
  /** page frames of a section */
  readonly pages: number;
  /** how many sections there can be */
  readonly count: number;
  /** bytes of struct mem_section */
  readonly size: number;
  /** offset of section_mem_map in it */
  readonly mapOffset: number;
  /** SPARSEMEM_EXTREME: sections in an array that a pointer leads to, a page of them; 0: all in one array */
  readonly perRoot: number;
  /** SYMBOL(mem_section) */
  readonly symbol: bigint;
  /** bytes of struct page */
  readonly pageSize: number;
}

/**
 * The memory model that VMCOREINFO tells of.
 * @param pageSize bytes of struct page
 * @throws VmcoreError UNSUPPORTED when it does not say; BAD_INPUT when it cannot be
 */
function sectionModel(symbols: KernelSymbols, pageSize: number): SectionModel {
  const { info } = symbols;
  const symbol = symbols.symbol('mem_section');
  const size = symbols.size('mem_section');
  const mapOffset = symbols.offset('mem_section.section_mem_map');
  if (size % POINTER_SIZE !== 0 || size > PAGE_SIZE || mapOffset + POINTER_SIZE > size)
    symbols.implausible('SIZE(mem_section)', BigInt(size));
  const fiveLevels = (info.number('pgtable_l5_enabled') ?? 0n) !== 0n;
  const sectionBits = info.number('SECTION_SIZE_BITS') ?? SECTION_SIZE_BITS;
  const memoryBits = info.number('MAX_PHYSMEM_BITS') ?? (fiveLevels ? MAX_PHYSMEM_BITS_5_LEVEL : MAX_PHYSMEM_BITS);
  if (memoryBits < 32n || memoryBits > 52n) symbols.implausible('NUMBER(MAX_PHYSMEM_BITS)', memoryBits);
  if (sectionBits < 24n || sectionBits > 34n) symbols.implausible('NUMBER(SECTION_SIZE_BITS)', sectionBits);
  const count = 2 ** Number(memoryBits - sectionBits);
  const perRoot = Math.floor(PAGE_SIZE / size);
  const length = info.length('mem_section');
  const extreme = length === null || Number(length) === Math.ceil(count / perRoot);
  return {
    pages: 2 ** Number(sectionBits) / PAGE_SIZE,
    count,
    size,
    mapOffset,
    perRoot: extreme ? perRoot : 0,
    symbol,
    pageSize,
  };
}

/** The sections of a guest. */
export class MemorySections implements MemoryMap {
  readonly #kernel: KernelMemory;
  readonly #model: SectionModel;
  /** address of the array of roots, or of the sections themselves */
  readonly #table: bigint;
  /** what VMEMMAP's sections hold; null without VMEMMAP */
  readonly #vmemmap: bigint | null;
  /** whether ONLINE is known to mean that */
  readonly #tellsOnline: boolean;

  /**
   * @param pageSize bytes of struct page
   * @param blocks   the guest's memory: what else the kernel has sections for is no concern
   * @throws VmcoreError UNSUPPORTED when VMCOREINFO does not say how memory is divided; BAD_INPUT when there is no section
   *         in the guest's memory; READ, TRUNCATED
   */
  constructor(kernel: KernelMemory, symbols: KernelSymbols, pageSize: number, blocks: readonly MemoryBlock[]) {
    const model = sectionModel(symbols, pageSize);
    this.#kernel = kernel;
    this.#model = model;
    const candidates = model.perRoot === 0 ? [model.symbol] : [model.symbol, kernel.pointer(model.symbol)];
    const table = this.#findTable(candidates, blocks);
    if (table === null)
      throw new VmcoreError(
        'BAD_INPUT',
        `${symbols.guest}: the kernel's mem_section at 0x${model.symbol.toString(16)} leads to no section of memory; it is damaged, or VMCOREINFO is of another kernel; dump without a level above 1`,
      );
    this.#table = table;
    this.#vmemmap = this.#findVmemmap(blocks);
    const known = BEFORE_EARLY.test(symbols.info.get('OSRELEASE') ?? '') ? ONLINE : ONLINE | EARLY;
    this.#tellsOnline = [...this.#sample(blocks)].some(({ flags }) => (flags & known) === known);
  }

  /** The sections that the guest's memory is in, in order; the damage to others is told. */
  *within(blocks: readonly MemoryBlock[], onDamage: OnDamage): Generator<MemorySection, undefined> {
    for (const section of this.#present(this.#table, blocks, onDamage)) {
      const online = !this.#tellsOnline || (section.flags & ONLINE) !== 0n;
      if (this.#vmemmap === null || section.coded === this.#vmemmap) yield { ...section, online };
      else onDamage(`${describe(section)} is not in the array of all others`, ...this.#range(section.number));
    }
  }

  /** Whether all sections share one array, as with VMEMMAP. */
  get shared(): boolean {
    return this.#vmemmap !== null;
  }

  /** The page frame that a struct page is of; null when it is of none, or without VMEMMAP. */
  pfnOf(page: bigint): number | null {
    if (this.#vmemmap === null || page < this.#vmemmap) return null;
    const distance = Number(page - this.#vmemmap);
    return distance % this.#model.pageSize === 0 ? distance / this.#model.pageSize : null;
  }

  /** The first address where there is a section and nothing before it leads nowhere, else the first with a section. */
  #findTable(candidates: readonly (bigint | null)[], blocks: readonly MemoryBlock[]): bigint | null {
    let second: bigint | null = null;
    for (const table of candidates) {
      if (table === null) continue;
      let damaged = false;
      const found = !this.#present(table, blocks, () => (damaged = true)).next().done;
      if (found && !damaged) return table;
      if (found) second ??= table;
    }
    return second;
  }

  /** What more than half of the sections hold (Boyer and Moore's vote, and a count to make sure), or of the first many. */
  #findVmemmap(blocks: readonly MemoryBlock[]): bigint | null {
    let candidate = 0n;
    let votes = 0;
    for (const { coded } of this.#sample(blocks)) {
      if (votes === 0) candidate = coded;
      votes += coded === candidate ? 1 : -1;
    }
    let [same, all] = [0, 0];
    for (const { coded } of this.#sample(blocks)) {
      all++;
      if (coded === candidate) same++;
    }
    return same * 2 > all ? candidate : null;
  }

  *#sample(blocks: readonly MemoryBlock[]): Generator<Section, undefined> {
    let count = 0;
    for (const section of this.#present(this.#table, blocks, () => {})) {
      yield section;
      if (++count === SAMPLE) return;
    }
  }

  *#present(table: bigint, blocks: readonly MemoryBlock[], onDamage: OnDamage): Generator<Section, undefined> {
    const { size, mapOffset, perRoot, pages, pageSize } = this.#model;
    const perPage = perRoot === 0 ? Math.floor(PAGE_SIZE / size) : perRoot;
    for (const { start, end, address } of this.#groups(table, perPage, blocks, onDamage)) {
      const bytes = this.#kernel.bytes(address, (end - start) * size);
      if (!bytes) {
        onDamage(`mem_section 0x${address.toString(16)} is not in memory`, start * pages, end * pages);
        continue;
      }
      const view = new DataView(bytes.buffer);
      for (let number = start; number < end; number++) {
        const map = view.getBigUint64((number - start) * size + mapOffset, true);
        if ((map & PRESENT) === 0n) continue;
        const coded = map & ~FLAGS;
        const firstPfn = number * pages;
        const memMap = BigInt.asUintN(64, coded + BigInt(firstPfn * pageSize));
        const section = { number, firstPfn, pages, memMap, coded, flags: map & FLAGS };
        if (this.#kernel.isKernelAddress(memMap)) yield section;
        else onDamage(`${describe(section)} leads nowhere`, ...this.#range(number));
      }
    }
  }

  /** Runs of sections [start, end) whose structs lie in one page, and where. */
  *#groups(table: bigint, perPage: number, blocks: readonly MemoryBlock[], onDamage: OnDamage) {
    const { perRoot, size } = this.#model;
    let next = 0;
    for (const block of blocks) {
      const range = this.#sectionsOf(block);
      for (let start = Math.max(next, range.start); start < range.end; start = next) {
        next = Math.min(range.end, (Math.floor(start / perPage) + 1) * perPage);
        if (perRoot === 0) yield { start, end: next, address: table + BigInt(start * size) };
        else {
          const root = this.#root(table, Math.floor(start / perRoot), start, next, onDamage);
          if (root !== 0n) yield { start, end: next, address: root + BigInt((start % perRoot) * size) };
        }
      }
    }
  }

  #root(table: bigint, index: number, start: number, end: number, onDamage: OnDamage): bigint {
    const { pages } = this.#model;
    const root = this.#kernel.pointer(table + BigInt(index * POINTER_SIZE));
    if (root !== null && (root === 0n || (this.#kernel.isKernelAddress(root) && root % 8n === 0n))) return root;
    onDamage(`root ${index} of mem_section leads nowhere`, start * pages, end * pages);
    return 0n;
  }

  #sectionsOf(block: MemoryBlock): { start: number; end: number } {
    const { pages, count } = this.#model;
    const bytes = pages * PAGE_SIZE;
    return { start: Math.floor(block.base / bytes), end: Math.min(count, Math.ceil(blockEnd(block) / bytes)) };
  }

  #range(number: number): [number, number] {
    return [number * this.#model.pages, (number + 1) * this.#model.pages];
  }
}

function describe({ number, coded }: Section): string {
  return `mem_section ${number} (0x${coded.toString(16)})`;
}
