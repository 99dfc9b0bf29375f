/**
 * Finds the kernel of a Windows guest whose driver has left no dump header, and derives one.
 *
 * KDBG is looked for in all of the guest's memory: by its tag, its size, and a kernel address for KernBase. Where it is
 * virtually, no byte of it says, but two things lead there: its place in a list (what it points to points back), and
 * the kernel's image, which it is part of. Both need page tables: those of the block that processors start from (in low
 * memory, 64 bit only), else those of each CPU; a CPU in a process may have tables that lack the kernel (KVA shadowing).
 * A candidate counts when its virtual address translates to where it was found.
 */

import { VmcoreError } from '../model/errors.js';
import { KDBG, KDBG_MAX_SIZE, KDBG_MIN_SIZE, KDBG_TAG } from './kdbg.js';
import {
  DUMP_TYPE_FULL,
  decodeWinDmpHeader,
  emptyWinDmpHeader,
  LIVE_SYSTEM_DUMP,
  setWinDmpFields,
  setWinDmpRuns,
  WIN_DMP_MACHINE,
  WIN_DMP_MAX_RUNS,
  type WinDmpBits,
  type WinDmpRun,
} from '../formats/win-dmp.js';
import type { CpuState, Guest } from '../model/guest.js';
import { blockEnd, type MemoryBlock, type PhysicalMemory } from '../model/physical-memory.js';
import { SlabPool } from '../model/slab-pool.js';
import { chunkBytes, PAGE_SIZE, releaseChunk } from '../model/stage.js';
import { pagingMode } from '../paging/mapping-resolver.js';
import { VirtualMemory } from '../paging/virtual-memory.js';
import { hasWinDmpHeader, winDmpHeaderOf } from './header-note.js';
import { kernelCpu } from './kernel-cpu.js';
import { requireMemory } from './random-access.js';

/** What a search takes. */
export interface FindKdbgOptions {
  readonly signal?: AbortSignal | undefined;
  /** told which candidates there were when there was more than one, and what could not be found out */
  readonly onWarning?: ((text: string) => void) | undefined;
}

/** A block that looks like KDBG. */
interface Candidate {
  readonly bits: WinDmpBits;
  /** guest physical address of its first byte */
  readonly paddr: number;
  readonly KernBase: bigint;
}

/** KDBG, and how to read what it leads to. */
interface Found extends Candidate {
  /** virtual address of KDBG */
  readonly kdbg: bigint;
  readonly virtual: VirtualMemory;
  readonly DirectoryTableBase: bigint;
}

/** Candidates that are looked at: memory may be full of tags by chance, or by malice. */
const MAX_CANDIDATES = 1024;

/** Slabs of memory that the scan has in flight. */
const SCAN_SLABS = 4;

/** Bytes from KDBG's beginning to where the scan has seen enough of it: the end of KernBase. */
const SEEN = KDBG.KernBase + 8;

/** A kernel's image is at most so long: KDBG is looked for in it page by page. */
const MAX_IMAGE_BYTES = 32 << 20;

/** Kernels, times page tables, whose images are looked through. */
const MAX_IMAGES = 64;

/** Addresses where kernels begin (64 bit: canonical, upper half; 32 bit: 2 GiB, at times 3). */
const KERNEL_START = { 64: 0xffff_8000_0000_0000n, 32: 0x8000_0000n } as const;

/** Where PROCESSOR_START_BLOCKs are, in bytes, and offsets in one: a jump, LmTarget, Cr3 (MemProcFS, vmmwininit.c). */
const LOW_MEMORY = 1 << 20;
const START_BLOCK = { Jmp: 0, LmTarget: 0x70, Cr3: 0xa0 } as const;
/** The jump's bytes, but for its distance; bits of LmTarget that are set, or not; bits of Cr3 that are not */
const START_JMP = { mask: 0xffff_ffff_ffff_00ffn, value: 0x1_0006_00e9n } as const;
const START_TARGET = { mask: 0xffff_f800_0000_0003n, value: 0xffff_f800_0000_0000n } as const;
const START_CR3_ZERO = 0xffff_ff00_0000_0fffn;

