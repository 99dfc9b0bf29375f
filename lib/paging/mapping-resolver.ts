/**
 * The x86 mapping resolver: walks the page tables of a guest's CPUs and yields what they map, as QEMU's
 * `dump-guest-memory` with paging does, entry by entry.
 *
 * Tables and bits are those of the Intel SDM, volume 3, chapter 4 ("Paging"). What differs from the architecture is so
 * because QEMU (target/i386/arch_memory_mapping.c, system/memory_mapping.c) does it, and dumps shall be the same:
 *   - the first CPU with CR0.PG and all CPUs behind it are walked, into one list (mapping-list.ts);
 *   - 4-level paging puts 0xffff before every virtual address and 5-level paging sets its upper 7 bits, also in the
 *     lower, user half: dumps show user memory at addresses that are not where it was;
 *   - a page counts when its first byte is memory, however large it is; the bits 52 to 62 of an entry belong to the
 *     address and so make it point outside memory;
 *   - A20 masks the addresses of tables, not those of pages;
 *   - tables outside memory are all zeros.
 *
 * A guest is not to be trusted. Tables that refer to themselves map a page billions of times. The walk is therefore
 * bounded twice, by mappings and by page tables, and is done again when it hits a bound. The second time, a table that
 * another CPU has led to in the same place is left out, which can only change how QEMU would have merged mappings. The
 * third time, a table is left out that was reached in many places before. What is then missing are further aliases of
 * pages that are all there, and a warning says so.
 */

import { VmcoreError } from '../model/errors.js';
import { type CpuState, type Guest, pagingEnabled, type SystemState } from '../model/guest.js';
import { blockEnd, lastIndexAtOrBelow, type PhysicalMemory } from '../model/physical-memory.js';
import { PAGE_SIZE } from '../model/stage.js';
import { type Mapping, MappingList, NumberIndex, WalkLimit } from './mapping-list.js';

export type { Mapping } from './mapping-list.js';

/** How many mappings are resolved unless told otherwise; their program headers take 15 MB. */
export const DEFAULT_MAX_MAPPINGS = 262_144;

/** How many page tables are walked unless told otherwise: half a second of work. */
export const DEFAULT_MAX_PAGE_TABLES = 65_536;

/** Options of `resolveMappings`. */
export interface ResolveOptions {
  /** how many mappings there may be; 262144 by default */
  readonly maxMappings?: number | undefined;
  /**
   * How many page tables may be walked, each as often as it is reached; 65536 by default. A table with entries that
   * take time to look up counts for more than one: every 64 of them as one table.
   */
  readonly maxPageTables?: number | undefined;
  /** stops the walk, which then fails with ABORTED */
  readonly signal?: AbortSignal | undefined;
  /** told, in one line, what was left out */
  readonly onWarning?: ((text: string) => void) | undefined;
  /** whether the A20 gate is open; what is known of each CPU (`CpuState.a20Masked`) by default */
  readonly a20?: boolean | undefined;
}

/** How a CPU translates addresses. */
export type PagingMode = 'none' | '32-bit' | 'PAE' | '4-level' | '5-level';

/** CR4.PSE: 4 MiB pages in 32-bit paging. */
const CR4_PSE = 1n << 4n;
/** CR4.PAE: physical address extension; entries of 8 bytes. */
const CR4_PAE = 1n << 5n;
/** CR4.LA57: 57-bit linear addresses. */
const CR4_LA57 = 1n << 12n;

/** Bit 0 of an entry, P: present. */
const P = 1 << 0;
/** Bit 7 of an entry, PS: maps a page, not a table. */
const PS = 1 << 7;

// What entries stand for, in pages of 4 KiB. 4 GiB are one unit of the upper half of an 8-byte entry.
const PAGES_IN_2_MIB = 2 ** 9;
const PAGES_IN_4_MIB = 2 ** 10;
const PAGES_IN_1_GIB = 2 ** 18;
const PAGES_IN_4_GIB = 2 ** 20;
const PAGES_IN_512_GIB = 2 ** 27;
const PAGES_IN_256_TIB = 2 ** 36;

