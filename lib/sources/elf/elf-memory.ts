/**
 * From PT_LOADs to memory: which bytes of an ELF core are which bytes of guest physical memory.
 *
 * A table of PT_LOADs may name one byte of memory many times. QEMU's paging dump has a PT_LOAD for each virtual mapping,
 * so aliases share their bytes in the file. /proc/vmcore has the kernel's text twice, at two offsets. Here each byte of
 * memory gets one place: the first PT_LOAD in the order of the table that stores it. What others say of it has to be the
 * same (elf-repeats.ts).
 *
 * What has p_memsz but no bytes is memory that was left out: makedumpfile ends a segment where pages are not stored, and
 * our own dumps have a PT_LOAD of no bytes there. It reads as zeros, and is told of as missing.
 */

import { NOTE_NAME_QEMU } from '../../formats/notes.js';
import { VmcoreError } from '../../model/errors.js';
import type { MissingPages } from '../../model/page-exclusion.js';
import type { PfnRun } from '../../model/page-set.js';
import { PAGE_SIZE } from '../../model/page-size.js';
import { blockEnd, type MemoryBlock } from '../../model/physical-memory.js';
import type { CoreHeaders, ElfLimits, LoadSegment } from './elf-headers.js';
import { ownedStretches } from '../span-owners.js';

/** A contiguous piece of guest memory that is also contiguous in the core. */
export interface StoredBlock extends MemoryBlock {
  /** offset of its first byte in the core; null when it was left out */
  readonly offset: number | null;
}

/**
 * The memory of a core, sorted by address and without overlap.
 *
 * One block for each PT_LOAD when the table describes physical memory and nothing overlaps, so that adjacent blocks
 * stay apart as their writer had them; otherwise pieces that adjoin in memory and in the core are one block.
 * @throws VmcoreError BAD_INPUT when one byte of the core is given to two physical addresses; LIMIT when memory without
 *   end is said to be left out
 */
export function resolveMemory(
  name: string,
  headers: Pick<CoreHeaders, 'loads' | 'noteNames'>,
  limits: Pick<ElfLimits, 'maxLeftOutBytes'>,
): StoredBlock[] {
  checkBytesAreUsedOnce(name, headers.loads);
  const isVirtual = headers.loads.some((load) => load.isVirtual);
  const spans = spansOf(headers.loads, tailsAreMemory(isVirtual, headers.noteNames));
  const sorted = [...spans].sort((a, b) => a.base - b.base);
  const overlap = sorted.some((span, i) => i > 0 && blockEnd(sorted[i - 1]!) > span.base);
  const blocks = overlap ? joinPieces(paint(spans)) : isVirtual ? joinPieces(sorted) : sorted;
  checkLeftOut(name, blocks, limits.maxLeftOutBytes);
  return blocks;
}

/**
 * The blocks as the machine had them: what was left out belongs to the block that it adjoins.
 * @param pieces sorted, as resolveMemory gives them
 */
export function machineBlocks(pieces: readonly StoredBlock[]): MemoryBlock[] {
  const blocks: MemoryBlock[] = [];
  pieces.forEach(({ base, length, offset }, i) => {
    const [last, previous] = [blocks.at(-1), pieces[i - 1]];
    const goesOn = last && blockEnd(last) === base && (offset === null || previous?.offset === null);
    if (goesOn) blocks[blocks.length - 1] = { base: last.base, length: last.length + length };
    else blocks.push({ base, length });
  });
  return blocks;
}

/** The pages of which a core has no byte; null when there are none. A core does not tell their dump level. */
export function leftOutPages(pieces: readonly StoredBlock[]): MissingPages | null {
  let count = 0;
  for (const { start, end } of leftOutRuns(pieces)) count += end - start;
  return count === 0 ? null : { level: 0, count, runs: () => leftOutRuns(pieces) };
}

function* leftOutRuns(pieces: readonly StoredBlock[]): Generator<PfnRun, undefined> {
  /** pages below it have bytes, or have been told */
  let told = 0;
  let nextStored = 0;
  for (const [i, piece] of pieces.entries()) {
    const end = Math.ceil(blockEnd(piece) / PAGE_SIZE);
    if (piece.offset === null) {
      nextStored = Math.max(nextStored, i + 1);
      while (nextStored < pieces.length && pieces[nextStored]!.offset === null) nextStored++;
      const limit = Math.floor((pieces[nextStored]?.base ?? Number.POSITIVE_INFINITY) / PAGE_SIZE);
      const run = { start: Math.max(told, Math.floor(piece.base / PAGE_SIZE)), end: Math.min(end, limit) };
      if (run.start < run.end) yield run;
    }
    told = Math.max(told, end);
  }
}