/** Bits of CR3 that are no address: tables are aligned to a page, those that begin with four entries (PAE) to 32 bytes */
const CR3_FLAGS = 0xfffn;
const CR3_FLAGS_PAE = 0x1fn;

/** KUSER_SHARED_DATA: where it is, and offsets in it (ntddk.h). */
const SHARED_USER_DATA = { 64: 0xffff_f780_0000_0000n, 32: 0xffdf_0000n } as const;
const KUSD = { SystemTime: 0x14, NtBuildNumber: 0x260, NtProductType: 0x264, SuiteMask: 0x2d0 } as const;
/** NtBuildNumber without the bits that tell free from checked builds */
const BUILD_NUMBER = 0xffffn;
/** MajorVersion of a header, and of what DbgKd tells: a free build */
const FREE_BUILD = 15n;

/** More processors than Windows has (2048). */
const MAX_PROCESSORS = 4096;

/**
 * The dump header to go by: that of the guest's driver, or one that is derived.
 * @param options `findKdbg`: whether to search where there is none, true by default
 * @throws VmcoreError as winDmpHeaderOf and findKdbg
 */
export async function windowsHeader(
  guest: Guest,
  { findKdbg: mayFind = true }: { readonly findKdbg?: boolean | undefined },
  options: FindKdbgOptions = {},
): Promise<Uint8Array> {
  requireMemory(guest);
  return hasWinDmpHeader(guest) || !mayFind ? winDmpHeaderOf(guest) : findKdbg(guest, options);
}

/**
 * Finds KDBG and derives a dump header from it.
 * @returns a header as the guest's driver would have left it, for planWinDmp
 * @throws VmcoreError UNSUPPORTED when the guest's memory is a stream; BAD_INPUT, with what was looked for, when there is
 *   no KDBG or no page tables for it; READ; ABORTED
 */
export async function findKdbg(guest: Guest, options: FindKdbgOptions = {}): Promise<Uint8Array> {
  const memory = requireMemory(guest);
  const candidates = await scan(guest, options.signal);
  const images = new ImagePages();
  const found = candidates.flatMap((candidate) => locate(candidate, memory, guest.cpus, images) ?? []);
  const [first] = found;
  if (!first) throw notFound(guest, candidates);
  if (candidates.length > 1) options.onWarning?.(chosenText(first, found, candidates));
  return deriveHeader(first, guest, memory);
}

function hex(value: bigint | number): string {
  return `0x${value.toString(16)}`;
}

function chosenText(chosen: Found, found: readonly Found[], candidates: readonly Candidate[]): string {
  const which =
    found.length > 1 ? `the first of ${found.length} that translate to themselves` : 'which translates to itself';
  return `${candidates.length} blocks look like KDBG; taken is that at ${hex(chosen.kdbg)} (physical ${hex(chosen.paddr)}), ${which}`;
}

function notFound({ name }: Guest, candidates: readonly Candidate[]): VmcoreError {
  const looked =
    candidates.length === 0
      ? `no KDBG block (tag '${KDBG_TAG}', its size, a kernel address for KernBase) is in the memory of ${name}: it is no Windows guest, or the block is encoded`
      : `${candidates.length === 1 ? 'a block looks' : `${candidates.length} blocks look`} like KDBG in the memory of ${name} (the first at physical ${hex(candidates[0]!.paddr)}), but neither the processor start block nor the CR3 of a CPU has page tables that map it there`;
  return new VmcoreError(
    'BAD_INPUT',
    `win-dump: there is no dump header in a VMCOREINFO note, and ${looked}; have virtio-win's fwcfg driver in the guest, and QEMU's vmcoreinfo device`,
  );
}

// ---------------------------------------------------------------------------------------------------------------------
// The scan
// ---------------------------------------------------------------------------------------------------------------------

