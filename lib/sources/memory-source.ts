/**
 * Guest memory as a stream of chunks, in ascending order of addresses: regions are read slab by slab, and what a
 * backing knows to be a hole, or what is to be skipped, is passed on as a chunk without data, whatever its size, and
 * never read.
 */

import type { ChunkOptions } from '../model/guest.js';
import type { PageExclusion } from '../model/page-exclusion.js';
import { blockEnd, type DataRun, dataRuns, type MemoryBlock, type MemoryRegion } from '../model/physical-memory.js';
import { SlabPool } from '../model/slab-pool.js';
import { type Chunk, type DeferredChunk, PAGE_SIZE, Source, type StageOptions } from '../model/stage.js';
import { intersect } from '../model/range.js';

/** Holes smaller than this are read: a system call less is worth more than some zeros. */
const SMALLEST_HOLE = 64 * 1024;

/** Larger holes are passed on in pieces, so that progress is steady. */
const LARGEST_HOLE = 64 << 20;

/** A piece of work: bytes of one region that are all data or all hole. */
interface Piece {
  readonly region: MemoryRegion;
  readonly paddr: number;
  readonly length: number;
  readonly hole: boolean;
}

/** Reads regions in order. */
export class MemorySource extends Source<Chunk> {
  readonly #pool: SlabPool;
  readonly #pieces: Iterator<Piece>;
  readonly #defers: boolean;

  /**
   * @param regions sorted and without overlap, as PhysicalMemory has them
   * @param options `pool`, `range` (bytes of guest physical addresses), `skip`, `deferred`, `signal`
   */
  constructor(regions: readonly MemoryRegion[], options: ChunkOptions & StageOptions = {}) {
    super(options);
    this.#pool = options.pool ?? new SlabPool();
    this.#pieces = pieces(regions, options, this.#pool.slabBytes);
    this.#defers = options.deferred ?? false;
  }

  protected override async next(): Promise<Chunk | null> {
    const { value: piece, done } = this.#pieces.next();
    if (done) return null;
    if (piece.hole) return { kind: 'hole', paddr: piece.paddr, length: piece.length };
    return (this.#defers && deferredChunk(piece)) || this.#readPiece(piece);
  }

  protected override cancel(error: Error): void {
    this.#pool.dismiss(this, error);
  }

  async #readPiece({ region, paddr, length }: Piece): Promise<Chunk> {
    const slab = await this.#pool.take(this);
    const data = slab.bytes.subarray(0, length);
    try {
      await region.backing!.read(region.offset + (paddr - region.base), data);
    } catch (error) {
      this.#pool.give(slab);
      throw error;
    }
    return { kind: 'bytes', paddr, length, data, release: () => this.#pool.give(slab) };
  }
}

/** Whole pages as a chunk that says where they are; null for others, and where the backing is no file. */
function deferredChunk({ region: { backing, base, offset }, paddr, length }: Piece): DeferredChunk | null {
  if (!backing?.locate || paddr % PAGE_SIZE !== 0 || length % PAGE_SIZE !== 0) return null;
  const at = offset + (paddr - base);
  const { release, ...place } = backing.locate(at);
  const read = (into: Uint8Array, from = 0) => backing.read(at + from, into);
  return { kind: 'deferred', paddr, length, place, read, release };
}

function* pieces(
  regions: readonly MemoryRegion[],
  { range, skip }: ChunkOptions,
  slabBytes: number,
): Generator<Piece, undefined> {
  for (const region of regions) {
    const part = intersect(region, range);
    if (!part) continue;
    const runs = dataRuns(region, part.base, blockEnd(part));
    yield* regionPieces(region, part, skip ? keptRuns(runs, skip) : runs, slabBytes);
  }
}

/** Cuts a part of a region into holes and slabs full of data. */
function* regionPieces(
  region: MemoryRegion,
  part: MemoryBlock,
  runs: Iterable<DataRun>,
  slabBytes: number,
): Generator<Piece, undefined> {
  let at = part.base;
  for (const run of joinedRuns(runs, at)) {
    yield* cut(region, at, run.start, LARGEST_HOLE, true);
    yield* cut(region, run.start, run.end, slabBytes, false);
    at = run.end;
  }
  yield* cut(region, at, blockEnd(part), LARGEST_HOLE, true);
}

/** Runs with what lies between them, or before the first, where that is too little to be a hole. */
function* joinedRuns(runs: Iterable<DataRun>, from: number): Generator<DataRun, undefined> {
  let start = from;
  let end = from;
  for (const run of runs) {
    const isApart = run.start - end >= SMALLEST_HOLE;
    // What is long enough goes on: looking for all of a long run's parts at once would keep its reader waiting.
    if (isApart || end - start >= LARGEST_HOLE) {
      if (start < end) yield { start, end };
      start = isApart ? run.start : end;
    }
    end = run.end;
  }
  if (start < end) yield { start, end };
}

/** Pieces of at most `step` bytes, cut at multiples of it so that they stay aligned to pages. */
function* cut(
  region: MemoryRegion,
  from: number,
  to: number,
  step: number,
  hole: boolean,
): Generator<Piece, undefined> {
  for (let at = from; at < to;) {
    const length = Math.min(step - (at % step), to - at);
    yield { region, paddr: at, length, hole };
    at += length;
  }
}

/** What is left of runs without the pages that are to be skipped. */
function* keptRuns(runs: Iterable<DataRun>, skip: PageExclusion): Generator<DataRun, undefined> {
  for (const run of runs)
    for (const { start, end } of skip.runs(Math.floor(run.start / PAGE_SIZE), Math.ceil(run.end / PAGE_SIZE), false))
      yield { start: Math.max(start * PAGE_SIZE, run.start), end: Math.min(end * PAGE_SIZE, run.end) };
}
