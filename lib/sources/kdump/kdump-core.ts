/**
 * kdump-compressed vmcores as guests: those of QEMU, makedumpfile and diskdump, raw or flattened.
 *
 * The first bitmap says what memory there is; the second, which of its pages are in the file. A page that was left out
 * (by makedumpfile, because it was zero, free or cache) is memory that reads as zeros; how many there are is told.
 */

import { VmcoreError } from '../../model/errors.js';
import { ELFMAG } from '../../formats/elf.js';
import { FLATTENED_HEADER_SIZE, isFlattened } from '../../formats/flattened.js';
import { splitNotes } from '../../formats/notes.js';
import type { MissingPages, PfnRun } from '../../model/page-exclusion.js';
import { blockEnd, type MemoryBlock } from '../../model/physical-memory.js';
import { PAGE_SIZE } from '../../model/stage.js';
import { FileBacking } from '../../io/file-backing.js';
import { FlattenedFile } from './flattened-file.js';
import { KdumpBacking } from './kdump-backing.js';
import { DEFAULT_KDUMP_LIMITS, type KdumpHeaders, type KdumpLimits, readKdumpHeaders } from './kdump-headers.js';
import { KdumpPages } from './kdump-pages.js';
import { MemoryGuest, type MemoryGuestFields } from '../memory-guest.js';
import { type BitmapPlace, bitRuns, PageBitmap } from './page-bitmap.js';
import type { RandomFile } from '../../io/random-file.js';

/** Pages of a kdump by what the file has of them. */
export interface KdumpPageCounts {
  /** pages of memory */
  readonly memory: number;
  /** pages that are in the file, zero pages among them */
  readonly stored: number;
  /** pages that were left out; they read as zeros */
  readonly excluded: number;
}

/** A guest that came from a kdump. */
export class KdumpGuest extends MemoryGuest {
  constructor(
    fields: MemoryGuestFields,
    /** what the file's headers say */
    readonly headers: KdumpHeaders,
    readonly pageCounts: KdumpPageCounts,
    /** whether the file is flattened */
    readonly flattened: boolean,
    /** the pages as the file has them */
    readonly pages: KdumpPages,
  ) {
    super(fields);
  }

  /** The pages that were left out; null when none was. */
  get missing(): MissingPages | null {
    const { excluded: count } = this.pageCounts;
    if (count === 0) return null;
    return { level: this.headers.subHeader?.dumpLevel ?? 0, count, runs: () => missingRuns(this.blocks, this.pages) };
  }
}

/**
 * Opens a kdump-compressed vmcore, raw or flattened.
 * @throws VmcoreError BAD_INPUT, TRUNCATED, LIMIT, READ; UNSUPPORTED for other machines, parts of a split dump, and
 *         page compression that is not known, and flattened ELF
 */
export async function openKdump(path: string, limits: KdumpLimits = DEFAULT_KDUMP_LIMITS): Promise<KdumpGuest> {
  const backing = FileBacking.open(path);
  try {
    const flattened = beginsFlattened(backing);
    return await readKdump(flattened ? FlattenedFile.open(backing) : backing, flattened, limits);
  } catch (error) {
    backing.close();
    throw error;
  }
}

function beginsFlattened(file: FileBacking): boolean {
  const start = new Uint8Array(Math.min(FLATTENED_HEADER_SIZE, file.size));
  file.readSync(0, start);
  return isFlattened(start);
}

/**
 * Makes a guest of a kdump as it is when it is not flattened, or no longer.
 * @param file      is closed with the guest; not when this fails
 * @param flattened whether it came from a flattened file
 * @throws VmcoreError as openKdump
 */
export async function readKdump(
  file: RandomFile,
  flattened: boolean,
  limits: KdumpLimits = DEFAULT_KDUMP_LIMITS,
): Promise<KdumpGuest> {
  if (flattened) refuseElf(file);
  const headers = readKdumpHeaders(file, limits);
  const { memoryBitmapOffset, storedBitmapOffset, descriptorsOffset, maxMapnr, longMode } = headers;
  const bitmap = { file, bits: maxMapnr, maxBytes: limits.maxBitmapBytes };
  const blocks = await readBlocks({ ...bitmap, offset: memoryBitmapOffset }, limits);
  const stored = await PageBitmap.open({ ...bitmap, offset: storedBitmapOffset });
  const pages = new KdumpPages(file, stored, descriptorsOffset);
  const backing = new KdumpBacking(file, pages);
  const { cpus, others } = splitNotes(headers.notes, longMode);
  const fields = {
    name: file.name,
    arch: longMode ? 'x86_64' : 'i386',
    regions: blocks.map((block) => ({ ...block, backing, offset: block.base })),
    cpus,
    notes: others,
  } as const;
  const memory = blocks.reduce((sum, block) => sum + block.length, 0) / PAGE_SIZE;
  const counts = { memory, stored: stored.count, excluded: Math.max(0, memory - stored.count) };
  return new KdumpGuest(fields, headers, counts, flattened, pages);
}

/** makedumpfile -E flattens ELF too. @throws VmcoreError UNSUPPORTED */
function refuseElf(file: RandomFile): void {
  const start = new Uint8Array(Math.min(ELFMAG.length, file.size));
  file.readSync(0, start);
  if (ELFMAG.some((byte, i) => start[i] !== byte)) return;
  throw new VmcoreError(
    'UNSUPPORTED',
    `${file.name} is a flattened ELF vmcore; put it together first: makedumpfile -R VMCORE < FILE`,
  );
}

/** The pages of blocks that are not stored. */
function* missingRuns(blocks: readonly MemoryBlock[], pages: KdumpPages): Generator<PfnRun, undefined> {
  for (const block of blocks) {
    const last = blockEnd(block) / PAGE_SIZE;
    for (let pfn = block.base / PAGE_SIZE; pfn < last; pfn++) {
      const end = pages.nextStored(pfn, last);
      if (end > pfn) yield { start: pfn, end };
      pfn = end;
    }
  }
}

/** The memory that the first bitmap has. */
async function readBlocks(bitmap: BitmapPlace, { maxBlocks }: KdumpLimits): Promise<MemoryBlock[]> {
  const { file } = bitmap;
  const blocks: MemoryBlock[] = [];
  for await (const { start, end } of bitRuns(bitmap)) {
    if (blocks.length === maxBlocks)
      throw new VmcoreError('LIMIT', `${file.name}: its bitmap has more than maxBlocks = ${maxBlocks} memory blocks`);
    blocks.push({ base: start * PAGE_SIZE, length: (end - start) * PAGE_SIZE });
  }
  if (blocks.length === 0) throw new VmcoreError('BAD_INPUT', `${file.name} holds no memory: its bitmap is empty`);
  return blocks;
}
