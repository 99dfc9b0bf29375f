/**
 * A copy of a guest's memory in our own, without its zeros: what lets a machine run on while its vmcore is compressed
 * and written.
 */

import { freemem } from 'node:os';
import { VmcoreError } from '../errors.js';
import type { Guest } from '../guest.js';
import type { Backing, DataRun, MemoryRegion } from '../physical-memory.js';
import { formatSize } from '../sizes.js';
import { SlabPool } from '../slab-pool.js';
import type { Chunk } from '../stage.js';
import { nonZeroRuns } from '../zeros.js';

/** Memory is taken in pieces of this size: the system makes its pages when they are written to. */
const PIECE_BYTES = 64 << 20;
/** Zeros between two runs that are fewer than this are copied: a run costs some bytes, too. */
const SMALLEST_GAP = 16 << 10;
/** Chunks that are on their way to the copy. */
const SLABS = 4;

/** Bytes that a copy may have unless told otherwise: half of what is available. */
export function defaultCopyLimit(): number {
  return Math.floor(Math.min(freemem(), process.constrainedMemory() || Number.POSITIVE_INFINITY) / 2);
}

/** A copy of a guest's memory. Its offsets are guest physical addresses. */
export class MemoryCopy implements Backing {
  readonly name: string;
  readonly #pieces: Buffer[] = [];
  /** where the copies of runs are, sorted by address: first byte, byte behind the last, place among the pieces */
  #runs: CopiedRun[] = [];
  #used = 0;

  private constructor(
    name: string,
    private readonly limit: number,
  ) {
    this.name = `the copy of ${name}`;
  }

  /**
   * Copies all of a guest's memory.
   * @param limit most bytes that the copy may have
   * @throws VmcoreError LIMIT when there is more; what reading the guest throws; ABORTED
   */
  static async of(guest: Guest, limit: number, signal?: AbortSignal): Promise<MemoryCopy> {
    const copy = new MemoryCopy(guest.name, limit);
    for await (const chunk of guest.chunks({ pool: new SlabPool(SLABS) })) {
      if (signal?.aborted) throw new VmcoreError('ABORTED', `copying ${guest.name} was given up`);
      copy.#add(chunk);
      chunk.release?.();
    }
    copy.#runs.sort((a, b) => a.start - b.start);
    return copy;
  }

  /** Bytes that were copied. */
  get bytes(): number {
    return this.#used;
  }

  /** The guest's blocks, with the copy behind them. */
  regionsOf(guest: Guest): MemoryRegion[] {
    return guest.blocks.map(({ base, length }) => ({ base, length, backing: this, offset: base }));
  }

  readSync(offset: number, into: Uint8Array): void {
    const end = offset + into.length;
    let at = offset;
    for (let i = this.#firstBehind(offset); i < this.#runs.length && at < end; i++) {
      const run = this.#runs[i]!;
      if (run.start >= end) break;
      const start = Math.max(at, run.start);
      into.fill(0, at - offset, start - offset);
      at = Math.min(end, run.end);
      into.set(this.#bytes(run, start, at), start - offset);
    }
    into.fill(0, at - offset);
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.readSync(offset, into);
  }

  nextData(offset: number, end: number): DataRun | null {
    const run = this.#runs[this.#firstBehind(offset)];
    if (!run || run.start >= end) return null;
    return { start: Math.max(offset, run.start), end: Math.min(end, run.end) };
  }

  close(): void {
    this.#pieces.length = 0;
    this.#runs = [];
  }

  #add({ paddr, data }: Chunk): void {
    if (!data) return;
    for (const { start, end } of nonZeroRuns(data, SMALLEST_GAP))
      for (let at = start; at < end;) at += this.#addRun(paddr + at, data.subarray(at, end));
  }

  /** Copies as much of the bytes as the current piece has room for. @returns how many */
  #addRun(start: number, bytes: Uint8Array): number {
    const within = this.#used % PIECE_BYTES;
    if (within === 0) this.#pieces.push(Buffer.allocUnsafeSlow(PIECE_BYTES));
    const part = bytes.subarray(0, PIECE_BYTES - within);
    if (this.#used + part.length > this.limit) throw this.#tooMuch(start);
    this.#pieces.at(-1)!.set(part, within);
    this.#remember({ start, end: start + part.length, place: this.#used });
    this.#used += part.length;
    return part.length;
  }

  /** Runs that adjoin are one. */
  #remember(run: CopiedRun): void {
    const last = this.#runs.at(-1);
    if (last && last.end === run.start && last.place + (last.end - last.start) === run.place && run.place % PIECE_BYTES)
      last.end = run.end;
    else this.#runs.push(run);
  }

  #bytes({ start, place }: CopiedRun, from: number, to: number): Uint8Array {
    const at = place + (from - start);
    const within = at % PIECE_BYTES;
    return this.#pieces[Math.floor(at / PIECE_BYTES)]!.subarray(within, within + (to - from));
  }

  /** Index of the first run that ends behind an address. */
  #firstBehind(address: number): number {
    let low = 0;
    let high = this.#runs.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#runs[middle]!.end > address) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  #tooMuch(paddr: number): VmcoreError {
    return new VmcoreError(
      'LIMIT',
      `the memory that is not zero does not fit into ${formatSize(this.limit)} (reached at 0x${paddr.toString(16)} of ` +
        'the guest); raise --copy-limit, or dump without --pause-only-for-copy',
    );
  }
}

interface CopiedRun {
  readonly start: number;
  end: number;
  readonly place: number;
}