/** The bits of the upper half of an entry that hold bits 32-51 of a physical address. */
const HIGH_ADDRESS = 0x000fffff;
/** The same with bits 52-62, which QEMU takes for bits of a page's address. */
const HIGH_PAGE_ADDRESS = 0x7fffffff;

/** QEMU's prefix of all virtual addresses in 4-level paging: bits 48-63, as a page number. */
const PREFIX_4_LEVEL = 0xffff * 2 ** 36;
/** QEMU's prefix of all virtual addresses in 5-level paging: bits 57-63, as a page number. */
const PREFIX_5_LEVEL = 0x7f * 2 ** 45;

/** Address bit 20. */
const A20 = 2 ** 20;

/** Page number that a large page's entry holds, from the lower and upper half. */
type LargePage = (low: number, high: number) => number;

/** One kind of paging structure. */
interface Level {
  /** distinguishes kinds of table; below 8 */
  readonly id: number;
  /** number of entries */
  readonly entries: number;
  /** 32-bit words in an entry: 1 or 2 */
  readonly words: 1 | 2;
  /** pages of 4 KiB that an entry stands for */
  readonly span: number;
  /** what an entry with PS maps; null where PS has no such meaning */
  readonly large: LargePage | null;
  /** the tables that entries refer to; null for the last level */
  readonly below: Level | null;
}

const BASE_LEVEL = { entries: 512, words: 2, large: null } as const;

/** 4 KiB pages by 8-byte entries. */
const PT: Level = { ...BASE_LEVEL, id: 1, span: 1, below: null };
/** Page directory of 8-byte entries; 2 MiB pages. */
const PD: Level = {
  ...BASE_LEVEL,
  id: 2,
  span: PAGES_IN_2_MIB,
  large: (low, high) => (high & HIGH_PAGE_ADDRESS) * PAGES_IN_4_GIB + (low >>> 21) * PAGES_IN_2_MIB,
  below: PT,
};
/** Page-directory-pointer table; 1 GiB pages. */
const PDPT: Level = {
  ...BASE_LEVEL,
  id: 3,
  span: PAGES_IN_1_GIB,
  large: (low, high) => (high & HIGH_PAGE_ADDRESS) * PAGES_IN_4_GIB + (low >>> 30) * PAGES_IN_1_GIB,
  below: PD,
};
const PML4: Level = { ...BASE_LEVEL, id: 4, span: PAGES_IN_512_GIB, below: PDPT };
const PML5: Level = { ...BASE_LEVEL, id: 5, span: PAGES_IN_256_TIB, below: PML4 };
/** The four page-directory-pointer-table entries of PAE paging. */
const PAE_PDPT: Level = { ...BASE_LEVEL, id: 3, entries: 4, span: PAGES_IN_1_GIB, below: PD };
/** 4 KiB pages by 4-byte entries. */
const PT_32: Level = { ...BASE_LEVEL, id: 6, entries: 1024, words: 1, span: 1, below: null };
/** Page directory of 4-byte entries without CR4.PSE. */
const PD_32: Level = { ...PT_32, id: 7, span: PAGES_IN_4_MIB, below: PT_32 };
/** The same with CR4.PSE: 4 MiB pages; PSE-36 keeps bits 32-39 of the address in bits 13-20. */
const PD_32_PSE: Level = {
  ...PD_32,
  large: (low) => (low >>> 22) * PAGES_IN_4_MIB + ((low >>> 13) & 0xff) * PAGES_IN_4_GIB,
};

/** The table that CR3 refers to. */
interface Root {
  readonly level: Level;
  /** physical address of the table, not below 0; 2^52 and above is not memory */
  readonly address: number;
  /** number of the first virtual page, by QEMU's reckoning */
  readonly base: number;
}

/**
 * How a CPU translates addresses.
 * @throws VmcoreError UNSUPPORTED when the CPU's control registers are not known
 */
export function pagingMode(cpu: CpuState): PagingMode {
  const { cr4 } = controlRegisters(cpu);
  if (!pagingEnabled(cpu)) return 'none';
  if ((cr4 & CR4_PAE) === 0n) return '32-bit';
  if (!cpu.longMode) return 'PAE';
  return (cr4 & CR4_LA57) === 0n ? '4-level' : '5-level';
}

