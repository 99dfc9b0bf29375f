/**
 * ELF layout: everything of an ELF vmcore that is known before the first page moves.
 *
 *   ELF header | program headers: PT_NOTE, PT_LOADs | section header 0, only with PN_XNUM | notes | memory
 *
 * All of it is QEMU's (dump/dump.c) but for two things. The program headers stand right behind the ELF header, because
 * makedumpfile reads them there whatever e_phoff says; QEMU since 7.2 puts section headers first. And memory begins at
 * a page boundary of the file, so that zero pages can be holes of a sparse file.
 *
 * Pages that are left out end segments where those of makedumpfile -E end (write_elf_pages_cyclic): a long run of them is
 * in no segment's bytes. It has a PT_LOAD of its own, of p_memsz bytes of memory and none in the file; makedumpfile adds
 * it to p_memsz of the segment before, and volatility3 drops such a segment with all that it has. In short runs they are
 * zeros, which makedumpfile leaves as they are. Pages of zeros are no reason to end a segment: to know them takes a look
 * at all memory, and a sparse file has no blocks for them anyway.
 */

import { VmcoreError } from '../model/errors.js';
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
import { align4, guestNotes } from '../formats/notes.js';
import { findVmcoreinfo, type Vmcoreinfo } from '../formats/vmcoreinfo.js';
import type { Guest } from '../model/guest.js';
import type { PageExclusion } from '../model/page-exclusion.js';
import { blockEnd, lastIndexAtOrBelow, type MemoryBlock } from '../model/physical-memory.js';
import { PAGE_SIZE } from '../model/stage.js';
import type { Mapping } from '../paging/mapping-resolver.js';
import type { ElfNote } from '../model/note.js';
import { blocksInRange, intersect } from '../model/range.js';

/** Pages left out in a row from which on they end a segment (makedumpfile.h: PFN_EXCLUDED). */
const SMALLEST_GAP = 256;

/** Program headers of a vmcore that leaves pages out: 14 MiB of them, as many as are read. */
const MAX_PROGRAM_HEADERS = 2 ** 18;

/** A run of guest memory and where it stands in the file. */
export interface StoredBlock extends MemoryBlock {
  /** file offset of the first byte */
  readonly offset: number;
  /** bytes of it that are in the file: all of them, or none where it is left out */
  readonly stored: number;
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
  /** the memory, in the order of the file; sorted, without overlap */
  readonly blocks: readonly StoredBlock[];
  /** file offset of the first byte of memory */
  readonly memoryOffset: number;
  /** bytes of guest memory that the file is of */
  readonly memoryBytes: number;
  /** bytes of them that the file holds */
  readonly storedBytes: number;
  /** size of the file in bytes */
  readonly size: number;
}

/** What decides an ELF layout beside the guest. */
export interface ElfLayoutOptions {
  /** only this range of guest physical memory, in bytes */
  readonly range?: MemoryBlock | undefined;
  /** what the page tables map (paging); without it there is one PT_LOAD a block */
  readonly mappings?: readonly Mapping[] | undefined;
  /** pages that are to be left out */
  readonly exclusion?: PageExclusion | undefined;
}

/**
 * EFER.LMA of the first CPU, which decides class, machine and notes. A guest without CPUs goes by the kernel that
 * VMCOREINFO is of, and without that by its architecture.
 */
export function guestLongMode(guest: Pick<Guest, 'arch' | 'cpus' | 'notes'>): boolean {
  const cpu = guest.cpus[0];
  if (cpu) return cpu.longMode;
  const info = findVmcoreinfo(guest.notes);
  return (info && kernelLongMode(info)) ?? guest.arch === 'x86_64';
}

/** Whether a kernel is one of 64 bits, by where it is mapped; null when VMCOREINFO does not say. */
function kernelLongMode(info: Vmcoreinfo): boolean | null {
  const start = info.symbol('_stext') ?? info.symbol('swapper_pg_dir') ?? info.symbol('init_uts_ns');
  return start === null ? null : start > 0xffff_ffffn;
}

/** QEMU's rule (cpu_get_dump_info): 64-bit in long mode, or when any memory ends above what 32 bits can say. */
export function elfClass(longMode: boolean, blocks: readonly MemoryBlock[]): ElfClass {
  return longMode || blocks.some((block) => blockEnd(block) > 0xffff_ffff) ? ELFCLASS64 : ELFCLASS32;
}

/**
 * Plans an ELF vmcore.
 * @throws VmcoreError NO_MEMORY when no memory is in the range; LIMIT when pages left out make too many segments
 */
