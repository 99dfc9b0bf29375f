/**
 * kdump layout: everything of a kdump-compressed vmcore that is known before the first page moves.
 *
 *   block 0: main header | block 1: sub header, notes | bitmap of memory | bitmap of stored pages | a descriptor for
 *   each stored page | a page of zeros | the stored pages that are not zero
 *
 * All of it is QEMU's (dump/dump.c, create_kdump_vmcore) but for what keeps readers from using QEMU's files: utsname is
 * filled in (guest-utsname.ts), and phys_base is VMCOREINFO's NUMBER(phys_base), which is decimal. The two bitmaps are
 * those of memory that exists and of pages that are stored: the same as long as no page is to be left out.
 *
 * Pages that are left out are makedumpfile's affair (write_kdump_pages_cyclic): they have no bit in the second bitmap
 * and no descriptor. Pages of zeros are not among them at any level. They keep both, and share one page in the file, so
 * that a reader tells them from those that are gone, and the table's size is known before the first page has been read.
 */

import type { ElfClass } from '../formats/elf.js';
import {
  encodeKdumpHeader,
  encodeKdumpSubHeader,
  KDUMP_BLOCK_SIZE,
  KDUMP_HEADER_VERSION,
  KDUMP_SIGNATURE,
  type KdumpHeader,
  type KdumpSubHeader,
  MAIN_HEADER_BLOCKS,
  PAGE_CODEC_FLAGS,
  PAGE_DESCRIPTOR_SIZE,
  SUB_HEADER_SIZE,
} from '../formats/kdump.js';
import { align4, guestNotes, NOTE_HEADER_SIZE, NOTE_NAME_VMCOREINFO } from '../formats/notes.js';
import { findVmcoreinfo } from '../formats/vmcoreinfo.js';
import type { Guest } from '../model/guest.js';
import type { PageExclusion } from '../model/page-exclusion.js';
import { blockEnd, describeBlock, type MemoryBlock } from '../model/physical-memory.js';
import { formatSize, sizeArgument } from '../model/sizes.js';
import { PAGE_SIZE } from '../model/stage.js';
import { elfClass, guestLongMode } from './elf-layout.js';
import { guestUtsname } from '../linux/guest-utsname.js';
import { DL_EXCLUDE_ZERO } from '../model/dump-level.js';
import type { ElfNote } from '../model/note.js';
import { blocksInRange } from '../model/range.js';

/** The codecs of QEMU's kdump formats. */
export const KDUMP_CODECS = ['zlib', 'lzo', 'snappy'] as const;
export type KdumpCodec = (typeof KDUMP_CODECS)[number];

/** A run of consecutive pages of memory. */
export interface PageRun {
  /** page frame number of the first page */
  readonly firstPfn: number;
  /** number of pages */
  readonly count: number;
}

/** The plan of a kdump-compressed vmcore. */
export interface KdumpLayout {
  readonly format: 'kdump';
  /** which of the two layouts headers have */
  readonly class: ElfClass;
  readonly codec: KdumpCodec;
  readonly header: KdumpHeader;
  readonly subHeader: KdumpSubHeader;
  readonly notes: readonly ElfNote[];
  /** the pages of memory, sorted, no two runs touching */
  readonly runs: readonly PageRun[];
  /** number of pages of memory */
  readonly pageCount: number;
  /** which of them are left out; null when none is */
  readonly exclusion: PageExclusion | null;
  /** number of pages of memory that are left out: all others have a descriptor */
  readonly excludedCount: number;
  /** file offset of the first bitmap; the second follows */
  readonly bitmapOffset: number;
  /** bytes of one bitmap, whole blocks */
  readonly bitmapBytes: number;
  /** file offset of the descriptor of the first page */
  readonly descriptorsOffset: number;
  /** file offset of the page of zeros that all zero pages share; the other pages follow it */
  readonly zeroPageOffset: number;
  /** bytes of guest memory that the file is of; less than all pages where a block or the range cuts one */
  readonly memoryBytes: number;
}

/** What decides a kdump layout beside the guest. */
export interface KdumpLayoutOptions {
  readonly codec: KdumpCodec;
  /** only this range of guest physical memory, in bytes; pages that it cuts are stored whole */
  readonly range?: MemoryBlock | undefined;
  /** pages that are to be left out, and the level that the file will claim */
  readonly exclusion?: PageExclusion | undefined;
}

/**
 * Plans a kdump-compressed vmcore; raw or flattened makes no difference to it.
 * @throws VmcoreError NO_MEMORY when no memory is in the range; READ when the guest's utsname cannot be read
 */
