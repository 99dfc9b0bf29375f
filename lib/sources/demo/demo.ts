/**
 * The demo guest: a machine that never ran, for trying everything without a virtual machine at hand.
 *
 * It looks like an x86_64 PC on which Linux has just booted: RAM around the VGA hole and above 4 GiB, a kernel in long
 * mode with its page tables, two CPUs, VMCOREINFO. Most of its memory is zeros, log text and noise that are a function
 * of the offset alone, so a guest of any size takes a few megabytes and is the same each time, byte for byte.
 *
 *   virtual                                      physical              page size
 *   ffff888000000000  direct map                 all of RAM            4 KiB, 2 MiB, 1 GiB, as alignment allows
 *   ffffffff81000000  text, read-only data       TEXT_PHYS             2 MiB
 *   ffffffff81400000  data, page tables, stacks  DATA_PHYS             4 KiB, none where a guard page is
 *   ffffffffc0000000  a module                   in reverse order      4 KiB
 */

import { VmcoreError } from '../../model/errors.js';
import { encodeNote, NOTE_NAME_VMCOREINFO } from '../../formats/notes.js';
import { type CpuState, type Guest, NULL_SEGMENT, type Segment } from '../../model/guest.js';
import type { Backing, DataRun, MemoryBlock, MemoryRegion } from '../../model/physical-memory.js';
import { formatSize } from '../../model/sizes.js';
import { PAGE_SIZE } from '../../model/stage.js';
import { MemoryGuest } from '../memory-guest.js';

const KIB = 2 ** 10;
const MIB = 2 ** 20;
const GIB = 2 ** 30;

/** Bytes of the demo guest's memory unless asked otherwise. */
export const DEMO_MEMORY = 256 * MIB;
/** The kernel, its data and a little more. */
export const DEMO_MEMORY_MIN = 64 * MIB;
/** So that one table of 1 GiB pages is enough for the direct map. */
export const DEMO_MEMORY_MAX = 256 * GIB;

/** What can be chosen of the demo guest. */
export interface DemoOptions {
  /** bytes of RAM: a multiple of 2 MiB from 64 MiB to 256 GiB; 256 MiB when absent */
  readonly memory?: number | undefined;
}

/**
 * Makes the demo guest. The same options give the same guest, byte for byte.
 * @throws VmcoreError USAGE when the memory's size cannot be had
 */
export function demoGuest(options: DemoOptions = {}): Guest {
  const memory = options.memory ?? DEMO_MEMORY;
  checkMemory(memory);
  const regions = ramRegions(memory);
  const kernel = new Image(DATA_PHYS, DATA_LENGTH);
  buildPageTables(kernel, regions);
  writeGdt(kernel);
  kernel.writeText(INIT_UTS_NS, utsname());
  const cpus = CPU_CODE.map((code, index) => cpuState(kernel, index, code));

  const backing = new DemoMemory([textImage(), rodataImage(), kernel]);
  return new MemoryGuest({
    name: 'demo:',
    arch: 'x86_64',
    regions: regions.map((region) => ({ ...region, backing })),
    cpus,
    notes: [encodeNote(NOTE_NAME_VMCOREINFO, 0, Buffer.from(vmcoreinfo(), 'latin1'))],
  });
}

function checkMemory(memory: number): void {
  if (memory >= DEMO_MEMORY_MIN && memory <= DEMO_MEMORY_MAX && memory % LARGE_PAGE === 0) return;
  throw new VmcoreError(
    'USAGE',
    `the demo guest has from ${formatSize(DEMO_MEMORY_MIN)} to ${formatSize(DEMO_MEMORY_MAX)} of memory, a multiple of ${formatSize(LARGE_PAGE)}; ${memory} bytes is not`,
  );
}

// ---------------------------------------------------------------------------------------------------------------------
// Physical layout
// ---------------------------------------------------------------------------------------------------------------------

const VGA_HOLE: MemoryBlock = { base: 640 * KIB, length: 384 * KIB };
const FOUR_GIB = 4 * GIB;
const LARGE_PAGE = 2 * MIB;
const HUGE_PAGE = GIB;

