/**
 * A copy of a guest's memory, without its zeros: what lets a machine run on while its vmcore is compressed and written.
 * It is in our own memory as far as that may go, and then in a temporary file, if there is one.
 */

import { VmcoreError } from '../../model/errors.js';
import type { Guest } from '../../model/guest.js';
import type { Backing, DataRun, MemoryRegion } from '../../model/physical-memory.js';
import { formatSize } from '../../model/sizes.js';
import { SlabPool } from '../../model/slab-pool.js';
import { type Chunk, chunkBytes, releaseChunk } from '../../model/stage.js';
import { nonZeroRuns } from '../../model/zeros.js';
import { availableMemory } from '../../io/available-memory.js';
import type { FileBacking } from '../../io/file-backing.js';
import type { SpoolFile } from '../../io/spool-file.js';

/** Memory is taken in pieces of this size: the system makes its pages when they are written to. */
const PIECE_BYTES = 64 << 20;
/** Zeros between two runs that are fewer than this are copied: a run costs some bytes, too. */
const SMALLEST_GAP = 16 << 10;
/** Chunks that are on their way to the copy. */
const SLABS = 4;
/** What is written to the file at a time: a guest has many runs that are small. */
const STAGE_BYTES = 2 << 20;

/** Bytes of memory that a copy may have unless told otherwise: half of what is available. */
export function defaultCopyLimit(): number {
  return Math.floor(availableMemory() / 2);
}

/** Where a copy may go. */
export interface CopyRoom {
  /** most bytes of our memory */
  readonly limit: number;
  /** takes what does not fit there; when the copy is made, it needs it no more */
  readonly spool: SpoolFile | null;
}

/** A copy of a guest's memory. Its offsets are guest physical addresses. */
export class MemoryCopy implements Backing {
  readonly name: string;
  readonly #pieces: Buffer[] = [];
  /** where the copies of runs are, sorted by address: first byte, byte behind the last, place in memory and file */
  #runs: CopiedRun[] = [];
  #used = 0;
  /** bytes on their way to the file: those before #used that are not there yet */
  readonly #staged: Buffer;
  #stagedBytes = 0;
  #file: FileBacking | null = null;

  private constructor(
    name: string,
    private readonly room: CopyRoom,
  ) {
    this.name = `the copy of ${name}`;
    this.#staged = Buffer.allocUnsafe(room.spool ? STAGE_BYTES : 0);
  }

  /**
   * Copies all of a guest's memory.
   * @throws VmcoreError LIMIT, WRITE when there is no room; what reading the guest throws; ABORTED
   */
  static async of(guest: Guest, room: CopyRoom, signal?: AbortSignal): Promise<MemoryCopy> {
    const copy = new MemoryCopy(guest.name, room);
    try {
      for await (const chunk of guest.chunks({ pool: new SlabPool(SLABS) })) {
        if (signal?.aborted) throw new VmcoreError('ABORTED', `copying ${guest.name} was given up`);
        await copy.#add(chunk);
        releaseChunk(chunk);
      }
      await copy.#finish();
      return copy;
    } catch (error) {
      copy.close();
      throw error;
    }
  }

  /** Bytes that were copied. */
  get bytes(): number {
    return this.#used;
  }

  /** The guest's blocks, with the copy behind them. */
  regionsOf(guest: Guest): MemoryRegion[] {
    return guest.blocks.map(({ base, length }) => ({ base, length, backing: this, offset: base }));
  }