export function planElf(
  guest: Pick<Guest, 'arch' | 'cpus' | 'notes' | 'blocks'>,
  options: ElfLayoutOptions = {},
): ElfLayout {
  const longMode = guestLongMode(guest);
  const cls = elfClass(longMode, guest.blocks);
  const sizes = ELF_SIZES[cls];
  const parts = blocksInRange(guest.blocks, options.range);
  const segments = options.exclusion ? segmentsOf(parts, options.exclusion) : parts.map(whole);
  const mappings = clipMappings(options.mappings ?? guest.blocks.map(physicalMapping), options.range);
  const loads = options.exclusion ? cutMappings(mappings, segments) : mappings;
  const notes = guestNotes(guest, longMode);
  const noteBytes = notes.reduce((sum, note) => sum + align4(note.raw.length), 0);

  const phnum = 1 + loads.length;
  const noteOffset = sizes.ehdr + phnum * sizes.phdr + (phnum >= PN_XNUM ? sizes.shdr : 0);
  const memoryOffset = Math.ceil((noteOffset + noteBytes) / PAGE_SIZE) * PAGE_SIZE;
  const blocks = placeBlocks(segments, memoryOffset);
  const memoryBytes = parts.reduce((sum, part) => sum + part.length, 0);
  const storedBytes = blocks.reduce((sum, block) => sum + block.stored, 0);

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
    storedBytes,
    size: memoryOffset + storedBytes,
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

type Segment = Omit<StoredBlock, 'offset'>;

function whole({ base, length }: MemoryBlock): Segment {
  return { base, length, stored: length };
}

/** Blocks cut where gaps begin and end; a gap is a segment without bytes. */
function segmentsOf(parts: readonly MemoryBlock[], exclusion: PageExclusion): Segment[] {
  const segments: Segment[] = [];
  for (const part of parts) {
    const end = blockEnd(part);
    let base = part.base;
    for (const gap of gapsOf(part, exclusion)) {
      if (base < gap.base) segments.push(whole({ base, length: gap.base - base }));
      segments.push({ ...gap, stored: 0 });
      base = blockEnd(gap);
      checkSegments(segments.length);
    }
    if (base < end) segments.push(whole({ base, length: end - base }));
  }
  return segments;
}

/** The runs of pages left out that are long enough to end a segment. */
function* gapsOf(part: MemoryBlock, exclusion: PageExclusion): Generator<MemoryBlock, undefined> {
  const end = blockEnd(part);
  for (const run of exclusion.runs(Math.floor(part.base / PAGE_SIZE), Math.ceil(end / PAGE_SIZE), true)) {
    if (run.end - run.start < SMALLEST_GAP) continue;
    const base = Math.max(run.start * PAGE_SIZE, part.base);
    yield { base, length: Math.min(run.end * PAGE_SIZE, end) - base };
  }
}

/** Mappings cut where segments end. */
function cutMappings(mappings: readonly Mapping[], segments: readonly Segment[]): Mapping[] {
  const cut: Mapping[] = [];
  for (const { vaddr, paddr, length } of mappings) {
    for (let done = 0; done < length;) {
      const at = paddr + done;
      const part = Math.min(nextBoundary(at, segments) - at, length - done);
      cut.push({ vaddr: vaddr && vaddr + BigInt(done), paddr: at, length: part });
      done += part;
    }
    checkSegments(cut.length);
  }
  return cut;
}

/** The first address behind `at` where a segment begins or ends. */
function nextBoundary(at: number, segments: readonly Segment[]): number {
  const index = lastIndexAtOrBelow(segments, at);
  const segment = segments[index];
  if (segment && at < blockEnd(segment)) return blockEnd(segment);
  return segments[index + 1]?.base ?? Number.POSITIVE_INFINITY;
}

/** The notes have a program header, too. @throws VmcoreError LIMIT */
function checkSegments(count: number): void {
  if (count >= MAX_PROGRAM_HEADERS)
    throw new VmcoreError(
      'LIMIT',
      `the pages that are left out would make more than ${MAX_PROGRAM_HEADERS} program headers; --keep-layout makes them zeros instead`,
    );
}

function placeBlocks(segments: readonly Segment[], memoryOffset: number): StoredBlock[] {
  let offset = memoryOffset;
  return segments.map((segment) => {
    const placed = { ...segment, offset };
    offset += segment.stored;
    return placed;
  });
}

/**
 * The PT_LOAD of a mapping (QEMU: get_offset_range). What of it lies behind the bytes of its block is not in the file:
 * p_filesz stops there. One that begins outside the dumped memory is not stored at all, and has no p_offset; one that
 * is left out stands where it would be, without bytes: that tells one from the other.
 */
function loadHeader({ vaddr, paddr, length }: Mapping, blocks: readonly StoredBlock[]): ProgramHeader {
  const block = blocks[lastIndexAtOrBelow(blocks, paddr)];
  const from = block && paddr < blockEnd(block) ? Math.min(paddr - block.base, block.stored) : null;
  return {
    type: PT_LOAD,
    flags: 0,
    offset: from === null ? NOT_STORED : block!.offset + from,
    vaddr: vaddr || BigInt(paddr),
    paddr,
    filesz: from === null ? 0 : Math.min(length, block!.stored - from),
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