function controlRegisters(cpu: CpuState): SystemState {
  if (cpu.system) return cpu.system;
  throw new VmcoreError(
    'UNSUPPORTED',
    'the source has no control registers (CR0, CR3, CR4) for its CPUs, so page tables cannot be found; leave out paging',
  );
}

/** The paging structure to start from; only for CPUs with paging. */
function rootOf(cpu: CpuState): Root {
  const { cr3, cr4 } = controlRegisters(cpu);
  switch (pagingMode(cpu)) {
    case '5-level':
      return { level: PML5, address: Number(cr3 & 0xf_ffff_ffff_f000n), base: PREFIX_5_LEVEL };
    case '4-level':
      return { level: PML4, address: Number(cr3 & 0xf_ffff_ffff_f000n), base: PREFIX_4_LEVEL };
    case 'PAE':
      return { level: PAE_PDPT, address: Number(cr3 & ~0x1fn), base: 0 };
    default:
      return { level: cr4 & CR4_PSE ? PD_32_PSE : PD_32, address: Number(cr3 & ~0xfffn), base: 0 };
  }
}

/** Page number of the table that an entry refers to. */
function tablePage(low: number, high: number): number {
  return (high & HIGH_ADDRESS) * PAGES_IN_4_GIB + (low >>> 12);
}

/** An address with bit 20 zero. */
function withoutA20(address: number): number {
  return Math.floor(address / A20) % 2 === 1 ? address - A20 : address;
}

/** QEMU takes all upper bits of a PAE PDPTE for address bits, so that the table is not in memory when one is set. */
function refersToMemory(level: Level, high: number): boolean {
  return level !== PAE_PDPT || (high & ~HIGH_ADDRESS) === 0;
}

/**
 * Translates one virtual address as debuggers do, QEMU's own among them (x86_cpu_get_phys_page_attrs_debug): what is
 * present is followed, without regard to access rights and to reserved bits. A CPU faults on those, but there may be
 * some nevertheless: QEMU's TCG sets bit 5 in the top table of PAE, where no CPU has one.
 * @returns the physical address, which need not be memory, or null when the address is not canonical or not mapped
 * @throws VmcoreError UNSUPPORTED when the CPU's control registers are not known, READ when a table cannot be read
 */
export function translate(memory: PhysicalMemory, cpu: CpuState, vaddr: bigint): number | null {
  const mode = pagingMode(cpu);
  if (!isLinearAddress(mode, vaddr)) return null;
  const bus = cpu.a20Masked ? withoutA20 : (address: number) => address;
  if (mode === 'none') return bus(Number(vaddr));
  const page = Number((vaddr >> 12n) & 0xf_ffff_ffff_ffffn);
  const { level, address } = rootOf(cpu);
  const physical = translatePage((at, into) => memory.read(bus(at), into), level, address, page);
  return physical === null ? null : bus(physical * PAGE_SIZE + Number(vaddr & 0xfffn));
}

/** Whether an address is one that a CPU in this mode can form: canonical, or of 32 bits. */
function isLinearAddress(mode: PagingMode, vaddr: bigint): boolean {
  if (mode !== '4-level' && mode !== '5-level') return BigInt.asUintN(32, vaddr) === vaddr;
  const bits = mode === '4-level' ? 48 : 57;
  return BigInt.asUintN(64, BigInt.asIntN(bits, vaddr)) === vaddr;
}

/** Reads physical memory as the CPU sees it. */
type ReadPhysical = (address: number, into: Uint8Array) => void;

/** Follows the tables to the physical page of a virtual one. */
function translatePage(read: ReadPhysical, level: Level, address: number, page: number): number | null {
  const index = Math.floor(page / level.span) % level.entries;
  const entry = new Uint32Array(level.words);
  read(address + index * entry.byteLength, new Uint8Array(entry.buffer));
  const low = entry[0]!;
  const high = entry[1] ?? 0;
  if ((low & P) === 0) return null;
  if (level.below === null) return tablePage(low, high);
  if (level.large !== null && (low & PS) !== 0) return level.large(low, high & HIGH_ADDRESS) + (page % level.span);
  return translatePage(read, level.below, tablePage(low, high) * PAGE_SIZE, page);
}

