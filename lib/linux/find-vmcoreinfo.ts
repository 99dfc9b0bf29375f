/**
 * Finds VMCOREINFO in the memory of a guest that came without it: no `vmcoreinfo` device, or a raw snapshot.
 *
 * Linux keeps it twice, each at the start of a page of its own: the text (`vmcoreinfo_data`, which begins with
 * `OSRELEASE=`) and the ELF note around the text (`vmcoreinfo_note`), since 4.13 (kernel/vmcore_info.c). Copies may be
 * anywhere: in a file in the page cache, and in what another kernel has left in memory that was never cleared, as it is
 * not when a machine reboots. So what is found has to lead to page tables that map themselves, and to a `utsname` of
 * the same release. What an earlier kernel left can pass that too. It fails here: below 1 MiB is what CPUs are started
 * with, made by the kernel that booted last, and there is a page table whose last entry is that of the kernel's own
 * (`trampoline_pgd`, arch/x86/realmode/init.c; 64-bit kernels only: one of 32 bits is taken when it is alone).
 */

import { VmcoreError } from '../model/errors.js';
import { encodeNote, NOTE_HEADER_SIZE, NOTE_NAME_VMCOREINFO } from '../formats/notes.js';
import { decodeUtsname, UTSNAME_SIZE } from '../formats/kdump.js';
import { parseVmcoreinfo, type Vmcoreinfo, vmcoreinfoNote } from '../formats/vmcoreinfo.js';
import type { Guest } from '../model/guest.js';
import {
  blockEnd,
  dataRuns,
  type MemoryBlock,
  type MemoryRegion,
  type PhysicalMemory,
} from '../model/physical-memory.js';
import { PAGE_SIZE } from '../model/stage.js';
import { type KernelMemory, kernelMemory } from './kernel-memory.js';
import { KernelSymbols } from './kernel-symbols.js';
import type { ElfNote } from '../model/note.js';

/** VMCOREINFO as it was found in memory. */
export interface FoundVmcoreinfo {
  /** the note, as a guest carries it */
  readonly note: ElfNote;
  /** guest physical address of the note, or of the text where that was found first; in bytes */
  readonly paddr: number;
}

/** Bytes that are read at once. */
const PIECE_BYTES = 1 << 20;
/** How the text begins. */
const TEXT_START = Buffer.from('OSRELEASE=', 'latin1');
/** How the note begins: n_namesz, and behind n_descsz and n_type the name. */
const NOTE_NAME = Buffer.from(`${NOTE_NAME_VMCOREINFO}\0`, 'latin1');
/** Largest text that is looked at; Linux has one page (VMCOREINFO_BYTES). */
const MAX_TEXT_BYTES = 16 * PAGE_SIZE;
/** Candidates that are looked at closely: some dozens in a page cache full of dumps; more are a hostile guest's. */
const MAX_CANDIDATES = 4096;
/** Offsets of `name` in struct uts_namespace where VMCOREINFO does not say: since 5.11, and before, behind a kref. */
const NAME_OFFSETS = [0n, 4n] as const;
/** Below it is the trampoline: real mode reaches no further. */
const REAL_MODE_END = 1 << 20;
/** The kernel's image is in the last 512 GiB: the last entry of the top table. */
const LAST_ENTRY = PAGE_SIZE - 8;

/**
 * Looks for the VMCOREINFO of the Linux kernel that runs on a guest. Holes of sparse memory are not read.
 * @returns null when there is none that holds together, or the guest is a stream
 * @throws VmcoreError BAD_INPUT when there are several, of kernels of which none can be told to be the one that runs;
 *         READ, TRUNCATED, ABORTED
 */
export async function findVmcoreinfoInMemory(guest: Guest, signal?: AbortSignal): Promise<FoundVmcoreinfo | null> {
  const { memory } = guest;
  if (memory === null) return null;
  const others = new Map<string, FoundVmcoreinfo>();
  let candidates = 0;
  for await (const paddr of candidateAddresses(memory, signal)) {
    if (++candidates > MAX_CANDIDATES) break;
    const found = readCandidate(memory, paddr);
    const kernel = found && kernelOf(memory, found.note);
    if (!kernel) continue;
    if (isRunning(memory, kernel)) return found;
    const text = Buffer.from(found.note.desc).toString('latin1');
    if (!others.has(text)) others.set(text, found);
  }
  return onlyOne([...others.values()], guest.name);
}

/** The one that is left when none can be told to run: a kernel may start CPUs in another way. */
function onlyOne(found: readonly FoundVmcoreinfo[], guest: string): FoundVmcoreinfo | null {
  if (found.length <= 1) return found[0] ?? null;
  const places = found.map(({ paddr }) => `0x${paddr.toString(16)}`).join(', ');
  throw new VmcoreError(
    'BAD_INPUT',
    `${guest}: memory has VMCOREINFO of ${found.length} kernels (at ${places}), and it cannot be told which runs; give the right one with --vmcoreinfo`,
  );
}

