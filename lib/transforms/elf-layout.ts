/**
 * ELF layout: everything of an ELF vmcore that is known before the first page moves.
 *
 *   ELF header | program headers: PT_NOTE, PT_LOADs | section header 0, only with PN_XNUM | notes | memory
 *
 * All of it is QEMU's (dump/dump.c) but for two things. The program headers stand right behind the ELF header, because
 * makedumpfile reads them there whatever e_phoff says; QEMU since 7.2 puts section headers first. And memory begins at
 * a page boundary of the file, so that zero pages can be holes of a sparse file.
 */

import {
  ELF_SIZES,
  ELFCLASS32,
  ELFCLASS64,
  type ElfClass,
  EM_386,
  EM_X86_64,
  encodeElfHeader,
  encodePhnumSection,
  encodeProgramHeaders,
  NOT_STORED,
  PN_XNUM,
  type ProgramHeader,
  PT_LOAD,
  PT_NOTE,
} from '../formats/elf.js';
import { align4, type ElfNote, guestNotes } from '../formats/notes.js';
import type { Guest } from '../guest.js';
import { blockEnd, lastIndexAtOrBelow, type MemoryBlock } from '../physical-memory.js';
import { PAGE_SIZE } from '../stage.js';
import type { Mapping } from './mapping-resolver.js';
import { blocksInRange, intersect } from './range-filter.js';

/** A run of guest memory and where it stands in the file. */
export interface StoredBlock extends MemoryBlock {
  /** file offset of the first byte */
  readonly offset: number;
}

/** The plan of an ELF vmcore. */
export interface ElfLayout {
  readonly format: 'elf';
  readonly class: ElfClass;
  /** e_machine */
  readonly machine: number;
  /** PT_NOTE, then the PT_LOADs */
  readonly programHeaders: readonly ProgramHeader[];
  readonly notes: readonly ElfNote[];
  /** the memory, in the order of the file */
  readonly blocks: readonly StoredBlock[];
  /** file offset of the first byte of memory */
  readonly memoryOffset: number;
  /** bytes of guest memory that the file holds */
  readonly memoryBytes: number;
  /** size of the file in bytes */
  readonly size: number;
}

/** What decides an ELF layout beside the guest. */
export interface ElfLayoutOptions {
  /** only this range of guest physical memory, in bytes */
  readonly range?: MemoryBlock | undefined;
  /** what the page tables map (paging); without it there is one PT_LOAD a block */
  readonly mappings?: readonly Mapping[] | undefined;
}

/** EFER.LMA of the first CPU, which decides class, machine and notes; a guest without CPUs goes by its architecture. */
export function guestLongMode(guest: Pick<Guest, 'arch' | 'cpus'>): boolean {
  return guest.cpus[0]?.longMode ?? guest.arch === 'x86_64';
}

/** QEMU's rule (cpu_get_dump_info): 64-bit in long mode, or when any memory ends above what 32 bits can say. */
export function elfClass(longMode: boolean, blocks: readonly MemoryBlock[]): ElfClass {
  return longMode || blocks.some((block) => blockEnd(block) > 0xffff_ffff) ? ELFCLASS64 : ELFCLASS32;
}

/**
 * Plans an ELF vmcore.
 * @throws VmcoreError NO_MEMORY when no memory is in the range
 */