/** Three quarters below 4 GiB, at most 3 GiB, so that even a small guest has memory on both sides of the hole. */
function ramRegions(memory: number): MemoryRegion[] {
  const quarters = Math.floor((memory * 3) / 4 / LARGE_PAGE) * LARGE_PAGE;
  const below = Math.min(quarters, 3 * GIB);
  const afterHole = VGA_HOLE.base + VGA_HOLE.length;
  const region = (base: number, length: number, offset: number) => ({ base, length, offset, backing: null });
  return [
    region(0, VGA_HOLE.base, 0),
    region(afterHole, below - afterHole, afterHole),
    region(FOUR_GIB, memory - below, below),
  ];
}

// ---------------------------------------------------------------------------------------------------------------------
// The kernel's addresses
// ---------------------------------------------------------------------------------------------------------------------

/** __START_KERNEL_map: where phys_base bytes of physical memory are, by the kernel's own mapping */
const START_KERNEL_MAP = 0xffff_ffff_8000_0000n;
/** PAGE_OFFSET: the direct map of all memory */
const DIRECT_MAP = 0xffff_8880_0000_0000n;
const MODULES = 0xffff_ffff_c000_0000n;
const TEXT = 0xffff_ffff_8100_0000n;
const RODATA = TEXT + 0x20_0000n;
const DATA = TEXT + 0x40_0000n;

/**
 * How far the kernel was moved physically. Not zero, so that it matters, and with decimal digits that mean something
 * else in hexadecimal.
 */
const PHYS_BASE = 20 * MIB;

const TEXT_PHYS = physicalOf(TEXT);
const RODATA_PHYS = physicalOf(RODATA);
const DATA_PHYS = physicalOf(DATA);
const DATA_LENGTH = 256 * KIB;

/** What lies where in the kernel's data. */
const SWAPPER_PG_DIR = DATA;
const TABLE_POOL = DATA + 0x1000n;
const TABLE_POOL_END = DATA + 0x2_0000n;
const INIT_UTS_NS = DATA + 0x2_0000n;
const GDT = DATA + 0x2_1000n;
const IDT = DATA + 0x2_2000n;
const TSS = DATA + 0x2_3000n;
const PER_CPU = DATA + 0x2_4000n;
const MODULE_PAGES = DATA + 0x2_8000n;
/** Two stacks of 16 KiB, each above a page that nothing maps. */
const STACKS = DATA + 0x3_0000n;
const STACK_PITCH = 0x8000n;
const STACK_GUARD = 0x1000n;
const STACK_TOP = 0x5000n;
const LINUX_BANNER = RODATA + 0x40n;

function physicalOf(kernelAddress: bigint): number {
  return Number(kernelAddress - START_KERNEL_MAP) + PHYS_BASE;
}

/** A piece of physical memory with contents of its own. */
class Image implements MemoryBlock {
  readonly bytes: Buffer;
  readonly #view: DataView;

  constructor(
    readonly base: number,
    readonly length: number,
  ) {
    // Of its own ArrayBuffer: a pooled one has an offset.
    this.bytes = Buffer.from(new ArrayBuffer(length));
    this.#view = new DataView(this.bytes.buffer);
  }

  readU64(physical: number): bigint {
    return this.#view.getBigUint64(physical - this.base, true);
  }

  writeU64(physical: number, value: bigint): void {
    this.#view.setBigUint64(physical - this.base, value, true);
  }

