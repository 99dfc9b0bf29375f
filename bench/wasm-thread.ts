/** A thread of the module's bench: it encodes batches of pages that all threads see. */

import { parentPort, workerData } from 'node:worker_threads';
import { instantiateEncoder, SIZE_BYTES } from '../lib/wasm/encoder-module.js';
import { PAGE_SIZE } from '../lib/model/page-size.js';

/** Pages of a batch. */
export const BATCH_PAGES = 256;

/** What the module is asked for. */
export interface Variant {
  readonly name: string;
  /** of WASM_CODECS */
  readonly codec: number;
  readonly level: number;
}

/** Where things are in the module's memory; what threads have of their own comes one thread behind the other. */
export interface Places {
  readonly pages: number;
  readonly count: number;
  readonly out: number;
  readonly table: number;
  readonly scratch: number;
}

/** What a thread starts with. */
export interface ThreadData {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly places: Places;
  /** number of the next batch, shared by the threads of a round */
  readonly next: Int32Array;
}

/** Makes a function that encodes one batch of the pages, and gives its size. */
export function batchEncoder({ module, memory, places }: Omit<ThreadData, 'next'>) {
  const { pages, count, out, table, scratch } = places;
  const encoder = instantiateEncoder(module, memory);
  encoder.init(scratch);
  return ({ codec, level }: Variant, batch: number): number => {
    const first = batch * BATCH_PAGES;
    const size = Math.min(BATCH_PAGES, count - first);
    return encoder.encodeBatch(
      codec,
      pages + first * PAGE_SIZE,
      size,
      out,
      table,
      table + SIZE_BYTES * size,
      scratch,
      level,
    );
  };
}

/** For each message, takes batches until the round has none left. */
function runThread(data: ThreadData): void {
  const encode = batchEncoder(data);
  const batches = Math.ceil(data.places.count / BATCH_PAGES);
  parentPort!.on('message', (variant: Variant) => {
    for (let batch = Atomics.add(data.next, 0, 1); batch < batches; batch = Atomics.add(data.next, 0, 1))
      encode(variant, batch);
    parentPort!.postMessage(null);
  });
}

// The main thread measures with `batchEncoder` as well.
if (parentPort) runThread(workerData as ThreadData);
