/**
 * Fast codec: the encoder module in worker threads over one shared WebAssembly memory.
 *
 *   memory: | input slabs (the source reads into them) | output slots: encodings, then the table |
 *           | for each worker: scratch | for each worker: room for what it reads itself |
 *
 * Chunks that are still in a file are best: the workers read them, a piece at a time, and what a core has just read it
 * has in its cache. Of other sources the slabs are in the memory that the module works on; what is elsewhere is copied
 * in. What the module writes is what the sink gets: between threads only addresses go to and fro.
 */

import { VmcoreError } from '../model/errors.js';
import {
  compileEncoder,
  INPUT_SLACK,
  WASM_CODECS,
  MAX_ENCODED_PAGE,
  OUTPUT_SLACK,
  SCRATCH_BYTES,
  SIZE_BYTES,
  TABLE_ENTRY_BYTES,
} from '../wasm/encoder-module.js';
import type { FilePlace } from '../model/physical-memory.js';
import { checkOptions, wholeNumber } from '../model/option-rules.js';
import { type Slab, SlabPool } from '../model/slab-pool.js';
import { MAX_CHUNK_BYTES, PAGE_SIZE, type PageBatch, releaseChunk } from '../model/stage.js';
import { type WasmJob, WasmThread, READ_PAGES } from './wasm-thread.js';
import { defaultThreads, MAX_THREADS } from './wasm-workers.js';
import type { EncodableChunk, PageCodecName, PageEncoder } from './page-encoder.js';
import { keepMemory, takeMemory } from './spare-memory.js';

/** Bytes of memory in a batch: what threads and stages have to say to each other for one takes as long as 1 MiB does. */
const BATCH_BYTES = MAX_CHUNK_BYTES;
const BATCH_PAGES = BATCH_BYTES / PAGE_SIZE;
/** Chunks that a worker has at a time: the next one is there when it is done with one. */
const CHUNKS_PER_THREAD = 2;
/** Input slabs beside those under way: being read, or on their way through stages. */
const SPARE_INPUTS = 4;
/** Output slots beside those under way: on their way to the sink. */
const SPARE_OUTPUTS = 3;
/** Chunks from elsewhere that are copied in at a time. */
const STAGING_SLABS = 2;

const OUTPUT_BYTES = BATCH_PAGES * MAX_ENCODED_PAGE + OUTPUT_SLACK;
const TABLE_BYTES = BATCH_PAGES * TABLE_ENTRY_BYTES;
const READ_BYTES = READ_PAGES * PAGE_SIZE + INPUT_SLACK;

/** How the module is to encode. */
export interface WasmOptions {
  /** worker threads; as many as the machine has by default */
  readonly threads?: number | undefined;
  /** 1 is fast, 2 is smaller; zlib knows higher ones */
  readonly level?: number | undefined;
}

/** Hands out pieces of a memory, one behind the other. */
class Arena {
  #end = 0;

  /** Address of `bytes` bytes, aligned to a cache line. */
  take(bytes: number): number {
    const at = this.#end;
    this.#end = Math.ceil((at + bytes) / 64) * 64;
    return at;
  }

  get end(): number {
    return this.#end;
  }
}

/** Encodes in worker threads. */
export class WasmEncoder implements PageEncoder {
  readonly concurrency: number;
  readonly pool: SlabPool;
  readonly readsFiles = true;
  busySeconds = 0;
  readonly #memory: WebAssembly.Memory;
  readonly #staging: SlabPool;
  readonly #outputs: SlabPool;
  readonly #threads: WasmThread[];
  #closing: Promise<void> | null = null;