/**
 * What the guest's page tables map, in QEMU's order. Without a CPU that has paging enabled it is every memory block at
 * its physical address.
 * @throws VmcoreError UNSUPPORTED when the guest cannot be read at random or has no control registers, LIMIT when
 *         there is more than `maxMappings` or `maxPageTables` even without aliases, READ, ABORTED
 */
export async function resolveMappings(guest: Guest, options: ResolveOptions = {}): Promise<Mapping[]> {
  const cpus = pagingCpus(guest);
  if (cpus.length === 0) return guest.blocks.map(identityMapping);
  const { memory } = guest;
  if (memory === null)
    throw new VmcoreError(
      'UNSUPPORTED',
      `${guest.name}: page tables cannot be read from a stream; save it to a file first, or leave out paging`,
    );

  const attempt = (leftOut: readonly Sighting[]) =>
    walkTables(new Walk(memory, options, leftOut), cpus, options.signal);
  let walk = await attempt([]);
  const limit = walk.limit;
  // Each further walk is for the case that the one before met something that can be left out.
  if (limit?.what === 'page tables' && walk.sightings.again > 0) walk = await attempt(['again']);
  if (walk.limit && walk.sightings.alias > 0) walk = await attempt(['again', 'alias']);
  if (walk.limit) throw limitError(walk.limit, options);
  if (limit && walk.aliasesLeftOut > 0) options.onWarning?.(leftOutText(walk.aliasesLeftOut, limit, options));
  return walk.list.toMappings();
}

/** The CPUs that QEMU walks: from the first one with paging on. */
function pagingCpus(guest: Guest): readonly CpuState[] {
  if (guest.cpus.length === 0)
    throw new VmcoreError('UNSUPPORTED', `${guest.name}: no CPU registers, so page tables cannot be found`);
  for (const cpu of guest.cpus) controlRegisters(cpu);
  const first = guest.cpus.findIndex(pagingEnabled);
  return first < 0 ? [] : guest.cpus.slice(first).filter(pagingEnabled);
}

function identityMapping(block: { readonly base: number; readonly length: number }): Mapping {
  return { vaddr: BigInt(block.base), paddr: block.base, length: block.length };
}

/** Number of the first page that begins at or above an address. */
function firstPage(address: number): number {
  return Math.ceil(address / PAGE_SIZE);
}

/** A limit as users know it: `262144 mappings (--max-mappings)`. */
function limitText(limit: WalkLimit, options: ResolveOptions): string {
  return limit.what === 'mappings'
    ? `${options.maxMappings ?? DEFAULT_MAX_MAPPINGS} mappings (--max-mappings)`
    : `${options.maxPageTables ?? DEFAULT_MAX_PAGE_TABLES} page tables to walk (--max-page-tables)`;
}

function limitError(limit: WalkLimit, options: ResolveOptions): VmcoreError {
  return new VmcoreError(
    'LIMIT',
    `the guest's page tables exceed the limit of ${limitText(limit, options)}; raise it, or leave out paging`,
  );
}

function leftOutText(aliases: number, limit: WalkLimit, options: ResolveOptions): string {
  return (
    `the guest's page tables exceed the limit of ${limitText(limit, options)}: left out ${aliases} references to ` +
    `tables that ${MAX_PLACES} other addresses show already; raise the limit for all of them`
  );
}

/** Runs a walk, letting the event loop turn now and then so that a monitor in this process stays responsive. */
async function walkTables(walk: Walk, cpus: readonly CpuState[], signal: AbortSignal | undefined): Promise<Walk> {
  try {
    throwIfAborted(signal);
    for (const _pause of walk.run(cpus)) {
      await new Promise((resolve) => setImmediate(resolve));
      throwIfAborted(signal);
    }
  } catch (error) {
    if (!(error instanceof WalkLimit)) throw error;
    walk.limit = error;
  }
  return walk;
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new VmcoreError('ABORTED', 'aborted', { cause: signal.reason });
}

/** In how many places a table is followed when aliases are left out. */
const MAX_PLACES = 16;

/** How a table was reached before: not at all, in the same place, or in MAX_PLACES others. */
type Sighting = 'new' | 'again' | 'alias';

