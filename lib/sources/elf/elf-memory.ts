/**
 * From PT_LOADs to memory: which bytes of an ELF core are which bytes of guest physical memory.
 *
 * A table of PT_LOADs may name one byte of memory many times. QEMU's paging dump has a PT_LOAD for each virtual mapping,
 * so aliases share their bytes in the file. /proc/vmcore has the kernel's text twice, at two offsets. makedumpfile
 * leaves out pages by p_filesz < p_memsz. Here each byte of memory gets one place: the first PT_LOAD in the order of
 * the table that stores it; where none stores it but one has it in its p_memsz, it is zero.
 */

import { VmcoreError } from '../../model/errors.js';
import { NOTE_NAME_QEMU } from '../../formats/notes.js';
import { blockEnd, type MemoryBlock } from '../../model/physical-memory.js';
import type { CoreHeaders, ElfLimits, LoadSegment } from './elf-headers.js';

/** A contiguous piece of guest memory that is also contiguous in the core. */
export interface StoredBlock extends MemoryBlock {
  /** offset of its first byte in the core; null when it reads as zeros */
  readonly offset: number | null;
}

/**
 * The memory of a core, sorted by address and without overlap.
 *
 * One block for each PT_LOAD when the table describes physical memory and nothing overlaps, so that adjacent blocks
 * stay apart as their writer had them; otherwise pieces that adjoin in memory and in the core are one block.
 * @throws VmcoreError BAD_INPUT when one byte of the core is given to two physical addresses; LIMIT for endless zeros
 */
export function resolveMemory(
  name: string,
  headers: Pick<CoreHeaders, 'loads' | 'noteNames'>,
  limits: Pick<ElfLimits, 'maxZeroBytes'>,
): StoredBlock[] {
  const isVirtual = headers.loads.some((load) => load.isVirtual);
  const spans = spansOf(headers.loads, tailsAreZeros(isVirtual, headers.noteNames));
  const sorted = [...spans].sort((a, b) => a.base - b.base);
  const overlap = sorted.some((span, i) => i > 0 && blockEnd(sorted[i - 1]!) > span.base);
  const blocks = overlap ? joinBlocks(paint(spans)) : isVirtual ? joinBlocks(sorted) : sorted;
  checkBytesAreUsedOnce(name, blocks);
  checkZeros(name, blocks, limits.maxZeroBytes);
  return blocks;
}

/**
 * The blocks in the order in which a stream brings them: by their place in the core. Zeros, which a stream can bring
 * at any time, come behind the block that is below them, so that a sorted core stays in order of addresses.
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
 * Whether what p_memsz has beyond p_filesz is memory that reads as zeros, as the gABI says. Not so in QEMU's paging
 * dumps: a mapping runs on past the RAM block that it begins in, and behind that is a hole or another block.
 */
function tailsAreZeros(isVirtual: boolean, noteNames: ReadonlySet<string>): boolean {
  return !(isVirtual && noteNames.has(NOTE_NAME_QEMU));
}

/** What the segments say, in order of precedence: what is stored, by the order of the table, then zeros. */
function spansOf(loads: readonly LoadSegment[], withTails: boolean): StoredBlock[] {
  const stored = loads.map(({ paddr, filesz, offset }) => ({ base: paddr, length: filesz, offset }));
  if (!withTails) return stored;
  const zeros = loads
    .filter(({ filesz, memsz }) => memsz > filesz)
    .map(({ paddr, filesz, memsz }) => ({ base: paddr + filesz, length: memsz - filesz, offset: null }));
  return [...stored, ...zeros];
}

/** No span has taken this stretch. */
const NOBODY = -1;

/**
 * Gives each stretch of memory to the first span that has it.
 *
 * Addresses are cut at every span's ends into stretches. Spans take theirs in order; `next` leads past what is taken
 * (union-find), so that a stretch is visited once however many spans lie over it: O(n log n) for hostile tables too.
 */
function paint(spans: readonly StoredBlock[]): Iterable<StoredBlock> {
  const cuts = cutsOf(spans);
  const owners = new Int32Array(cuts.length).fill(NOBODY);
  const next = Int32Array.from(cuts, (_, i) => i);
  spans.forEach((span, owner) => {
    const end = blockEnd(span);
    for (let i = findFree(next, indexOf(cuts, span.base)); cuts[i]! < end; i = findFree(next, i + 1)) {
      owners[i] = owner;
      next[i] = i + 1;
    }
  });
  return ownedStretches(spans, cuts, owners);
}

/** All ends of spans, sorted, each once. */
function cutsOf(spans: readonly StoredBlock[]): Float64Array {
  const ends = new Float64Array(spans.length * 2);
  spans.forEach((span, i) => {
    ends[2 * i] = span.base;
    ends[2 * i + 1] = blockEnd(span);
  });
  return ends.sort().filter((cut, i, all) => i === 0 || cut !== all[i - 1]);
}

/** Index of a value that is in a sorted array. */
function indexOf(sorted: Float64Array, value: number): number {
  let low = 0;
  for (let high = sorted.length; low < high;) {
    const middle = (low + high) >>> 1;
    if (sorted[middle]! < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The first stretch at or behind `i` that nobody has taken, or the last cut; halves the paths that it walks. */
function findFree(next: Int32Array, i: number): number {
  let at = i;
  while (next[at] !== at) {
    next[at] = next[next[at]!]!;
    at = next[at]!;
  }
  return at;
}

/** The stretches as blocks, one by one: there may be twice as many as spans, and most are joined at once. */
function* ownedStretches(
  spans: readonly StoredBlock[],
  cuts: Float64Array,
  owners: Int32Array,
): Generator<StoredBlock, undefined> {
  for (let i = 0; i + 1 < cuts.length; i++) {
    const span = spans[owners[i]!];
    if (!span) continue;
    const base = cuts[i]!;
    const offset = span.offset === null ? null : span.offset + (base - span.base);
    yield { base, length: cuts[i + 1]! - base, offset };
  }
}

/** Joins neighbours that adjoin in memory and in the core. */
function joinBlocks(sorted: Iterable<StoredBlock>): StoredBlock[] {
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

/** A stream passes each byte once, and no writer stores one byte for two addresses: such a table lies. */
function checkBytesAreUsedOnce(name: string, blocks: readonly StoredBlock[]): void {
  const stored = blocks.filter((block): block is StoredBlock & { offset: number } => block.offset !== null);
  stored.sort((a, b) => a.offset - b.offset);
  stored.forEach((block, i) => {
    const previous = stored[i - 1];
    if (previous && previous.offset + previous.length > block.offset)
      throw new VmcoreError(
        'BAD_INPUT',
        `${name}: byte ${block.offset} is said to be memory at 0x${block.base.toString(16)} and at ` +
          `0x${(previous.base + (block.offset - previous.offset)).toString(16)}; its program headers contradict each other`,
      );
  });
}

/** What is stored is bounded by the core's size; what is not is bounded here. */
function checkZeros(name: string, blocks: readonly StoredBlock[], limit: number): void {
  const zeros = blocks.reduce((sum, block) => (block.offset === null ? sum + block.length : sum), 0);
  if (zeros > limit)
    throw new VmcoreError(
      'LIMIT',
      `${name} claims ${zeros} bytes of zeros (p_memsz beyond p_filesz), more than maxZeroBytes = ${limit}`,
    );
}