  /** How many of them are in the temporary file. */
  get spooledBytes(): number {
    return this.room.spool ? Math.max(0, this.#used - this.room.limit) : 0;
  }

  readSync(offset: number, into: Uint8Array): void {
    for (const { place, bytes } of this.#parts(offset, into))
      if (this.#isSpooled(place)) this.#file!.readSync(place - this.room.limit, bytes);
      else bytes.set(this.#inMemory(place, bytes.length));
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    for (const { place, bytes } of this.#parts(offset, into))
      if (this.#isSpooled(place)) await this.#file!.read(place - this.room.limit, bytes);
      else bytes.set(this.#inMemory(place, bytes.length));
  }

  nextData(offset: number, end: number): DataRun | null {
    const run = this.#runs[this.#firstBehind(offset)];
    if (!run || run.start >= end) return null;
    return { start: Math.max(offset, run.start), end: Math.min(end, run.end) };
  }

  close(): void {
    this.#pieces.length = 0;
    this.#runs = [];
    this.#file?.close();
    this.#file = null;
  }

  async #add(chunk: Chunk): Promise<void> {
    const data = chunkBytes(chunk);
    if (!data) return;
    const { paddr } = chunk;
    for (const { start, end } of nonZeroRuns(data, SMALLEST_GAP))
      for (let at = start; at < end;) {
        at += this.#addRun(paddr + at, data.subarray(at, end));
        if (this.#staged.length > 0 && this.#stagedBytes === this.#staged.length) await this.#flush();
      }
  }

  /** Copies as much of the bytes as there is room for at once. @returns how many */
  #addRun(start: number, bytes: Uint8Array): number {
    const part = this.#take(bytes) ?? this.#stage(bytes);
    if (part === 0) throw this.#tooMuch(start);
    this.#remember({ start, end: start + part, place: this.#used });
    this.#used += part;
    return part;
  }

  /** Puts bytes into the current piece of memory. @returns how many; null when no more may be put there */
  #take(bytes: Uint8Array): number | null {
    const left = this.room.limit - this.#used;
    if (left <= 0 || (!this.room.spool && left < bytes.length)) return null;
    const within = this.#used % PIECE_BYTES;
    if (within === 0) this.#pieces.push(Buffer.allocUnsafeSlow(PIECE_BYTES));
    const part = bytes.subarray(0, Math.min(PIECE_BYTES - within, left));
    this.#pieces.at(-1)!.set(part, within);
    return part.length;
  }

  /** Puts bytes where they wait for their way to the file. @returns how many: none where there is no file */
  #stage(bytes: Uint8Array): number {
    const part = bytes.subarray(0, this.#staged.length - this.#stagedBytes);
    this.#staged.set(part, this.#stagedBytes);
    this.#stagedBytes += part.length;
    return part.length;
  }

  async #flush(): Promise<void> {
    const { spool, limit } = this.room;
    const bytes = this.#staged.subarray(0, this.#stagedBytes);
    await spool?.write(this.#used - limit - bytes.length, bytes);
    this.#stagedBytes = 0;
  }

  async #finish(): Promise<void> {
    if (this.#stagedBytes > 0) await this.#flush();
    if (this.spooledBytes > 0) this.#file = this.room.spool!.reopen();
    this.#runs.sort((a, b) => a.start - b.start);
  }

  /** Runs that adjoin are one, but for where a piece, or the file, begins. */
  #remember(run: CopiedRun): void {
    const last = this.#runs.at(-1);
    const begins = this.#isSpooled(run.place) ? run.place === this.room.limit : run.place % PIECE_BYTES === 0;
    if (last && last.end === run.start && last.place + (last.end - last.start) === run.place && !begins)
      last.end = run.end;
    else this.#runs.push(run);
  }

  /** Whether what has a place is in the file. */
  #isSpooled(place: number): boolean {
    return place >= this.room.limit;
  }

  #inMemory(place: number, length: number): Uint8Array {
    const within = place % PIECE_BYTES;
    return this.#pieces[Math.floor(place / PIECE_BYTES)]!.subarray(within, within + length);
  }

  /** The parts of `into` that were copied, and where they are; fills the others with zeros. */
  *#parts(offset: number, into: Uint8Array): Generator<{ place: number; bytes: Uint8Array }, undefined> {
    const end = offset + into.length;
    let at = offset;
    for (let i = this.#firstBehind(offset); i < this.#runs.length && at < end; i++) {
      const run = this.#runs[i]!;
      if (run.start >= end) break;
      const start = Math.max(at, run.start);
      into.fill(0, at - offset, start - offset);
      at = Math.min(end, run.end);
      yield { place: run.place + (start - run.start), bytes: into.subarray(start - offset, at - offset) };
    }
    into.fill(0, at - offset);
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
      `the memory that is not zero does not fit into ${formatSize(this.room.limit)} (reached at 0x${paddr.toString(16)} ` +
        'of the guest); raise --copy-limit, give --copy-spool DIR, or dump without --pause-only-for-copy',
    );
  }
}

interface CopiedRun {
  readonly start: number;
  end: number;
  readonly place: number;
}
