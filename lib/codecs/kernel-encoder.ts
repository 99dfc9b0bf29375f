/**
 * Fast codec: the page kernel in worker threads over one shared WebAssembly memory.
 *
 *   memory: | input slabs (the source reads into them) | output slots: encodings, then the table | scratch a worker |
 *
 * The source's slabs are in the memory that the kernel works on, and what the kernel writes is what the sink gets: no
 * byte is copied between threads, only addresses go to and fro. Chunks whose bytes are elsewhere are copied in.
 */

import { availableParallelism } from 'node:os';
import { VmcoreError } from '../errors.js';
import {
  compileKernel,
  INPUT_SLACK,
  KERNEL_CODECS,
  MAX_ENCODED_PAGE,
  OUTPUT_SLACK,
  SCRATCH_BYTES,
  TABLE_ENTRY_BYTES,
} from '../kernel/kernel.js';
import { SLAB_BYTES, type Slab, SlabPool } from '../slab-pool.js';
import { type Chunk, PAGE_SIZE, type PageBatch } from '../stage.js';
import { type KernelResult, KernelThread } from './kernel-thread.js';
import type { PageCodecName, PageEncoder } from './page-encoder.js';

/** Pages of a batch: a slab full. */
const BATCH_PAGES = SLAB_BYTES / PAGE_SIZE;
/** Chunks that a worker has at a time: the next one is there when it is done with one. */
const CHUNKS_PER_THREAD = 2;
/** Input slabs beside those under way: being read, or on their way through stages. */
const SPARE_INPUTS = 8;
/** Output slots beside those under way: on their way to the sink. */
const SPARE_OUTPUTS = 5;
/** Chunks from elsewhere that are copied in at a time. */
const STAGING_SLABS = 2;
/** More threads than this would only wait for memory. */
const MAX_THREADS = 32;

const WASM_PAGE = 65_536;
const OUTPUT_BYTES = BATCH_PAGES * MAX_ENCODED_PAGE + OUTPUT_SLACK;
const TABLE_BYTES = BATCH_PAGES * TABLE_ENTRY_BYTES;

/** How the kernel is to encode. */
export interface KernelOptions {
  /** worker threads; as many as the machine has by default */
  readonly threads?: number | undefined;
  /** zlib: 1 is fast, 2 is smaller */
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
export class KernelEncoder implements PageEncoder {
  readonly concurrency: number;
  readonly pool: SlabPool;
  busySeconds = 0;
  readonly #memory: WebAssembly.Memory;
  readonly #staging: SlabPool;
  readonly #outputs: SlabPool;
  readonly #threads: KernelThread[];

  private constructor(codec: PageCodecName, module: WebAssembly.Module, { threads, level }: KernelOptions) {
    const count = Math.min(threads ?? availableParallelism(), MAX_THREADS);
    this.concurrency = CHUNKS_PER_THREAD * count;
    const inputs = this.concurrency + SPARE_INPUTS;
    // As many as can be under way and unclaimed, or the oldest would wait for a slot that only younger ones have.
    const outputs = this.concurrency + 1 + SPARE_OUTPUTS;

    const arena = new Arena();
    const addresses = (number: number, bytes: number) => Array.from({ length: number }, () => arena.take(bytes));
    const inputAt = addresses(inputs, SLAB_BYTES);
    const stagingAt = addresses(STAGING_SLABS, SLAB_BYTES);
    arena.take(INPUT_SLACK);
    const outputAt = addresses(outputs, OUTPUT_BYTES + TABLE_BYTES);
    const scratchAt = addresses(count, SCRATCH_BYTES);
    const pages = Math.ceil(arena.end / WASM_PAGE);
    this.#memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });

    this.pool = this.#poolAt(inputAt, SLAB_BYTES);
    this.#staging = this.#poolAt(stagingAt, SLAB_BYTES);
    this.#outputs = this.#poolAt(outputAt, OUTPUT_BYTES + TABLE_BYTES);
    this.#threads = scratchAt.map(
      (scratch) =>
        new KernelThread({ module, memory: this.#memory, codec: KERNEL_CODECS[codec], level: level ?? 1, scratch }),
    );
  }

  /** @throws VmcoreError UNSUPPORTED when WebAssembly threads are not to be had: the portable codec does without */
  static async open(codec: PageCodecName, options: KernelOptions = {}): Promise<KernelEncoder> {
    try {
      return new KernelEncoder(codec, compileKernel(), options);
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

  async encode(chunk: Chunk & { readonly data: Uint8Array }): Promise<PageBatch> {
    const { paddr, length, memory = length } = chunk;
    const count = length / PAGE_SIZE;
    const input = await this.#place(chunk);
    const output = await this.#outputs.take();
    const out = output.bytes.byteOffset;
    const table = out + OUTPUT_BYTES;
    let result: KernelResult;
    try {
      result = await this.#leastBusy().encode({ pages: input.address, count, out, table });
    } catch (error) {
      this.#outputs.give(output);
      throw error;
    } finally {
      input.release();
    }
    this.busySeconds += result.milliseconds / 1000;
    const { bytes } = result;
    const release = () => this.#outputs.give(output);
    if (bytes === 0) {
      release();
      return { paddr, count, memory };
    }
    return { paddr, count, ...this.#readTable(table, count), data: output.bytes.subarray(0, bytes), memory, release };
  }

  async close(): Promise<void> {
    await Promise.all(this.#threads.map((thread) => thread.close()));
  }

  #poolAt(addresses: readonly number[], bytes: number): SlabPool {
    const left = [...addresses];
    const allocate = () => new Uint8Array(this.#memory.buffer as SharedArrayBuffer, left.shift(), bytes);
    return new SlabPool(addresses.length, bytes, allocate);
  }

  /** The address of a chunk's bytes; they are copied into the kernel's memory when they are not in it. */
  async #place(chunk: Chunk & { readonly data: Uint8Array }): Promise<{ address: number; release(): void }> {
    const release = () => chunk.release?.();
    if (chunk.data.buffer === this.#memory.buffer) return { address: chunk.data.byteOffset, release };
    if (chunk.length > SLAB_BYTES)
      throw new VmcoreError('USAGE', `a chunk of ${chunk.length} bytes is larger than a slab of ${SLAB_BYTES}`);
    const slab: Slab = await this.#staging.take();
    slab.bytes.set(chunk.data);
    release();
    return { address: slab.bytes.byteOffset, release: () => this.#staging.give(slab) };
  }

  #leastBusy(): KernelThread {
    return this.#threads.reduce((least, thread) => (thread.pending < least.pending ? thread : least));
  }

  /** The table as views: sizes, u16 each, then kinds, u8 each. Valid until the slot is given back. */
  #readTable(table: number, count: number): { kinds: Uint8Array; sizes: Uint16Array } {
    const { buffer } = this.#memory;
    return { sizes: new Uint16Array(buffer, table, count), kinds: new Uint8Array(buffer, table + 2 * count, count) };
  }
}