export function planKdump(
  guest: Pick<Guest, 'arch' | 'cpus' | 'notes' | 'blocks' | 'memory'>,
  { codec, range, exclusion }: KdumpLayoutOptions,
): KdumpLayout {
  const longMode = guestLongMode(guest);
  const cls = elfClass(longMode, guest.blocks);
  const parts = blocksInRange(guest.blocks, range);
  const runs = pageRuns(parts);
  const pageCount = runs.reduce((sum, run) => sum + run.count, 0);
  const excludedCount = exclusion
    ? runs.reduce((sum, run) => sum + exclusion.countIn(run.firstPfn, runEnd(run)), 0)
    : 0;
  const maxMapnr = runEnd(runs.at(-1)!);
  const bitmapBytes = roundUp(maxMapnr / 8);

  const notes = guestNotes(guest, longMode);
  const offsetNote = MAIN_HEADER_BLOCKS * KDUMP_BLOCK_SIZE + SUB_HEADER_SIZE[cls];
  const sizeNote = notesSize(notes);
  const bitmapOffset = roundUp(offsetNote + sizeNote);
  const descriptorsOffset = bitmapOffset + 2 * bitmapBytes;
  return {
    format: 'kdump',
    class: cls,
    codec,
    header: {
      signature: KDUMP_SIGNATURE,
      version: KDUMP_HEADER_VERSION,
      utsname: guestUtsname(guest, longMode),
      status: PAGE_CODEC_FLAGS[codec],
      blockSize: KDUMP_BLOCK_SIZE,
      subHeaderBlocks: bitmapOffset / KDUMP_BLOCK_SIZE - MAIN_HEADER_BLOCKS,
      bitmapBlocks: (2 * bitmapBytes) / KDUMP_BLOCK_SIZE,
      maxMapnr: Math.min(maxMapnr, 0xffff_ffff),
      cpus: guest.cpus.length,
    },
    subHeader: {
      physBase: longMode ? (findVmcoreinfo(guest.notes)?.number('phys_base') ?? 0n) : 0n,
      // QEMU claims that zero pages are left out, which makes makedumpfile leave them out when it reads the file.
      dumpLevel: exclusion?.level ?? DL_EXCLUDE_ZERO,
      split: 0,
      startPfn: 0,
      endPfn: 0,
      ...placeVmcoreinfo(notes, offsetNote),
      offsetNote,
      sizeNote,
      offsetEraseinfo: 0,
      sizeEraseinfo: 0,
      maxMapnr,
    },
    notes,
    runs,
    pageCount,
    exclusion: exclusion ?? null,
    excludedCount,
    bitmapOffset,
    bitmapBytes,
    descriptorsOffset,
    zeroPageOffset: descriptorsOffset + PAGE_DESCRIPTOR_SIZE * (pageCount - excludedCount),
    memoryBytes: parts.reduce((sum, part) => sum + part.length, 0),
  };
}

/** The first page frame number behind a run. */
export function runEnd(run: PageRun): number {
  return run.firstPfn + run.count;
}

function roundUp(bytes: number): number {
  return Math.ceil(bytes / KDUMP_BLOCK_SIZE) * KDUMP_BLOCK_SIZE;
}

/** The pages of blocks. A page counts when any byte of it is memory, and once when two blocks share it (QEMU >= 7.2). */
function pageRuns(blocks: readonly MemoryBlock[]): PageRun[] {
  const runs: { firstPfn: number; count: number }[] = [];
  for (const block of blocks) {
    const first = Math.floor(block.base / PAGE_SIZE);
    const end = Math.ceil(blockEnd(block) / PAGE_SIZE);
    const last = runs.at(-1);
    if (last && first <= runEnd(last)) last.count = end - last.firstPfn;
    else runs.push({ firstPfn: first, count: end - first });
  }
  return runs;
}

function notesSize(notes: readonly ElfNote[]): number {
  return notes.reduce((sum, note) => sum + align4(note.raw.length), 0);
}

/** Bytes of a bitmap from which on whoever dumps should know why: those of 2 TiB. */
const LARGE_BITMAP = 2 ** 26;
/** A bitmap is large for what it says when the same memory without gaps would have one this many times smaller. */
const SPARSE_BITMAP = 16;

/** Says which memory makes bitmaps large that say little; null when none does. */
export function largeBitmapWarning({ runs, bitmapBytes, pageCount }: KdumpLayout): string | null {
  if (bitmapBytes < LARGE_BITMAP || bitmapBytes * 8 < pageCount * SPARSE_BITMAP) return null;
  const gaps = runs.map((run, i) => run.firstPfn - (i === 0 ? 0 : runEnd(runs[i - 1]!)));
  const i = gaps.indexOf(gaps.reduce((widest, gap) => Math.max(widest, gap)));
  const { firstPfn, count } = runs[i]!;
  const block = describeBlock({ base: firstPfn * PAGE_SIZE, length: count * PAGE_SIZE });
  const remedy = i === 0 ? '' : `; --begin 0 --length ${sizeArgument(runEnd(runs[i - 1]!) * PAGE_SIZE)} leaves it out`;
  return `memory block ${block} lies so high that the kdump has two bitmaps of ${formatSize(bitmapBytes)}, holes of the file for the most part; readers may need as much memory${remedy}`;
}

/** Where the text of VMCOREINFO is: the descriptor of its note. */
function placeVmcoreinfo(
  notes: readonly ElfNote[],
  offsetNote: number,
): Pick<KdumpSubHeader, 'offsetVmcoreinfo' | 'sizeVmcoreinfo'> {
  const index = notes.findIndex(({ name }) => name === NOTE_NAME_VMCOREINFO);
  if (index < 0) return { offsetVmcoreinfo: 0, sizeVmcoreinfo: 0 };
  const nameSize = align4(NOTE_NAME_VMCOREINFO.length + 1);
  return {
    offsetVmcoreinfo: offsetNote + notesSize(notes.slice(0, index)) + NOTE_HEADER_SIZE + nameSize,
    sizeVmcoreinfo: notes[index]!.desc.length,
  };
}

/** Headers and notes as bytes: all that stands before the bitmaps. */
export function encodeKdumpHead(layout: KdumpLayout): Uint8Array {
  const head = new Uint8Array(layout.bitmapOffset);
  head.set(encodeKdumpHeader(layout.class, layout.header));
  head.set(encodeKdumpSubHeader(layout.class, layout.subHeader), MAIN_HEADER_BLOCKS * KDUMP_BLOCK_SIZE);
  let at = layout.subHeader.offsetNote;
  for (const note of layout.notes) {
    head.set(note.raw, at);
    at += align4(note.raw.length);
  }
  return head;
}