/** Addresses of pages that begin as the text or the note does. */
async function* candidateAddresses(memory: PhysicalMemory, signal?: AbortSignal): AsyncGenerator<number, undefined> {
  const buffer = Buffer.alloc(PIECE_BYTES);
  for (const region of memory.regions)
    for (const { base, length } of dataPieces(region)) {
      if (signal?.aborted) throw new VmcoreError('ABORTED', 'the search for VMCOREINFO was aborted');
      const bytes = buffer.subarray(0, length);
      await region.backing!.read(region.offset + (base - region.base), bytes);
      for (let at = 0; at + TEXT_START.length <= bytes.length; at += PAGE_SIZE)
        if (beginsText(bytes, at) || beginsNote(bytes, at)) yield base + at;
    }
}

/** The data of a region, without its holes, in pieces from page boundaries: one that ends within a page is the last. */
function* dataPieces(region: MemoryRegion): Generator<MemoryBlock, undefined> {
  const first = Math.ceil(region.base / PAGE_SIZE) * PAGE_SIZE;
  for (const { start, end } of dataRuns(region, first, blockEnd(region)))
    for (let base = start; base < end; base += PIECE_BYTES) yield { base, length: Math.min(PIECE_BYTES, end - base) };
}

function beginsText(bytes: Buffer, at: number): boolean {
  return (
    bytes[at] === TEXT_START[0] && bytes.compare(TEXT_START, 0, TEXT_START.length, at, at + TEXT_START.length) === 0
  );
}

function beginsNote(bytes: Buffer, at: number): boolean {
  if (bytes[at] !== NOTE_NAME.length || at + NOTE_HEADER_SIZE + NOTE_NAME.length > bytes.length) return false;
  const name = at + NOTE_HEADER_SIZE;
  return (
    bytes.readUInt32LE(at) === NOTE_NAME.length &&
    bytes.compare(NOTE_NAME, 0, NOTE_NAME.length, name, name + NOTE_NAME.length) === 0
  );
}

/** The note at an address, or one made of the text there; null when it has no end. */
function readCandidate(memory: PhysicalMemory, paddr: number): FoundVmcoreinfo | null {
  const bytes = Buffer.alloc(MAX_TEXT_BYTES);
  memory.read(paddr, bytes);
  if (beginsText(bytes, 0)) {
    const end = bytes.indexOf(0);
    return end < 0 ? null : { note: encodeNote(NOTE_NAME_VMCOREINFO, 0, bytes.subarray(0, end)), paddr };
  }
  const size = NOTE_HEADER_SIZE + NOTE_NAME.length + 1 + bytes.readUInt32LE(4);
  return size > bytes.length ? null : { note: vmcoreinfoNote(bytes.subarray(0, size)), paddr };
}

/** The memory of the kernel that a note is of; null when it is of none that is there. */
function kernelOf(memory: PhysicalMemory, note: ElfNote): KernelMemory | null {
  const info = parseVmcoreinfo(note.desc);
  if (info.get('PAGESIZE') !== `${PAGE_SIZE}`) return null;
  try {
    const kernel = kernelMemory(memory, new KernelSymbols(info, ''));
    return isRelease(kernel, info) ? kernel : null;
  } catch (error) {
    if (error instanceof VmcoreError && (error.code === 'BAD_INPUT' || error.code === 'UNSUPPORTED')) return null;
    throw error;
  }
}

/** Whether the kernel's utsname is that of the text. */
function isRelease(kernel: KernelMemory, info: Vmcoreinfo): boolean {
  const symbol = info.symbol('init_uts_ns');
  const release = info.get('OSRELEASE');
  if (symbol === null || release === null) return false;
  const said = info.offset('uts_namespace.name');
  return (said === null ? NAME_OFFSETS : [said]).some((offset) => {
    const bytes = kernel.bytes(symbol + offset, UTSNAME_SIZE);
    const utsname = bytes && decodeUtsname(bytes);
    return utsname !== null && utsname.sysname === 'Linux' && utsname.release === release;
  });
}

/** Whether CPUs are started with tables that end as the kernel's do. */
function isRunning(memory: PhysicalMemory, kernel: KernelMemory): boolean {
  const own = new Uint8Array(8);
  memory.read(kernel.root + LAST_ENTRY, own);
  const low = Buffer.alloc(REAL_MODE_END);
  memory.read(0, low);
  for (let page = 0; page < REAL_MODE_END; page += PAGE_SIZE)
    if (low.compare(own, 0, own.length, page + LAST_ENTRY, page + PAGE_SIZE) === 0) return true;
  return false;
}