  writeText(kernelAddress: bigint, text: string): void {
    this.bytes.write(text, physicalOf(kernelAddress) - this.base, 'latin1');
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Page tables (Intel SDM vol. 3, 4.5)
// ---------------------------------------------------------------------------------------------------------------------

const PRESENT = 1n << 0n;
const WRITABLE = 1n << 1n;
const ACCESSED = 1n << 5n;
const DIRTY = 1n << 6n;
const LARGE = 1n << 7n;
const GLOBAL = 1n << 8n;
const NO_EXECUTE = 1n << 63n;
const ADDRESS_BITS = 0x000f_ffff_ffff_f000n;

const TABLE_FLAGS = PRESENT | WRITABLE | ACCESSED;
const TEXT_FLAGS = PRESENT | ACCESSED | GLOBAL;
const RODATA_FLAGS = TEXT_FLAGS | NO_EXECUTE;
const DATA_FLAGS = PRESENT | WRITABLE | ACCESSED | DIRTY | GLOBAL | NO_EXECUTE;

/** Lowest address bit that indexes each level's table, from the top: PML4, PDPT, PD, PT. */
const LEVEL_SHIFTS = [39n, 30n, 21n, 12n] as const;

/** Four levels of tables in the kernel's data, made as mappings need them. */
class PageTables {
  #nextTable = physicalOf(TABLE_POOL);

  constructor(readonly memory: Image) {}

  /** Maps one page of 4 KiB, 2 MiB or 1 GiB. */
  map(virtual: bigint, physical: number, pageSize: number, flags: bigint): void {
    const entry = this.#entry(virtual, pageSize);
    const large = pageSize === PAGE_SIZE ? 0n : LARGE;
    this.memory.writeU64(entry, BigInt(physical) | flags | large);
  }

  /** Maps `length` bytes with the largest pages that alignment allows, as Linux maps all memory. */
  mapRange(virtual: bigint, physical: number, length: number, flags: bigint): void {
    for (let done = 0; done < length;) {
      const at = physical + done;
      const fits = (size: number) => at % size === 0 && length - done >= size;
      const size = [HUGE_PAGE, LARGE_PAGE].find(fits) ?? PAGE_SIZE;
      this.map(virtual + BigInt(done), at, size, flags);
      done += size;
    }
  }

  /** Physical address of the entry that maps a page of this size. */
  #entry(virtual: bigint, pageSize: number): number {
    let table = physicalOf(SWAPPER_PG_DIR);
    for (const shift of LEVEL_SHIFTS) {
      const entry = table + Number((virtual >> shift) & 0x1ffn) * 8;
      if (1n << shift === BigInt(pageSize)) return entry;
      table = this.#tableAt(entry);
    }
    throw new RangeError(`no pages of ${pageSize} bytes`);
  }

  #tableAt(entry: number): number {
    const value = this.memory.readU64(entry);
    if (value & PRESENT) return Number(value & ADDRESS_BITS);
    const table = this.#nextTable;
    if (table === physicalOf(TABLE_POOL_END)) throw new RangeError('the pool of page tables is too small');
    this.#nextTable += PAGE_SIZE;
    this.memory.writeU64(entry, BigInt(table) | TABLE_FLAGS);
    return table;
  }
}

function buildPageTables(memory: Image, ram: readonly MemoryBlock[]): void {
  const tables = new PageTables(memory);
  for (const { base, length } of ram) tables.mapRange(DIRECT_MAP + BigInt(base), base, length, DATA_FLAGS);
  tables.map(TEXT, TEXT_PHYS, LARGE_PAGE, TEXT_FLAGS);
  tables.map(RODATA, RODATA_PHYS, LARGE_PAGE, RODATA_FLAGS);
  for (let at = 0; at < DATA_LENGTH; at += PAGE_SIZE)
    if (!isStackGuard(at)) tables.map(DATA + BigInt(at), DATA_PHYS + at, PAGE_SIZE, DATA_FLAGS);
  const modulePages = 4;
  for (let page = 0; page < modulePages; page++) {
    const physical = physicalOf(MODULE_PAGES) + (modulePages - 1 - page) * PAGE_SIZE;
    tables.map(MODULES + BigInt(page * PAGE_SIZE), physical, PAGE_SIZE, DATA_FLAGS);
  }
}

/** @param at offset in the kernel's data */
function isStackGuard(at: number): boolean {
  const inStacks = BigInt(at) - (STACKS - DATA);
  return inStacks >= 0n && inStacks % STACK_PITCH < STACK_GUARD;
}

// ---------------------------------------------------------------------------------------------------------------------
// Code and CPUs
// ---------------------------------------------------------------------------------------------------------------------

interface Code {
  /** where the function begins, in the kernel's text */
  readonly at: bigint;
  readonly bytes: readonly number[];
  /** offset of the instruction that RIP is at */
  readonly rip: number;
}

