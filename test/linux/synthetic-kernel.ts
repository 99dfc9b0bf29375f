/**
 * A Linux kernel as far as page exclusion sees it, in a buffer: page tables, mem_section, struct pages, zones with free
 * lists, VMCOREINFO. Kernels differ in how they lay these out; the options choose.
 *
 * Physical memory: the image (tables, mem_section, zones, utsname) at IMAGE, the struct pages at MEM_MAP, all else is
 * free for tests to say what it is. Virtual: the image where Linux has it, the struct pages at VMEMMAP_BASE.
 */

import { encodeUtsname } from '../../lib/formats/kdump.js';
import { encodeNote, NOTE_NAME_VMCOREINFO } from '../../lib/formats/notes.js';
import { START_KERNEL_MAP } from '../../lib/linux/kernel-memory.js';
import { MemoryGuest } from '../../lib/sources/memory-guest.js';
import { PAGE_SIZE } from '../../lib/model/stage.js';
import { BufferBacking } from '../guest-fixture.js';
import type { ElfNote } from '../../lib/model/note.js';

const MIB = 2 ** 20;
const LONG = 8;

/** Guest physical addresses. */
export const IMAGE = 2 * MIB;
export const MEM_MAP = 4 * MIB;
/** The first page frame that is neither image nor struct pages. */
export const FIRST_PFN = (6 * MIB) / PAGE_SIZE;
/** Where the image is in the kernel's map: KASLR has moved it by phys_base. */
const IMAGE_VADDR = START_KERNEL_MAP + 0x1000_0000n;
const VMEMMAP_BASE = 0xffff_ea00_4000_0000n;
/** An address of the kernel's where nothing is: good for a mapping. */
const OBJECT = 0xffff_8880_0123_4560n;
const POISON = 0xdead_0000_0000_0100n;

/** What the kernels differ in. */
export interface SyntheticOptions {
  readonly levels?: 4 | 5;
  /** `pointer`: SYMBOL(mem_section) is the address of a pointer to the roots */
  readonly model?: 'extreme' | 'pointer' | 'plain';
  /** pages that map the struct pages */
  readonly leaf?: '4 KiB' | '2 MiB' | '1 GiB';
  /** how a compound page tells its order, and that it is huge */
  readonly compound?: 'page' | 'folio' | 'flags' | 'type';
  /** the bit that marks encrypted memory */
  readonly encryption?: bigint;
  /** bytes of memory; at most what one leaf of struct pages describes */
  readonly memory?: number;
  /** whether VMCOREINFO tells how far nodes of memory reach, as that of real kernels does */
  readonly nodes?: boolean;
  /** guest physical address of the image, at a multiple of 2 MiB; IMAGE unless another kernel is there */
  readonly image?: number;
}

const SECTION_BITS = 24;
const SECTION_BYTES = 2 ** SECTION_BITS;
const PHYSICAL_BITS = 46;
const PAGE_STRUCT = 64;
const MEM_SECTION = 16;
const ORDERS = 11;
const MIGRATE_TYPES = 2;
const FREE_AREA = MIGRATE_TYPES * 16 + LONG;
const ZONE = 1024;

/** Members of struct page, by offset. */
export const PAGE = {
  flags: 0,
  lru: 8,
  compoundHead: 8,
  mapping: 24,
  private: 40,
  mapcount: 48,
  refcount: 52,
} as const;
/** Bits of its flags. */
export const FLAG = { lru: 4, slab: 9, swapCache: 10, private: 13, head: 16, swapBacked: 19, poison: 22 } as const;
/** Page types: values of its mapcount. */
export const TYPE = { buddy: -129, offline: -257, huge: -1025 } as const;
const HUGE_DTOR = 2;
const HUGE_BIT = 8;

