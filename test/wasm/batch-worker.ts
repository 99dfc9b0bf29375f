/** A thread that encodes a batch a few times over, and tells the size of its output. */

import { parentPort, workerData } from 'node:worker_threads';
import { instantiateEncoder } from '../../lib/wasm/encoder-module.js';

export interface BatchJob {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly codec: number;
  readonly pages: number;
  readonly count: number;
  readonly out: number;
  readonly sizes: number;
  readonly kinds: number;
  readonly scratch: number;
  readonly rounds: number;
}

const { module, memory, codec, pages, count, out, sizes, kinds, scratch, rounds } = workerData as BatchJob;
const kernel = instantiateEncoder(module, memory);
kernel.init(scratch);
let size = 0;
for (let round = 0; round < rounds; round++)
  size = kernel.encodeBatch(codec, pages, count, out, sizes, kinds, scratch, 1);
parentPort!.postMessage(size);