/**
 * The blocks in the order in which a stream brings them: by their place in the core. What was left out, which a stream
 * can bring at any time, comes behind the block that is below it, so that a sorted core stays in order of addresses.
 */
export function inStreamOrder(blocks: readonly StoredBlock[]): StoredBlock[] {
  const groups: { at: number; blocks: StoredBlock[] }[] = [];
  for (const block of blocks) {
    const last = groups.at(-1);
    if (block.offset === null && last) last.blocks.push(block);
    else groups.push({ at: block.offset ?? 0, blocks: [block] });
  }
  return groups.sort((a, b) => a.at - b.at).flatMap((group) => group.blocks);
}

/**
 * Whether what p_memsz has beyond the bytes of a segment is memory. Not so in paging dumps of QEMU's kind: a mapping
 * runs on past the RAM block that it begins in, and behind that is a hole or another block.
 */
function tailsAreMemory(isVirtual: boolean, noteNames: ReadonlySet<string>): boolean {
  return !(isVirtual && noteNames.has(NOTE_NAME_QEMU));
}

/** What the segments say, in order of precedence: what is stored, by the order of the table, then what was left out. */
function spansOf(loads: readonly LoadSegment[], withTails: boolean): StoredBlock[] {
  const stored = loads
    .filter(({ filesz }) => filesz > 0)
    .map(({ paddr, filesz, offset }) => ({ base: paddr, length: filesz, offset }));
  const leftOut = loads
    .filter(({ filesz, memsz }) => memsz > filesz && (withTails || filesz === 0))
    .map(({ paddr, filesz, memsz }) => ({ base: paddr + filesz, length: memsz - filesz, offset: null }));
  return [...stored, ...leftOut];
}

/** Gives each stretch of memory to the first span that has it. */
function* paint(spans: readonly StoredBlock[]): Generator<StoredBlock, undefined> {
  const starts = Float64Array.from(spans, ({ base }) => base);
  const ends = Float64Array.from(spans, blockEnd);
  for (const { start, end, owner } of ownedStretches({ starts, ends })) {
    const { base, offset } = spans[owner]!;
    yield { base: start, length: end - start, offset: offset === null ? null : offset + (start - base) };
  }
}

/** Joins neighbours that adjoin in memory and in the core. */
function joinPieces(sorted: Iterable<StoredBlock>): StoredBlock[] {
  const joined: StoredBlock[] = [];
  for (const block of sorted) {
    const last = joined.at(-1);
    if (last && adjoin(last, block)) joined[joined.length - 1] = { ...last, length: last.length + block.length };
    else joined.push(block);
  }
  return joined;
}

function adjoin(a: StoredBlock, b: StoredBlock): boolean {
  if (blockEnd(a) !== b.base) return false;
  return a.offset === null ? b.offset === null : b.offset === a.offset + a.length;
}

/**
 * No writer stores one byte for two addresses: such a table lies, whatever the order of its entries. Of segments that
 * share bytes the one that reaches furthest is compared with; all others have agreed with it.
 */
function checkBytesAreUsedOnce(name: string, loads: readonly LoadSegment[]): void {
  let furthest: LoadSegment | null = null;
  for (const load of loads.filter(({ filesz }) => filesz > 0).sort((a, b) => a.offset - b.offset)) {
    const isShared = furthest !== null && load.offset < furthest.offset + furthest.filesz;
    if (isShared && load.paddr - load.offset !== furthest!.paddr - furthest!.offset) {
      const other = furthest!.paddr + (load.offset - furthest!.offset);
      throw new VmcoreError(
        'BAD_INPUT',
        `${name}: byte ${load.offset} is said to be memory at 0x${load.paddr.toString(16)} and at ` +
          `0x${other.toString(16)}; its program headers contradict each other`,
      );
    }
    if (!furthest || load.offset + load.filesz > furthest.offset + furthest.filesz) furthest = load;
  }
}

/** What is stored is bounded by the core's size; what is not is bounded here. */
function checkLeftOut(name: string, blocks: readonly StoredBlock[], limit: number): void {
  const bytes = blocks.reduce((sum, block) => (block.offset === null ? sum + block.length : sum), 0);
  if (bytes > limit)
    throw new VmcoreError(
      'LIMIT',
      `${name} claims that ${bytes} bytes of memory were left out (p_memsz beyond p_filesz), more than maxLeftOutBytes = ${limit}`,
    );
}