/** The kernel, and its memory to write to. */
export class SyntheticKernel {
  readonly bytes: Uint8Array;
  readonly guest: MemoryGuest;
  readonly note: ElfNote;
  /** guest physical address of the top page table */
  readonly root: number;
  /** guest physical address of the mem_section structs */
  readonly sections: number;
  readonly #view: DataView;
  readonly #options: Required<SyntheticOptions>;
  /** where the struct pages are mapped */
  readonly #vmemmap: bigint;
  readonly #zone: number;
  #nextTable: number;

  constructor(options: SyntheticOptions = {}) {
    this.#options = {
      levels: 4,
      model: 'extreme',
      leaf: '2 MiB',
      compound: 'page',
      encryption: 0n,
      memory: 32 * MIB,
      image: IMAGE,
      nodes: false,
      ...options,
    };
    const { memory, leaf, image } = this.#options;
    this.root = image;
    this.sections = image + 33 * PAGE_SIZE;
    this.#zone = image + 36 * PAGE_SIZE;
    this.#nextTable = image + PAGE_SIZE;
    this.#vmemmap = VMEMMAP_BASE + (leaf === '1 GiB' ? BigInt(MEM_MAP) : 0n);
    this.bytes = new Uint8Array(memory);
    this.#view = new DataView(this.bytes.buffer);
    this.#map(IMAGE_VADDR, image, 2);
    this.#mapStructs();
    this.#writeSections();
    this.#writeZones();
    for (let pfn = 0; pfn < this.pages; pfn++) this.kernelPage(pfn);
    this.#writeUtsname();
    this.note = encodeNote(NOTE_NAME_VMCOREINFO, 0, Buffer.from(this.vmcoreinfo(), 'latin1'));
    this.guest = this.guestWith([this.note]);
  }

  /** Pages of memory. */
  get pages(): number {
    return this.bytes.length / PAGE_SIZE;
  }

  /** Guest physical address of what its node says: number of zones, first page frame, page frames that it spans. */
  get node(): number {
    return this.#zone + ZONE;
  }

  /** Puts in place what CPUs are started with, as the kernel that boots last does. */
  start(at = 0x9c000): void {
    this.bytes.copyWithin(at + PAGE_SIZE - LONG, this.root + PAGE_SIZE - LONG, this.root + PAGE_SIZE);
  }

  /** Guest physical address of the table that maps the struct pages, with `leaf` 4 KiB. */
  get lastTable(): number {
    return this.#nextTable - PAGE_SIZE;
  }

  /** The same memory with other notes. */
  guestWith(notes: readonly ElfNote[]): MemoryGuest {
    const backing = new BufferBacking(this.bytes);
    return new MemoryGuest({
      name: 'synthetic',
      arch: 'x86_64',
      regions: [{ base: 0, length: this.bytes.length, backing, offset: 0 }],
      cpus: [],
      notes,
    });
  }

  /** Writes a member of a struct page. */
  set(pfn: number, member: number, value: bigint, width: 1 | 4 | 8 = 8): void {
    const at = MEM_MAP + pfn * PAGE_STRUCT + member;
    if (width === 8) this.#view.setBigUint64(at, BigInt.asUintN(64, value), true);
    else if (width === 4) this.#view.setInt32(at, Number(value), true);
    else this.#view.setUint8(at, Number(value));
  }

  /** A page that the kernel has for itself. */
  kernelPage(pfn: number): void {
    this.bytes.fill(0, MEM_MAP + pfn * PAGE_STRUCT, MEM_MAP + (pfn + 1) * PAGE_STRUCT);
    this.set(pfn, PAGE.lru, POISON);
    this.set(pfn, PAGE.lru + LONG, POISON + 0x22n);
    this.#counts(pfn, 1, -1);
  }

  /** A free block, in the free list of its order. */
  free(pfn: number, order: number): void {
    for (let page = pfn; page < pfn + 2 ** order; page++) this.#counts(page, 0, -1);
    this.#counts(pfn, 0, TYPE.buddy);
    this.set(pfn, PAGE.private, BigInt(order));
    const area = this.#zone + 128 + order * FREE_AREA;
    const head = this.#imageAddress(area);
    const first = this.#view.getBigUint64(area, true);
    const node = this.#vmemmap + BigInt(pfn * PAGE_STRUCT + PAGE.lru);
    this.#view.setBigUint64(area, node, true);
    this.set(pfn, PAGE.lru, first);
    this.set(pfn, PAGE.lru + LONG, head);
    if (first === head) this.#view.setBigUint64(area + LONG, node, true);
    else this.set(Number(first - this.#vmemmap - BigInt(PAGE.lru)) / PAGE_STRUCT, PAGE.lru + LONG, node);
    const count = area + FREE_AREA - LONG;
    this.#view.setBigUint64(count, this.#view.getBigUint64(count, true) + 1n, true);
  }

  /** A page of a file; `order` makes it a compound page. */
  cache(pfn: number, { buffers = false, order = 0 } = {}): void {
    this.#inUse(pfn, order, [FLAG.lru, ...(buffers ? [FLAG.private] : [])]);
    this.set(pfn, PAGE.mapping, OBJECT);
    if (buffers) this.set(pfn, PAGE.private, OBJECT);
  }

  /** A page of a process. */
  user(pfn: number, order = 0): void {
    this.#inUse(pfn, order, [FLAG.lru, FLAG.swapBacked]);
    this.set(pfn, PAGE.mapping, OBJECT | 1n);
    this.#counts(pfn, 1, 0);
  }

  /** A page of the slab allocator's, whose word for the mapping is odd. */
  slab(pfn: number): void {
    this.#inUse(pfn, 0, [FLAG.slab]);
    this.set(pfn, PAGE.mapping, OBJECT | 1n);
  }

  /** A huge page that no process has. */
  huge(pfn: number): void {
    const { compound } = this.#options;
    this.#inUse(pfn, 9, []);
    if (compound === 'page') this.set(pfn + 1, 16, BigInt(HUGE_DTOR), 1);
    if (compound === 'folio') this.set(pfn + 1, 16, BigInt(HUGE_DTOR), 1);
    if (compound === 'flags') this.set(pfn + 1, PAGE.flags, 9n | (1n << BigInt(HUGE_BIT)));
    if (compound === 'type') this.#counts(pfn, 1, TYPE.huge);
  }

  /** A page that the host has taken. */
  offline(pfn: number): void {
    this.#counts(pfn, 1, TYPE.offline);
  }

  /** A page whose memory is broken. */
  poison(pfn: number): void {
    this.set(pfn, PAGE.flags, 1n << BigInt(FLAG.poison));
  }

  #inUse(pfn: number, order: number, flags: readonly number[]): void {
    const all = order > 0 ? [...flags, FLAG.head] : flags;
    this.set(
      pfn,
      PAGE.flags,
      all.reduce((bits, bit) => bits | (1n << BigInt(bit)), 0n),
    );
    for (let tail = pfn + 1; tail < pfn + 2 ** order; tail++) {
      this.set(tail, PAGE.compoundHead, this.#vmemmap + BigInt(pfn * PAGE_STRUCT + 1));
      this.#counts(tail, 0, -1);
    }
    if (order === 0) return;
    const { compound } = this.#options;
    if (compound === 'page' || compound === 'folio') this.set(pfn + 1, 17, BigInt(order), 1);
    else this.set(pfn + 1, PAGE.flags, BigInt(order));
  }

  #counts(pfn: number, refcount: number, mapcount: number): void {
    this.set(pfn, PAGE.refcount, BigInt(refcount), 4);
    this.set(pfn, PAGE.mapcount, BigInt(mapcount), 4);
  }

  /** The text; tests leave lines out of it. */
  vmcoreinfo(): string {
    const { model, levels, encryption } = this.#options;
    const symbol = (address: number) => this.#imageAddress(address).toString(16);
    const table = { extreme: this.root + 32 * PAGE_SIZE, pointer: this.root + 34 * PAGE_SIZE, plain: this.sections }[
      model
    ];
    const roots = Math.ceil(2 ** (PHYSICAL_BITS - SECTION_BITS) / (PAGE_SIZE / MEM_SECTION));
    const lines = {
      OSRELEASE: '6.1.0-synthetic',
      PAGESIZE: PAGE_SIZE,
      'SYMBOL(init_uts_ns)': symbol(this.root + 35 * PAGE_SIZE),
      'OFFSET(uts_namespace.name)': 0,
      'SYMBOL(node_online_map)': symbol(this.#zone - PAGE_SIZE / 2),
      'SYMBOL(swapper_pg_dir)': symbol(this.root),
      'SYMBOL(init_top_pgt)': symbol(this.root),
      'SYMBOL(mem_section)': symbol(table),
      'LENGTH(mem_section)': model === 'plain' ? 2 ** (PHYSICAL_BITS - SECTION_BITS) : roots,
      'SIZE(mem_section)': MEM_SECTION,
      'OFFSET(mem_section.section_mem_map)': 0,
      'NUMBER(SECTION_SIZE_BITS)': SECTION_BITS,
      'NUMBER(MAX_PHYSMEM_BITS)': PHYSICAL_BITS,
      'SIZE(page)': PAGE_STRUCT,
      'OFFSET(page.flags)': PAGE.flags,
      'OFFSET(page._refcount)': PAGE.refcount,
      'OFFSET(page.mapping)': PAGE.mapping,
      'OFFSET(page.lru)': PAGE.lru,
      'OFFSET(page._mapcount)': PAGE.mapcount,
      'OFFSET(page.private)': PAGE.private,
      'OFFSET(page.compound_head)': PAGE.compoundHead,
      ...this.#compoundLines(),
      'OFFSET(list_head.next)': 0,
      'OFFSET(list_head.prev)': LONG,
      'SIZE(list_head)': 2 * LONG,
      'SIZE(zone)': ZONE,
      'SIZE(free_area)': FREE_AREA,
      'OFFSET(zone.free_area)': 128,
      'OFFSET(free_area.free_list)': 0,
      'LENGTH(free_area.free_list)': MIGRATE_TYPES,
      'LENGTH(zone.free_area)': ORDERS,
      'OFFSET(pglist_data.node_zones)': 0,
      'OFFSET(pglist_data.nr_zones)': ZONE,
      ...(this.#options.nodes
        ? {
            'OFFSET(pglist_data.node_start_pfn)': ZONE + LONG,
            'OFFSET(pglist_data.node_spanned_pages)': ZONE + 2 * LONG,
          }
        : {}),
      'SYMBOL(node_data)': symbol(this.#zone - PAGE_SIZE / 4),
      'LENGTH(node_data)': 64,
      'NUMBER(PG_lru)': FLAG.lru,
      'NUMBER(PG_private)': FLAG.private,
      'NUMBER(PG_swapcache)': FLAG.swapCache,
      'NUMBER(PG_swapbacked)': FLAG.swapBacked,
      'NUMBER(PG_slab)': FLAG.slab,
      'NUMBER(PG_hwpoison)': FLAG.poison,
      'NUMBER(PG_head_mask)': 1 << FLAG.head,
      'NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)': TYPE.buddy,
      'NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)': TYPE.offline,
      'NUMBER(phys_base)': Number(START_KERNEL_MAP - IMAGE_VADDR) + this.root,
      'NUMBER(pgtable_l5_enabled)': levels === 5 ? 1 : 0,
      'NUMBER(sme_mask)': encryption,
    };
    return Object.entries(lines)
      .map(([key, value]) => `${key}=${value}\n`)
      .join('');
  }

  #compoundLines(): Record<string, number> {
    const lines = {
      page: {
        'OFFSET(page.compound_order)': 17,
        'OFFSET(page.compound_dtor)': 16,
        'NUMBER(HUGETLB_PAGE_DTOR)': HUGE_DTOR,
      },
      folio: {
        'OFFSET(folio._folio_order)': PAGE_STRUCT + 17,
        'OFFSET(folio._folio_dtor)': PAGE_STRUCT + 16,
        'NUMBER(HUGETLB_PAGE_DTOR)': HUGE_DTOR,
      },
      flags: { 'NUMBER(PG_hugetlb)': HUGE_BIT },
      type: { 'NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)': TYPE.huge },
    };
    return lines[this.#options.compound];
  }

  #imageAddress(paddr: number): bigint {
    return IMAGE_VADDR + BigInt(paddr - this.root);
  }

  /** Maps a page of the size that entries of a level map. */
  #map(vaddr: bigint, paddr: number, leafLevel: 1 | 2 | 3): void {
    let table = this.root;
    for (let level: number = this.#options.levels; ; level--) {
      const index = Number((vaddr >> BigInt(12 + 9 * (level - 1))) & 0x1ffn);
      const at = table + index * LONG;
      if (level === leafLevel) return this.#entry(at, paddr, level > 1 ? 0x80 : 0);
      if ((this.#view.getUint8(at) & 1) === 0) {
        this.#entry(at, this.#nextTable, 0);
        this.#nextTable += PAGE_SIZE;
      }
      table = Number(this.#view.getBigUint64(at, true) & ~this.#options.encryption & 0xf_ffff_ffff_f000n);
    }
  }

  /** Present, writable, accessed, dirty; not executable. */
  #entry(at: number, paddr: number, flags: number): void {
    this.#view.setBigUint64(at, BigInt(paddr) | BigInt(flags) | 0x63n | (1n << 63n) | this.#options.encryption, true);
  }

  #mapStructs(): void {
    const { leaf } = this.#options;
    if (leaf === '1 GiB') this.#map(VMEMMAP_BASE, 0, 3);
    else if (leaf === '2 MiB') this.#map(VMEMMAP_BASE, MEM_MAP, 2);
    else
      for (let at = 0; at < this.pages * PAGE_STRUCT; at += PAGE_SIZE)
        this.#map(this.#vmemmap + BigInt(at), MEM_MAP + at, 1);
  }

  #writeSections(): void {
    this.#view.setBigUint64(this.root + 32 * PAGE_SIZE, this.#imageAddress(this.sections), true);
    this.#view.setBigUint64(this.root + 34 * PAGE_SIZE, this.#imageAddress(this.root + 32 * PAGE_SIZE), true);
    const count = this.bytes.length / SECTION_BYTES;
    // Present, has a map, is online and early.
    for (let i = 0; i < count; i++)
      this.#view.setBigUint64(this.sections + i * MEM_SECTION, this.#vmemmap | 0xfn, true);
  }

  #writeZones(): void {
    this.#view.setBigUint64(this.#zone - PAGE_SIZE / 2, 1n, true);
    this.#view.setBigUint64(this.#zone - PAGE_SIZE / 4, this.#imageAddress(this.#zone), true);
    this.#view.setInt32(this.#zone + ZONE, 1, true);
    this.#view.setBigUint64(this.node + 2 * LONG, BigInt(this.pages), true);
    for (let order = 0; order < ORDERS; order++)
      for (let type = 0; type < MIGRATE_TYPES; type++) {
        const head = this.#zone + 128 + order * FREE_AREA + type * 16;
        this.#view.setBigUint64(head, this.#imageAddress(head), true);
        this.#view.setBigUint64(head + LONG, this.#imageAddress(head), true);
      }
  }

  #writeUtsname(): void {
    const utsname = encodeUtsname({
      sysname: 'Linux',
      nodename: 'synthetic',
      release: '6.1.0-synthetic',
      version: '#1 SMP',
      machine: 'x86_64',
      domainname: '(none)',
    });
    this.bytes.set(utsname, this.root + 35 * PAGE_SIZE);
  }
}