/** One function for each CPU to be in. */
const CPU_CODE: readonly Code[] = [
  {
    at: TEXT + 0x1000n,
    rip: 6,
    // push %rbp; mov %rsp,%rbp; nop; nop; again: inc %rax; nopl (%rax); dec %rcx; jne again; pop %rbp; ret
    bytes: [
      ...[0x55, 0x48, 0x89, 0xe5, 0x90, 0x90],
      ...[0x48, 0xff, 0xc0, 0x0f, 0x1f, 0x00, 0x48, 0xff, 0xc9, 0x75, 0xf5],
      ...[0x5d, 0xc3],
    ],
  },
  {
    at: TEXT + 0x2000n,
    rip: 3,
    // default_idle: nop; sti; hlt; jmp default_idle
    bytes: [0x90, 0xfb, 0xf4, 0xeb, 0xfb],
  },
];

/** int3: what the kernel puts between functions */
const TEXT_PADDING = 0xcc;

function textImage(): Image {
  const image = new Image(TEXT_PHYS, 16 * KIB);
  image.bytes.fill(TEXT_PADDING);
  for (const { at, bytes } of CPU_CODE) image.bytes.set(bytes, physicalOf(at) - TEXT_PHYS);
  return image;
}

function rodataImage(): Image {
  const image = new Image(RODATA_PHYS, PAGE_SIZE);
  image.writeText(LINUX_BANNER, `Linux version ${RELEASE} (vmcore@demo) (gcc 12.2.0) ${VERSION}\n`);
  return image;
}

/** Descriptors of Linux's GDT by index; cpu_entry_area and the like are left out. */
const GDT_ENTRIES: readonly bigint[] = [
  0n,
  0x00cf_9b00_0000_ffffn, // __KERNEL32_CS
  0x00af_9b00_0000_ffffn, // __KERNEL_CS
  0x00cf_9300_0000_ffffn, // __KERNEL_DS
];
const KERNEL_CS: Segment = { selector: 0x10, limit: 0xffff_ffff, flags: 0x00af_9b00, base: 0n };
const KERNEL_DS: Segment = { selector: 0x18, limit: 0xffff_ffff, flags: 0x00cf_9300, base: 0n };
const TSS_SELECTOR = 0x40;
const TSS_LIMIT = 0x67;
const TSS_FLAGS = 0x8b00;
const GDT_LIMIT = 0x7f;
const IDT_LIMIT = 0xfff;

/** PE, MP, ET, NE, WP, AM, PG */
const CR0 = 0x8005_0033n;
/** PSE, PAE, PGE, OSFXSR, OSXMMEXCPT */
const CR4 = 0x6b0n;
/** where a process was that last had a page fault */
const CR2 = 0x7f5d_2c60_1000n;
/** IF, and the bit that is always set */
const RFLAGS = 0x202n;

function writeGdt(kernel: Image): void {
  GDT_ENTRIES.forEach((descriptor, i) => {
    kernel.writeU64(physicalOf(GDT) + 8 * i, descriptor);
  });
}

/** A CPU in the middle of `code`; writes what it has in memory, its own data and its stack. */
function cpuState(kernel: Image, index: number, code: Code): CpuState {
  const cpu = BigInt(index);
  const perCpu = PER_CPU + cpu * 0x1000n;
  // The first word of a CPU's own data points to itself (this_cpu_off and its like).
  kernel.writeU64(physicalOf(perCpu), perCpu);
  const stack = STACKS + cpu * STACK_PITCH + STACK_TOP - 0x40n;
  kernel.writeU64(physicalOf(stack), TEXT + 0x1000n);
  const table = (base: bigint, limit: number): Segment => ({ ...NULL_SEGMENT, base, limit });
  return {
    ...ZERO_REGISTERS,
    rax: 0x0123_4567_89ab_cdefn + cpu,
    rcx: 0x1000n,
    rdi: cpu,
    rsp: stack,
    rbp: stack + 0x20n,
    rip: code.at + BigInt(code.rip),
    rflags: RFLAGS,
    cs: KERNEL_CS,
    ds: NULL_SEGMENT,
    es: NULL_SEGMENT,
    fs: NULL_SEGMENT,
    gs: { ...NULL_SEGMENT, base: perCpu },
    ss: KERNEL_DS,
    longMode: true,
    system: {
      ldt: NULL_SEGMENT,
      tr: { selector: TSS_SELECTOR, limit: TSS_LIMIT, flags: TSS_FLAGS, base: TSS + cpu * 0x100n },
      gdt: table(GDT, GDT_LIMIT),
      idt: table(IDT, IDT_LIMIT),
      cr0: CR0,
      cr1: 0n,
      cr2: CR2,
      cr3: BigInt(physicalOf(SWAPPER_PG_DIR)),
      cr4: CR4,
      kernelGsBase: 0n,
    },
  };
}