/** Remembers where tables were walked. A "place" is the first virtual page that a table maps. */
class TableLog {
  /** by place and level: index into #tables of the table that was walked there last */
  readonly #latest = new NumberIndex();
  readonly #tables: number[] = [];
  /** by table and level: number of places where it was walked */
  readonly #places = new NumberIndex();

  /** What is known of a table, by its page number, in a place. */
  sighting(level: Level, table: number, place: number): Sighting {
    const latest = this.#latest.get(placeKey(level, place));
    if (latest >= 0 && this.#tables[latest] === table) return 'again';
    return this.#places.get(tableKey(level, table)) < MAX_PLACES ? 'new' : 'alias';
  }

  /** Notes that a table is walked. */
  add(level: Level, table: number, place: number): void {
    const latest = this.#latest.get(placeKey(level, place));
    if (latest >= 0) this.#tables[latest] = table;
    else this.#latest.set(placeKey(level, place), this.#tables.push(table) - 1);
    const places = Math.max(0, this.#places.get(tableKey(level, table)));
    this.#places.set(tableKey(level, table), places + 1);
  }
}

function tableKey(level: Level, table: number): number {
  return table * 8 + level.id;
}

/** No table maps less than 2 MiB, so that place and level fit into one exact number. */
function placeKey(level: Level, place: number): number {
  return (place / PAGES_IN_2_MIB) * 8 + level.id;
}

/** Lookups (of mappings, memory regions, tables that are left out) that count as one page table of work. */
const LOOKUPS_PER_TABLE = 64;

/** Page tables, or as much other work, between two turns of the event loop: a few milliseconds. */
const TABLES_PER_TURN = 256;

/** One walk through the page tables of all CPUs. */
class Walk {
  readonly list: MappingList;
  /** the limit that ended the walk, or null */
  limit: WalkLimit | null = null;
  /** how often tables were reached, by what was known of them */
  readonly sightings: Record<Sighting, number> = { new: 0, again: 0, alias: 0 };

  readonly #memory: PhysicalMemory;
  readonly #maxTables: number;
  readonly #a20: boolean | undefined;
  readonly #leftOut: readonly Sighting[];
  readonly #log = new TableLog();
  /** a table's contents, one buffer for each id of a level */
  readonly #buffers = Array.from({ length: 8 }, () => new Uint32Array(PAGE_SIZE / 4));
  #tables = 0;
  #turnAt = TABLES_PER_TURN;
  #lookups = 0;
  #a20Masked = false;

  // The run of pages that is being gathered.
  #virtual = 0;
  #physical = 0;
  #length = 0;
  #count = 0;

  // The pages around the last one that was looked up which are all memory, or all not.
  #extentStart = 0;
  #extentEnd = 0;
  #extentIsMemory = false;

  /** @param leftOut which tables not to walk */
  constructor(memory: PhysicalMemory, options: ResolveOptions, leftOut: readonly Sighting[]) {
    this.#memory = memory;
    this.#maxTables = options.maxPageTables ?? DEFAULT_MAX_PAGE_TABLES;
    this.#a20 = options.a20;
    this.#leftOut = leftOut;
    this.list = new MappingList(options.maxMappings ?? DEFAULT_MAX_MAPPINGS);
  }

  /** How many references to tables were not followed, so that mappings may be missing. */
  get aliasesLeftOut(): number {
    return this.#leftOut.includes('alias') ? this.sightings.alias : 0;
  }

  /**
   * Walks the tables of CPUs with paging. Yields where it may pause.
   * @throws WalkLimit, VmcoreError READ
   */
  *run(cpus: readonly CpuState[]): Generator<void> {
    for (const cpu of cpus) {
      const { level, address, base } = rootOf(cpu);
      this.#a20Masked = this.#a20 === undefined ? cpu.a20Masked === true : !this.#a20;
      yield* this.#walkTable(level, this.#tableAddress(address), base);
    }
    this.#flush();
  }

  *#walkTable(level: Level, address: number, base: number): Generator<void> {
    const words = this.#load(level, address);
    for (let i = 0; i < level.entries; i++) {
      const low = words[i * level.words]!;
      if ((low & P) === 0) continue;
      const high = level.words === 2 ? words[i * 2 + 1]! : 0;
      const place = base + i * level.span;
      if (level.large !== null && (low & PS) !== 0) this.#page(place, level.large(low, high), level.span);
      else if (refersToMemory(level, high)) yield* this.#walkBelow(level.below!, tablePage(low, high), place);
    }
  }

  *#walkBelow(level: Level, page: number, place: number): Generator<void> {
    const address = this.#tableAddress(page * PAGE_SIZE);
    if (!this.#mayEnter(level, address / PAGE_SIZE, place)) return;
    if (level.below !== null) yield* this.#walkTable(level, address, place);
    else if (level.words === 2) this.#walkPt(this.#load(level, address), place);
    else this.#walkPt32(this.#load(level, address), place);
    if (this.#work >= this.#turnAt) {
      this.#turnAt = this.#work + TABLES_PER_TURN;
      yield;
    }
  }

  #walkPt(words: Uint32Array, base: number): void {
    for (let i = 0; i < words.length; i += 2) {
      const low = words[i]!;
      if ((low & P) !== 0)
        this.#page(base + i / 2, (words[i + 1]! & HIGH_PAGE_ADDRESS) * PAGES_IN_4_GIB + (low >>> 12), 1);
    }
  }