export function planElf(
  guest: Pick<Guest, 'arch' | 'cpus' | 'notes' | 'blocks'>,
  options: ElfLayoutOptions = {},
): ElfLayout {
  const longMode = guestLongMode(guest);
  const cls = elfClass(longMode, guest.blocks);
  const sizes = ELF_SIZES[cls];
  const parts = blocksInRange(guest.blocks, options.range);
  const loads = clipMappings(options.mappings ?? guest.blocks.map(physicalMapping), options.range);
  const notes = guestNotes(guest, longMode);
  const noteBytes = notes.reduce((sum, note) => sum + align4(note.raw.length), 0);

  const phnum = 1 + loads.length;
  const noteOffset = sizes.ehdr + phnum * sizes.phdr + (phnum >= PN_XNUM ? sizes.shdr : 0);
  const memoryOffset = Math.ceil((noteOffset + noteBytes) / PAGE_SIZE) * PAGE_SIZE;
  const blocks = placeBlocks(parts, memoryOffset);
  const memoryBytes = parts.reduce((sum, part) => sum + part.length, 0);

  const noteHeader: ProgramHeader = {
    type: PT_NOTE,
    flags: 0,
    offset: noteOffset,
    vaddr: 0n,
    paddr: 0,
    filesz: noteBytes,
    memsz: noteBytes,
    align: 0,
  };
  return {
    format: 'elf',
    class: cls,
    machine: longMode ? EM_X86_64 : EM_386,
    programHeaders: [noteHeader, ...loads.map((load) => loadHeader(load, blocks))],
    notes,
    blocks,
    memoryOffset,
    memoryBytes,
    size: memoryOffset + memoryBytes,
  };
}

/** Without paging QEMU lists each block at virtual address 0, which then is written as its physical address. */
function physicalMapping(block: MemoryBlock): Mapping {
  return { vaddr: 0n, paddr: block.base, length: block.length };
}

/** Mappings cut to a range (QEMU: memory_mapping_filter); a virtual address of 0 stays 0, whatever is cut off. */
function clipMappings(mappings: readonly Mapping[], range: MemoryBlock | undefined): readonly Mapping[] {
  if (!range) return mappings;
  return mappings.flatMap(({ vaddr, paddr, length }) => {
    const part = intersect({ base: paddr, length }, range);
    if (!part) return [];
    return { vaddr: vaddr && vaddr + BigInt(part.base - paddr), paddr: part.base, length: part.length };
  });
}

function placeBlocks(parts: readonly MemoryBlock[], memoryOffset: number): StoredBlock[] {
  let offset = memoryOffset;
  return parts.map((part) => {
    const placed = { ...part, offset };
    offset += part.length;
    return placed;
  });
}

/**
 * The PT_LOAD of a mapping (QEMU: get_offset_range). What of it lies behind the end of its block is not in the file:
 * p_filesz stops there. A mapping that begins outside the dumped memory is not stored at all.
 */
function loadHeader({ vaddr, paddr, length }: Mapping, blocks: readonly StoredBlock[]): ProgramHeader {
  const block = blocks[lastIndexAtOrBelow(blocks, paddr)];
  const stored = block && paddr < blockEnd(block) ? block : undefined;
  return {
    type: PT_LOAD,
    flags: 0,
    offset: stored ? stored.offset + (paddr - stored.base) : NOT_STORED,
    vaddr: vaddr || BigInt(paddr),
    paddr,
    filesz: stored ? Math.min(length, blockEnd(stored) - paddr) : 0,
    memsz: length,
    align: 0,
  };
}

/** Everything in front of the memory, as bytes. */
export function encodeElfHead(layout: ElfLayout): Uint8Array {
  const phnum = layout.programHeaders.length;
  const { ehdr, phdr } = ELF_SIZES[layout.class];
  const extended = phnum >= PN_XNUM;
  const header = encodeElfHeader({
    class: layout.class,
    machine: layout.machine,
    phoff: ehdr,
    phnum: Math.min(phnum, PN_XNUM),
    shoff: extended ? ehdr + phnum * phdr : 0,
    shnum: extended ? 1 : 0,
  });
  const head = new Uint8Array(layout.memoryOffset);
  head.set(header);
  head.set(encodeProgramHeaders(layout.class, layout.programHeaders), ehdr);
  if (extended) head.set(encodePhnumSection(layout.class, phnum), ehdr + phnum * phdr);
  let at = layout.programHeaders[0]!.offset;
  for (const note of layout.notes) {
    head.set(note.raw, at);
    at += align4(note.raw.length);
  }
  return head;
}
