/** What runs in a KernelThread: the page kernel, one job at a time. */

import { parentPort, workerData } from 'node:worker_threads';
import { instantiateKernel } from '../kernel/kernel.js';
import type { KernelJob, KernelResult, KernelThreadData } from './kernel-thread.js';

const { module, memory, codec, level, scratch } = workerData as KernelThreadData;
const kernel = instantiateKernel(module, memory);
kernel.init(scratch);

parentPort!.on('message', ({ pages, count, out, table }: KernelJob) => {
  const started = performance.now();
  const bytes = kernel.encodeBatch(codec, pages, count, out, table, scratch, level);
  parentPort!.postMessage({ bytes, milliseconds: performance.now() - started } satisfies KernelResult);
});