  private constructor(codec: PageCodecName, module: WebAssembly.Module, { threads, level }: WasmOptions) {
    const count = Math.min(threads ?? defaultThreads(), MAX_THREADS);
    this.concurrency = CHUNKS_PER_THREAD * count;
    const inputs = this.concurrency + SPARE_INPUTS;
    // As many as can be under way and unclaimed, or the oldest would wait for a slot that only younger ones have.
    const outputs = this.concurrency + 1 + SPARE_OUTPUTS;

    const arena = new Arena();
    const addresses = (number: number, bytes: number) => Array.from({ length: number }, () => arena.take(bytes));
    const inputAt = addresses(inputs, BATCH_BYTES);
    const stagingAt = addresses(STAGING_SLABS, BATCH_BYTES);
    arena.take(INPUT_SLACK);
    const outputAt = addresses(outputs, OUTPUT_BYTES + TABLE_BYTES);
    const scratchAt = addresses(count, SCRATCH_BYTES);
    const readAt = addresses(count, READ_BYTES);
    this.#memory = takeMemory(arena.end);

    this.pool = this.#poolAt(inputAt, BATCH_BYTES);
    this.#staging = this.#poolAt(stagingAt, BATCH_BYTES);
    this.#outputs = this.#poolAt(outputAt, OUTPUT_BYTES + TABLE_BYTES);
    const common = { module, memory: this.#memory, codec: WASM_CODECS[codec], level: level ?? 1 };
    this.#threads = scratchAt.map((scratch, i) => new WasmThread({ ...common, scratch, input: readAt[i]! }));
  }

  /**
   * @throws VmcoreError USAGE when an option is wrong; UNSUPPORTED when WebAssembly threads are not to be had: the
   *   portable codec does without
   */
  static async open(codec: PageCodecName, options: WasmOptions = {}): Promise<WasmEncoder> {
    checkOptions(options, { threads: wholeNumber(1), level: wholeNumber(1) });
    try {
      return new WasmEncoder(codec, compileEncoder(), options);
    } catch (error) {
      throw new VmcoreError(
        'UNSUPPORTED',
        'the fast codec needs WebAssembly with threads; --codec portable does without',
        {
          cause: error,
        },
      );
    }
  }

  async encode(chunk: EncodableChunk): Promise<PageBatch> {
    const { paddr, length, memory = length } = chunk;
    const count = length / PAGE_SIZE;
    let output: Slab | null = null;
    try {
      if (length > BATCH_BYTES)
        throw new VmcoreError('USAGE', `a chunk of ${length} bytes is larger than a batch of ${BATCH_BYTES}`);
      output = await this.#outputs.take();
      const bytes = await this.#encodeInto(output, chunk, count);
      if (bytes === 0) return { paddr, count, memory };
      const table = this.#readTable(output.bytes.byteOffset + OUTPUT_BYTES, count);
      const slot = output;
      output = null;
      return {
        paddr,
        count,
        ...table,
        data: slot.bytes.subarray(0, bytes),
        memory,
        release: () => this.#outputs.give(slot),
      };
    } finally {
      if (output) this.#outputs.give(output);
      releaseChunk(chunk);
    }
  }

  cancel(error: Error): void {
    for (const pool of this.#pools) pool.close(error);
    for (const thread of this.#threads) thread.cancel(error);
  }

  /** Ends the threads. The memory serves the next encoder when all that was made of it has been released. */
  close(): Promise<void> {
    this.#closing ??= this.#end();
    return this.#closing;
  }

  async #end(): Promise<void> {
    await Promise.all(this.#threads.map((thread) => thread.close()));
    void Promise.all(this.#pools.map((pool) => pool.idle())).then(() => keepMemory(this.#memory));
  }

  get #pools(): readonly SlabPool[] {
    return [this.pool, this.#staging, this.#outputs];
  }

  #poolAt(addresses: readonly number[], bytes: number): SlabPool {
    const left = [...addresses];
    const allocate = () => new Uint8Array(this.#memory.buffer as SharedArrayBuffer, left.shift(), bytes);
    return new SlabPool(addresses.length, bytes, allocate);
  }

  /** Has a thread encode pages. @returns bytes of their encodings; null when they are in a file that did not give them */
  async #run(pages: number, count: number, output: Slab): Promise<number>;
  async #run(pages: FilePlace, count: number, output: Slab): Promise<number | null>;
  async #run(pages: WasmJob['pages'], count: number, { bytes: { byteOffset: out } }: Slab): Promise<number | null> {
    const sizes = out + OUTPUT_BYTES;
    const job = { pages, count, out, sizes, kinds: sizes + count * SIZE_BYTES };
    const { bytes, milliseconds } = await this.#leastBusy().encode(job);
    this.busySeconds += milliseconds / 1000;
    return bytes;
  }

  /** Encodes a chunk's pages wherever its bytes are. @returns bytes of the encodings */
  async #encodeInto(output: Slab, chunk: EncodableChunk, count: number): Promise<number> {
    if (chunk.kind === 'deferred') {
      const size = await this.#run(chunk.place, count, output);
      // Where a thread cannot read, it is done here: to do better, or to say why.
      return size ?? this.#runStaged((into) => chunk.read(into), count, output);
    }
    const { data } = chunk;
    if (data.buffer === this.#memory.buffer) return this.#run(data.byteOffset, count, output);
    return this.#runStaged((into) => into.set(data), count, output);
  }

  /** Encodes pages that have to be brought into the module's memory first. */
  async #runStaged(fill: (into: Uint8Array) => void | Promise<void>, count: number, output: Slab): Promise<number> {
    const slab = await this.#staging.take();
    try {
      await fill(slab.bytes.subarray(0, count * PAGE_SIZE));
      return await this.#run(slab.bytes.byteOffset, count, output);
    } finally {
      this.#staging.give(slab);
    }
  }

  #leastBusy(): WasmThread {
    return this.#threads.reduce((least, thread) => (thread.pending < least.pending ? thread : least));
  }

  /** The table as views: sizes, u16 each, then kinds, u8 each. Valid until the slot is given back. */
  #readTable(table: number, count: number): { kinds: Uint8Array; sizes: Uint16Array } {
    const { buffer } = this.#memory;
    return {
      sizes: new Uint16Array(buffer, table, count),
      kinds: new Uint8Array(buffer, table + count * SIZE_BYTES, count),
    };
  }
}
