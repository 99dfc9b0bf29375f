/**
 * An ELF core from a stream that cannot seek, as a guest: QEMU dumping into a FIFO, a core on stdin.
 *
 * Header, program headers and notes are read when it is opened and stand in the stream's front, which is buffered and
 * bounded. The memory passes once, through the slabs of the pool, when `chunks` is consumed: the guest has no random
 * access (`memory` is null) and `chunks` can be called once.
 *
 * Chunks come in the order of the core's bytes. That is the order of addresses for every writer seen (QEMU, Cloud
 * Hypervisor, VirtualBox, /proc/vmcore without its text segment); a core whose PT_LOADs are sorted differently comes
 * in the order of the file, which a framer and a seekable sink take as well, while a byte stream refuses it. Bytes
 * that no PT_LOAD names are skipped; bytes that several name (QEMU's paging dump) are passed on once. Memory that stands
 * at two places is taken once, and compared by digests (elf-repeats.ts).
 */

import { type ByteInput, type ByteSource, openByteInput } from '../../io/byte-input.js';
import type { Chunk } from '../../model/chunk.js';
import { VmcoreError } from '../../model/errors.js';
import type { Architecture, ChunkOptions, CpuState, Guest } from '../../model/guest.js';
import type { ElfNote } from '../../model/note.js';
import type { MissingPages } from '../../model/page-exclusion.js';
import { blockEnd, type MemoryBlock } from '../../model/physical-memory.js';
import { intersect } from '../../model/range.js';
import { SlabPool } from '../../model/slab-pool.js';
import { Source, type StageOptions } from '../../model/stage.js';
import {
  checkStored,
  type CoreHeaders,
  type CoreReader,
  DEFAULT_ELF_LIMITS,
  type ElfLimits,
  type LoadSegment,
  readCoreHeaders,
  readElfHeader,
  storedEnd,
  truncatedError,
} from './elf-headers.js';
import { inStreamOrder, leftOutPages, machineBlocks, resolveMemory, type StoredBlock } from './elf-memory.js';
import { repeatedMemory, RepeatWatch } from './elf-repeats.js';
import { isXenCore } from './xen-core.js';

/** How much of a stream's front is buffered at most: 2^18 program headers, the notes, and room for section headers. */
const FRONT_LIMIT = 32 << 20;
/** The front's first buffer; it doubles. */
const FRONT_START = 64 << 10;
/** What is skipped is read into a buffer of this size. */
const SKIP_BYTES = 64 << 10;
/** What was left out is passed on as holes of this size, so that progress is steady. */
const HOLE_BYTES = 64 << 20;
/** What may follow the memory, and is read so that the writer does not fail: QEMU's section names. */
const TAIL_LIMIT = 16 << 20;

/**
 * Opens an ELF core that is a stream: reads up to its memory and no further than what a read happens to bring.
 * @param input  an async iterable of bytes (a Readable), or a descriptor, which is not closed
 * @param name   what to call it in messages: `stdin`
 * @param limits what its headers may make us hold and go through
 * @returns a guest whose `memory` is null and whose `chunks` can be taken once, by one pass over the stream
 * @throws VmcoreError as openElfCore; UNSUPPORTED when what is needed first stands behind the memory. A stream that
 *   ends within its memory fails as TRUNCATED when `chunks` gets there
 */
export async function openElfStream(
  input: ByteSource,
  name: string,
  limits: ElfLimits = DEFAULT_ELF_LIMITS,
): Promise<Guest> {
  const reader = new ForwardReader(openByteInput(input, name), name);
  try {
    const header = await readElfHeader(reader);
    if (isXenCore(header))
      throw new VmcoreError(
        'UNSUPPORTED',
        `${name} is a core with sections only (Xen?), which has its tables behind the memory; save it to a file and open that`,
      );
    const headers = await readCoreHeaders(reader, header, limits, { notesFirst: true });
    return new ElfStreamGuest(reader, headers, resolveMemory(name, headers, limits));
  } catch (error) {
    reader.close();
    throw error;
  }
}