const ZERO_REGISTERS = {
  ...{ rax: 0n, rbx: 0n, rcx: 0n, rdx: 0n, rsi: 0n, rdi: 0n, rsp: 0n, rbp: 0n },
  ...{ r8: 0n, r9: 0n, r10: 0n, r11: 0n, r12: 0n, r13: 0n, r14: 0n, r15: 0n },
};

// ---------------------------------------------------------------------------------------------------------------------
// What the kernel says of itself
// ---------------------------------------------------------------------------------------------------------------------

const RELEASE = '6.1.0-vmcore-demo';
const VERSION = '#1 SMP PREEMPT_DYNAMIC Thu Jan 1 00:00:00 UTC 1970';

/** `struct new_utsname`: sysname, nodename, release, version, machine, domainname; 65 bytes each. */
function utsname(): string {
  const fields = ['Linux', 'demo', RELEASE, VERSION, 'x86_64', '(none)'];
  return fields.map((field) => field.padEnd(65, '\0')).join('');
}

/** In the order and form of kernel/crash_core.c and arch/x86/kernel/crash_core_64.c (since 6.9: vmcore_info*.c). */
function vmcoreinfo(): string {
  const symbol = (name: string, address: bigint) => `SYMBOL(${name})=${address.toString(16)}`;
  const lines = [
    `OSRELEASE=${RELEASE}`,
    `BUILD-ID=${'76'.repeat(20)}`,
    `PAGESIZE=${PAGE_SIZE}`,
    symbol('init_uts_ns', INIT_UTS_NS),
    'OFFSET(uts_namespace.name)=0',
    symbol('swapper_pg_dir', SWAPPER_PG_DIR),
    symbol('_stext', TEXT),
    'NUMBER(SECTION_SIZE_BITS)=27',
    'NUMBER(MAX_PHYSMEM_BITS)=46',
    `NUMBER(phys_base)=${PHYS_BASE}`,
    symbol('init_top_pgt', SWAPPER_PG_DIR),
    'NUMBER(pgtable_l5_enabled)=0',
    'KERNELOFFSET=0',
    `NUMBER(KERNEL_IMAGE_SIZE)=${GIB}`,
    'NUMBER(sme_mask)=0',
  ];
  return lines.map((line) => `${line}\n`).join('');
}

// ---------------------------------------------------------------------------------------------------------------------
// The memory
// ---------------------------------------------------------------------------------------------------------------------

/** What a tile of memory is filled with. */
type Filling = 'zeros' | 'text' | 'noise' | 'mixed';

/** Memory is filled tile by tile; large enough to be copied fast, small enough for holes to be worth skipping. */
const TILE_BYTES = 256 * KIB;
/** Prepared contents that tiles take their bytes from, each from another page on. */
const POOL_BYTES = 1 * MIB;
const POOL_STARTS = (POOL_BYTES - TILE_BYTES) / PAGE_SIZE;

/** How many of 16 tiles have which filling: about what a booted guest with free memory looks like. */
const FILLINGS: readonly Filling[] = [
  ...Array<Filling>(10).fill('zeros'),
  ...Array<Filling>(3).fill('text'),
  ...Array<Filling>(1).fill('noise'),
  ...Array<Filling>(2).fill('mixed'),
];

/** Bytes as a function of their offset, with the kernel's images on top. */
class DemoMemory implements Backing {
  readonly name = 'demo:';
  readonly #images: readonly Image[];
  readonly #imageTiles: ReadonlySet<number>;

  constructor(images: readonly Image[]) {
    this.#images = images;
    this.#imageTiles = new Set(images.flatMap(tilesOf));
  }