/** Blocks that look like KDBG, in the order of their physical addresses. */
async function scan(guest: Guest, signal: AbortSignal | undefined): Promise<Candidate[]> {
  const candidates: Candidate[] = [];
  const tag = Buffer.from(KDBG_TAG, 'latin1');
  for await (const chunk of guest.chunks({ pool: new SlabPool(SCAN_SLABS) })) {
    if (signal?.aborted) throw new VmcoreError('ABORTED', 'the dump was aborted');
    const data = chunkBytes(chunk);
    if (data) {
      const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
      for (
        let at = bytes.indexOf(tag);
        at >= 0 && candidates.length < MAX_CANDIDATES;
        at = bytes.indexOf(tag, at + 1)
      ) {
        const candidate = candidateAt(guest.memory!, chunk.paddr + at - KDBG.OwnerTag);
        if (candidate) candidates.push(candidate);
      }
    }
    releaseChunk(chunk);
  }
  return candidates;
}

/** What stands at `paddr`, if it looks like KDBG. Only what is in one physical page is looked at. */
function candidateAt(memory: PhysicalMemory, paddr: number): Candidate | null {
  if (paddr < 0 || paddr % 8 !== 0 || (paddr % PAGE_SIZE) + SEEN > PAGE_SIZE) return null;
  const block = Buffer.alloc(SEEN);
  if (!memory.read(paddr, block)) return null;
  const size = block.readUInt32LE(KDBG.Size);
  if (size < KDBG_MIN_SIZE || size > KDBG_MAX_SIZE) return null;
  const KernBase = block.readBigUInt64LE(KDBG.KernBase);
  const bits = kernelBits(KernBase, block);
  return bits && { bits, paddr, KernBase: BigInt.asUintN(bits, KernBase) };
}

/** Whose kernel it is by an address of it; null when it is no page of a kernel's. */
function kernelBits(address: bigint, block: Buffer): WinDmpBits | null {
  if (address % BigInt(PAGE_SIZE) !== 0n) return null;
  // A list of 32 bits takes the first half of its slot only. Its addresses are in their slots sign-extended, or not.
  const narrow = block.readBigUInt64LE(KDBG.List + 8) === 0n && BigInt.asUintN(32, address) >= KERNEL_START[32];
  if (narrow) return 32;
  return address >= KERNEL_START[64] ? 64 : null;
}

// ---------------------------------------------------------------------------------------------------------------------
// Page tables, and the virtual address
// ---------------------------------------------------------------------------------------------------------------------

/** The first page tables that map a candidate where it was found. */
function locate(
  candidate: Candidate,
  memory: PhysicalMemory,
  cpus: readonly CpuState[],
  images: ImagePages,
): Found | null {
  for (const { cpu, cr3 } of tables(candidate.bits, memory, cpus)) {
    const virtual = new VirtualMemory(memory, cpu, candidate.bits);
    const kdbg = ownAddress(candidate, virtual, images);
    if (kdbg !== null) return { ...candidate, kdbg, virtual, DirectoryTableBase: cr3 };
  }
  return null;
}

function* tables(
  bits: WinDmpBits,
  memory: PhysicalMemory,
  cpus: readonly CpuState[],
): Generator<{ cpu: CpuState; cr3: bigint }> {
  const empty = decodeWinDmpHeader(emptyWinDmpHeader(bits), bits);
  const withCr3 = (value: bigint) => {
    // The low bits of CR3 are flags, or a PCID.
    const cr3 = value & ~(cpus[0]?.system && pagingMode(cpus[0]) === 'PAE' ? CR3_FLAGS_PAE : CR3_FLAGS);
    return { cpu: kernelCpu(cpus[0], { ...empty, DirectoryTableBase: cr3 }), cr3 };
  };
  if (bits === 64) for (const cr3 of startBlocks(memory)) yield withCr3(cr3);
  for (const cpu of cpus) if (cpu.system && pagingMode(cpu) !== 'none') yield withCr3(cpu.system.cr3);
}