/** A stream with a front that can be read at will, until reading goes forward from its beginning. */
class ForwardReader implements CoreReader {
  readonly name: string;
  readonly #input: ByteInput;
  /** what has been read for the headers; null when reading forward has passed it */
  #front: Uint8Array | null = new Uint8Array(FRONT_START);
  #frontLength = 0;
  /** where `fill` and `skipTo` are */
  #position = 0;
  /** is shown all bytes that `fill` and `skipTo` pass */
  #watch: RepeatWatch | null = null;

  constructor(input: ByteInput, name: string) {
    this.#input = input;
    this.name = name;
  }

  async read(offset: number, length: number, what: string): Promise<Uint8Array> {
    const end = offset + length;
    if (end > FRONT_LIMIT)
      throw new VmcoreError(
        'UNSUPPORTED',
        `${this.name}: ${what} reaches to byte ${end}, too far into a stream to wait for; save it to a file and open that`,
      );
    await this.#extendFront(end);
    if (this.#frontLength < end) throw truncatedError(this.name, this.#frontLength, what, end);
    return this.#front!.slice(offset, end);
  }

  /** Reads until the front has `length` bytes, or the stream ends. The buffer grows as bytes come, not as claimed. */
  async #extendFront(length: number): Promise<void> {
    while (this.#frontLength < length) {
      if (this.#frontLength === this.#front!.length) this.#growFront();
      const count = await this.#input.readSome(this.#front!.subarray(this.#frontLength));
      if (count === 0) return;
      this.#frontLength += count;
    }
  }

  #growFront(): void {
    const larger = new Uint8Array(this.#front!.length * 2);
    larger.set(this.#front!);
    this.#front = larger;
  }

  /** Goes forward to `offset`. @returns where it got to: less when the stream has ended, more when it was beyond */
  async skipTo(offset: number): Promise<number> {
    if (offset <= this.#position) return this.#position;
    if (this.#front) this.#advance(this.#front.subarray(this.#position, Math.min(offset, this.#frontLength)));
    const nowhere = new Uint8Array(Math.min(SKIP_BYTES, offset - this.#position));
    while (this.#position < offset) {
      const count = await this.#input.readSome(nowhere.subarray(0, offset - this.#position));
      if (count === 0) break;
      this.#advance(nowhere.subarray(0, count));
    }
    return this.#position;
  }

  /** Reads up to `limit` more bytes and forgets them. */
  async skipRest(limit: number): Promise<void> {
    await this.skipTo(this.#position + limit);
  }

  /** Reads on until `into` is full. @returns how many bytes there were: less when the stream has ended */
  async fill(into: Uint8Array): Promise<number> {
    let done = 0;
    if (this.#front) {
      const part = this.#front.subarray(this.#position, Math.min(this.#frontLength, this.#position + into.length));
      into.set(part);
      this.#advance(part);
      done = part.length;
    }
    while (done < into.length) {
      const count = await this.#input.readSome(into.subarray(done));
      if (count === 0) break;
      this.#advance(into.subarray(done, done + count));
      done += count;
    }
    return done;
  }

  /** Has `watch` see all bytes from here on. */
  watchBy(watch: RepeatWatch): void {
    this.#watch = watch;
  }

  #advance(passed: Uint8Array): void {
    this.#watch?.see(this.#position, passed);
    this.#position += passed.length;
    if (this.#position >= this.#frontLength) this.#front = null;
  }

  close(): void {
    this.#input.close();
  }
}

/** A guest whose memory passes by once. */
class ElfStreamGuest implements Guest {
  readonly name: string;
  readonly arch: Architecture;
  readonly blocks: readonly MemoryBlock[];
  readonly cpus: readonly CpuState[];
  readonly notes: readonly ElfNote[];
  readonly memory = null;
  readonly missing: MissingPages | null;
  readonly assumption: string | undefined;
  readonly #reader: ForwardReader;
  readonly #stored: readonly StoredBlock[];
  readonly #loads: readonly LoadSegment[];
  #taken = false;

  constructor(reader: ForwardReader, headers: CoreHeaders, stored: readonly StoredBlock[]) {
    this.name = reader.name;
    this.arch = headers.arch;
    this.cpus = headers.cpus;
    this.notes = headers.notes;
    this.assumption = headers.assumption;
    this.blocks = machineBlocks(stored);
    this.missing = leftOutPages(stored);
    this.#reader = reader;
    this.#stored = stored;
    this.#loads = headers.loads;
  }

  /** @throws VmcoreError UNSUPPORTED when it is called again */
  chunks(options: ChunkOptions & StageOptions = {}): Source<Chunk> {
    if (this.#taken)
      throw new VmcoreError('UNSUPPORTED', `${this.name} is a stream, whose memory can be read only once`);
    this.#taken = true;
    return new ElfStreamSource(this.#reader, this.#stored, this.#loads, options);
  }

  close(): void {
    this.#reader.close();
  }
}

/** Reads the blocks of a core as they come by. */
class ElfStreamSource extends Source<Chunk> {
  readonly #reader: ForwardReader;
  readonly #pool: SlabPool;
  readonly #pieces: Iterator<StoredBlock>;
  /** with a range, reading stops behind it: whoever writes will find the stream closed */
  readonly #readsAll: boolean;
  readonly #watch: RepeatWatch;

  constructor(
    reader: ForwardReader,
    stored: readonly StoredBlock[],
    private readonly loads: readonly LoadSegment[],
    options: ChunkOptions & StageOptions,
  ) {
    super(options);
    this.#reader = reader;
    this.#pool = options.pool ?? new SlabPool();
    this.#pieces = cut(inStreamOrder(stored), options.range, this.#pool.slabBytes);
    this.#readsAll = options.range === undefined;
    this.#watch = new RepeatWatch(reader.name, repeatedMemory(reader.name, loads, stored));
    reader.watchBy(this.#watch);
  }

  protected override async next(): Promise<Chunk | null> {
    const { value: piece, done } = this.#pieces.next();
    if (done) return this.#finish();
    if (piece.offset === null) return { kind: 'hole', paddr: piece.base, length: piece.length };
    return this.#readPiece(piece, piece.offset);
  }

  async #readPiece(piece: StoredBlock, offset: number): Promise<Chunk> {
    const slab = await this.#pool.take(this);
    try {
      const data = slab.bytes.subarray(0, piece.length);
      const reached = await this.#reader.skipTo(offset);
      const count = reached === offset ? await this.#reader.fill(data) : 0;
      if (count < piece.length)
        throw truncatedError(
          this.#reader.name,
          reached + count,
          `memory at 0x${piece.base.toString(16)}`,
          offset + piece.length,
        );
      return { kind: 'bytes', paddr: piece.base, length: piece.length, data, release: () => this.#pool.give(slab) };
    } catch (error) {
      this.#pool.give(slab);
      throw error;
    }
  }

  async #finish(): Promise<null> {
    if (!this.#readsAll) return null;
    // What others have named before is not passed on again, but a core that is cut there is cut.
    const end = this.loads.reduce((end, load) => Math.max(end, storedEnd(load)), 0);
    checkStored(this.#reader.name, await this.#reader.skipTo(end), this.loads);
    this.#watch.check();
    await this.#reader.skipRest(TAIL_LIMIT);
    return null;
  }

  /** Lets go of a read that waits for a silent writer, too. */
  protected override cancel(error: Error): void {
    this.#pool.dismiss(this, error);
    this.#reader.close();
  }

  protected override close(): void {
    this.#reader.close();
  }
}

/** Cuts what lies in the range into pieces, at the same addresses as for a file: slabs of bytes, larger ones of zeros. */
function* cut(
  blocks: readonly StoredBlock[],
  range: MemoryBlock | undefined,
  slabBytes: number,
): Generator<StoredBlock, undefined> {
  for (const block of blocks) {
    const part = intersect(block, range);
    if (!part) continue;
    const step = block.offset === null ? HOLE_BYTES : slabBytes;
    for (let base = part.base; base < blockEnd(part);) {
      const length = Math.min(step - (base % step), blockEnd(part) - base);
      yield { base, length, offset: block.offset === null ? null : block.offset + (base - block.base) };
      base += length;
    }
  }
}