  readSync(offset: number, into: Uint8Array): void {
    for (let done = 0; done < into.length;) {
      const inTile = (offset + done) % TILE_BYTES;
      const part = into.subarray(done, done + TILE_BYTES - inTile);
      fillFromTile((offset + done - inTile) / TILE_BYTES, inTile, part);
      done += part.length;
    }
    for (const image of this.#images) copyOverlap(image, offset, into);
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.readSync(offset, into);
  }

  nextData(offset: number, end: number): DataRun | null {
    const limit = Math.ceil(end / TILE_BYTES);
    let tile = Math.floor(offset / TILE_BYTES);
    while (tile < limit && !this.#hasData(tile)) tile++;
    if (tile >= limit) return null;
    const start = Math.max(offset, tile * TILE_BYTES);
    while (tile < limit && this.#hasData(tile)) tile++;
    return { start, end: Math.min(end, tile * TILE_BYTES) };
  }

  close(): void {}

  #hasData(tile: number): boolean {
    return fillingOf(tile) !== 'zeros' || this.#imageTiles.has(tile);
  }
}

function tilesOf({ base, length }: MemoryBlock): number[] {
  const first = Math.floor(base / TILE_BYTES);
  const end = Math.ceil((base + length) / TILE_BYTES);
  return Array.from({ length: end - first }, (_, i) => first + i);
}

/** Copies what of `image` lies in the bytes of memory from `offset` on. */
function copyOverlap(image: Image, offset: number, into: Uint8Array): void {
  const from = Math.max(offset, image.base);
  const to = Math.min(offset + into.length, image.base + image.length);
  if (from < to) into.set(image.bytes.subarray(from - image.base, to - image.base), from - offset);
}

function fillFromTile(tile: number, inTile: number, into: Uint8Array): void {
  const filling = fillingOf(tile);
  if (filling === 'zeros') {
    into.fill(0);
    return;
  }
  const start = (scramble(tile) >>> 8) % POOL_STARTS;
  const from = start * PAGE_SIZE + inTile;
  into.set(pools()[filling].subarray(from, from + into.length));
}

function fillingOf(tile: number): Filling {
  return FILLINGS[scramble(tile) & 15]!;
}

/** A 32-bit hash of a small number (the finalizer of MurmurHash3). */
function scramble(value: number): number {
  let hash = Math.imul(value ^ (value >>> 16), 0x85eb_ca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2_ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

type Pools = Readonly<Record<Exclude<Filling, 'zeros'>, Uint8Array>>;
let preparedPools: Pools | undefined;

/** Made once, when a demo guest is first read. */
function pools(): Pools {
  if (!preparedPools) {
    const text = textPool();
    const noise = noisePool();
    preparedPools = { text, noise, mixed: mixedPool(text, noise) };
  }
  return preparedPools;
}

function noisePool(): Uint8Array {
  const words = Uint32Array.from({ length: POOL_BYTES / 4 }, (_, i) => scramble(i + 0x9e37_79b9));
  return new Uint8Array(words.buffer);
}

/** Lines of a kernel log, no two alike. */
function textPool(): Uint8Array {
  const pool = Buffer.alloc(POOL_BYTES, '\n');
  for (let at = 0, line = 1; at < POOL_BYTES; line++) at += pool.write(logLine(line), at, 'latin1');
  return pool;
}

function logLine(line: number): string {
  const value = scramble(line);
  const time = (line * 0.001_337).toFixed(6).padStart(12);
  const device = value % 32;
  return `[${time}] pci 0000:00:${device.toString(16).padStart(2, '0')}.0: BAR ${value & 7}: assigned [mem 0x${value.toString(16).padStart(8, '0')} 64bit]\n`;
}

/** Page by page zeros, text, noise, or a page that is mostly zeros, as slabs and stacks of a kernel are. */
function mixedPool(text: Uint8Array, noise: Uint8Array): Uint8Array {
  const pool = new Uint8Array(POOL_BYTES);
  for (let at = 0; at < POOL_BYTES; at += PAGE_SIZE) {
    const kind = scramble(at) & 3;
    const source = kind === 1 ? text : noise;
    const length = [0, PAGE_SIZE, PAGE_SIZE, 200][kind]!;
    pool.set(source.subarray(at, at + length), at);
  }
  return pool;
}