/** Cr3 of the PROCESSOR_START_BLOCKs in low memory. */
function* startBlocks(memory: PhysicalMemory): Generator<bigint> {
  const page = Buffer.alloc(PAGE_SIZE);
  for (let paddr = 0; paddr < LOW_MEMORY; paddr += PAGE_SIZE) {
    if (!memory.read(paddr, page)) continue;
    const word = (at: number) => page.readBigUInt64LE(at);
    const cr3 = word(START_BLOCK.Cr3);
    const isBlock =
      (word(START_BLOCK.Jmp) & START_JMP.mask) === START_JMP.value &&
      (word(START_BLOCK.LmTarget) & START_TARGET.mask) === START_TARGET.value &&
      (cr3 & START_CR3_ZERO) === 0n &&
      cr3 !== 0n;
    if (isBlock) yield cr3;
  }
}

/** The virtual address of a candidate: by its list, else by the kernel's image. Null when it translates elsewhere. */
function ownAddress(candidate: Candidate, virtual: VirtualMemory, images: ImagePages): bigint | null {
  const isOwn = (address: bigint) => virtual.pieces(address, 1)?.[0]?.paddr === candidate.paddr;
  const { paddr, bits, KernBase } = candidate;
  const links = Buffer.alloc(16);
  virtual.memory.read(paddr + KDBG.List, links);
  const flink = bits === 64 ? links.readBigUInt64LE(0) : BigInt(links.readUInt32LE(0));
  // Flink.Blink, with the pointer size between them.
  const back = virtual.pointer(flink + BigInt(bits / 8));
  if (back !== null && isOwn(back)) return back;
  const page = images.of(virtual, KernBase).get(paddr - (paddr % PAGE_SIZE));
  return page === undefined ? null : page + BigInt(paddr % PAGE_SIZE);
}

/** The pages of kernels' images by their physical addresses; looked up once for each kernel and its tables. */
class ImagePages {
  readonly #known = new Map<string, ReadonlyMap<number, bigint>>();

  /** Empty when too many kernels have been asked for: only a hostile guest has them. */
  of(virtual: VirtualMemory, KernBase: bigint): ReadonlyMap<number, bigint> {
    const key = `${virtual.cpu.system?.cr3} ${KernBase}`;
    const pages = this.#known.get(key) ?? (this.#known.size < MAX_IMAGES ? imagePages(virtual, KernBase) : new Map());
    this.#known.set(key, pages);
    return pages;
  }
}

function imagePages(virtual: VirtualMemory, KernBase: bigint): Map<number, bigint> {
  const pages = new Map<number, bigint>();
  for (let at = 0; at < MAX_IMAGE_BYTES; at += PAGE_SIZE) {
    const address = BigInt.asUintN(virtual.bits, KernBase + BigInt(at));
    const paddr = virtual.pieces(address, 1)?.[0]?.paddr;
    // Of a page that is mapped twice the first address.
    if (paddr !== undefined && !pages.has(paddr)) pages.set(paddr, address);
  }
  return pages;
}

// ---------------------------------------------------------------------------------------------------------------------
// The header
// ---------------------------------------------------------------------------------------------------------------------

function deriveHeader(found: Found, guest: Guest, memory: PhysicalMemory): Uint8Array {
  const { bits, kdbg, virtual, DirectoryTableBase } = found;
  const header = emptyWinDmpHeader(bits);
  const member = (offset: number) => virtual.pointer(kdbg + BigInt(offset)) ?? 0n;
  const shared = (offset: number, size: number) => virtual.number(SHARED_USER_DATA[bits] + BigInt(offset), size) ?? 0n;
  setWinDmpFields(header, bits, {
    MajorVersion: FREE_BUILD,
    MinorVersion: shared(KUSD.NtBuildNumber, 4) & BUILD_NUMBER || buildOfLab(virtual, member(KDBG.NtBuildLab)),
    DirectoryTableBase,
    PsLoadedModuleList: member(KDBG.PsLoadedModuleList),
    PsActiveProcessHead: member(KDBG.PsActiveProcessHead),
    MachineImageType: BigInt(WIN_DMP_MACHINE[bits]),
    NumberProcessors: BigInt(countProcessors(virtual, member(KDBG.KiProcessorBlock)) || guest.cpus.length),
    BugcheckCode: BigInt(LIVE_SYSTEM_DUMP),
    PaeEnabled: bits === 32 && pagingMode(virtual.cpu) === 'PAE' ? 1n : 0n,
    KdDebuggerDataBlock: kdbg,
    DumpType: BigInt(DUMP_TYPE_FULL),
    Comment: 'vmcore: header derived from KDBG',
    SystemTime: shared(KUSD.SystemTime, 8),
    ProductType: shared(KUSD.NtProductType, 4),
    SuiteMask: shared(KUSD.SuiteMask, 4),
  });
  setWinDmpRuns(header, bits, memoryRuns(virtual, member(KDBG.MmPhysicalMemoryBlock), memory));
  return header;
}