  #walkPt32(words: Uint32Array, base: number): void {
    for (let i = 0; i < words.length; i++) {
      const low = words[i]!;
      if ((low & P) !== 0) this.#page(base + i, low >>> 12, 1);
    }
  }

  /** Whether a table is to be walked here. */
  #mayEnter(level: Level, table: number, place: number): boolean {
    const sighting = this.#log.sighting(level, table, place);
    this.sightings[sighting]++;
    this.#lookups++;
    if (this.#leftOut.includes(sighting)) return false;
    this.#log.add(level, table, place);
    return true;
  }

  /** Where a table is found that CR3 or an entry refers to. */
  #tableAddress(address: number): number {
    return this.#a20Masked ? withoutA20(address) : address;
  }

  /** Reads a table into the buffer of its level. */
  #load(level: Level, address: number): Uint32Array {
    this.#tables++;
    if (this.#work > this.#maxTables) throw new WalkLimit('page tables');
    const words = this.#buffers[level.id]!.subarray(0, level.entries * level.words);
    this.#memory.read(address, new Uint8Array(words.buffer, 0, words.byteLength));
    return words;
  }

  /** What was done so far, in page tables. */
  get #work(): number {
    return this.#tables + (this.#lookups + this.list.searches) / LOOKUPS_PER_TABLE;
  }

  /** Adds a page if it is memory: to the run of pages being gathered when it follows that, else to a new one. */
  #page(virtual: number, physical: number, length: number): void {
    if (!this.#isMemory(physical)) return;
    const offset = this.#count * this.#length;
    if (length === this.#length && physical === this.#physical + offset && virtual === this.#virtual + offset) {
      this.#count++;
      return;
    }
    this.#flush();
    this.#virtual = virtual;
    this.#physical = physical;
    this.#length = length;
    this.#count = 1;
  }

  /** Hands the run of pages over to the list. */
  #flush(): void {
    this.list.addRun(this.#virtual, this.#physical, this.#length, this.#count);
    this.#count = 0;
  }

  /** Whether a page begins in memory. */
  #isMemory(page: number): boolean {
    if (page < this.#extentStart || page >= this.#extentEnd) this.#lookUp(page);
    return this.#extentIsMemory;
  }

  /** Finds the pages around `page` that are memory, or are not, as it is. */
  #lookUp(page: number): void {
    this.#lookups++;
    const { regions } = this.#memory;
    const index = lastIndexAtOrBelow(regions, page * PAGE_SIZE);
    const region = regions[index];
    const isMemory = region !== undefined && page * PAGE_SIZE < blockEnd(region);
    this.#extentIsMemory = isMemory;
    this.#extentStart = region ? firstPage(isMemory ? region.base : blockEnd(region)) : 0;
    const next = regions[index + 1];
    this.#extentEnd = isMemory ? firstPage(blockEnd(region)) : next ? firstPage(next.base) : Number.POSITIVE_INFINITY;
  }
}