/** The build number that NtBuildLab begins with: `19041.1.amd64fre…`. */
function buildOfLab(virtual: VirtualMemory, address: bigint): bigint {
  const text = Buffer.from(virtual.read(address, 8) ?? []).toString('latin1');
  return BigInt(/^\d{1,5}(?=\.)/.exec(text)?.[0] ?? 0);
}

/** KiProcessorBlock has a pointer for each processor, and then none. */
function countProcessors(virtual: VirtualMemory, block: bigint): number {
  for (let i = 0; i < MAX_PROCESSORS; i++) {
    const prcb = virtual.pointer(block + BigInt((i * virtual.bits) / 8));
    if (prcb === null || prcb < KERNEL_START[virtual.bits]) return i;
  }
  return MAX_PROCESSORS;
}

/** The runs that the kernel itself knows of, where they make sense; else the guest's memory blocks. */
function memoryRuns(virtual: VirtualMemory, variable: bigint, memory: PhysicalMemory): WinDmpRun[] {
  const known = kernelRuns(virtual, variable);
  return known.length > 0 && known.every((run) => memory.has(Number(run.BasePage) * PAGE_SIZE))
    ? known
    : blockRuns(memory.regions, WIN_DMP_MAX_RUNS[virtual.bits]);
}

/** PHYSICAL_MEMORY_DESCRIPTOR: NumberOfRuns (u32), NumberOfPages, and the runs, of pointer-wide numbers. */
function kernelRuns(virtual: VirtualMemory, variable: bigint): WinDmpRun[] {
  const width = BigInt(virtual.bits / 8);
  const descriptor = virtual.pointer(variable);
  const count = descriptor === null ? null : virtual.number(descriptor, 4);
  if (descriptor === null || count === null || count > WIN_DMP_MAX_RUNS[virtual.bits]) return [];
  const runs = Array.from({ length: Number(count) }, (_, i) => {
    const at = descriptor + 2n * width * BigInt(i + 1);
    return { BasePage: virtual.pointer(at) ?? -1n, PageCount: virtual.pointer(at + width) ?? 0n };
  });
  return runs.every(({ BasePage, PageCount }) => BasePage >= 0n && PageCount > 0n && BasePage + PageCount < 2n ** 40n)
    ? runs
    : [];
}

/** Blocks as runs of whole pages; where there are more than fit, those that are nearest each other become one. */
function blockRuns(blocks: readonly MemoryBlock[], most: number): WinDmpRun[] {
  const runs: { first: number; end: number }[] = [];
  for (const block of blocks) {
    const [first, end] = [Math.floor(block.base / PAGE_SIZE), Math.ceil(blockEnd(block) / PAGE_SIZE)];
    const last = runs.at(-1);
    if (last && first <= last.end) last.end = end;
    else runs.push({ first, end });
  }
  // The widest gaps stay; of those that are alike, the later ones.
  const gaps = runs.slice(1).map(({ first }, i) => ({ before: i + 1, width: first - runs[i]!.end }));
  const widest = gaps.sort((a, b) => b.width - a.width || b.before - a.before).slice(0, most - 1);
  const firsts = [0, ...widest.map(({ before }) => before).sort((a, b) => a - b)];
  return firsts.map((index, i) => {
    const { first } = runs[index]!;
    const { end } = runs[(firsts[i + 1] ?? runs.length) - 1]!;
    return { BasePage: BigInt(first), PageCount: BigInt(end - first) };
  });
}
