/**
 * The threads that the encoder module runs in. One takes as long to start as a small dump takes: whoever knows early that
 * it will be needed starts it ahead.
 */

import { availableParallelism } from 'node:os';
import { SHARE_ENV, Worker } from 'node:worker_threads';

/** More threads than this would only wait for memory. */
export const MAX_THREADS = 32;

const ahead: Worker[] = [];

/** How many threads there are unless asked otherwise: one a core. */
export function defaultThreads(): number {
  return Math.min(availableParallelism(), MAX_THREADS);
}

/** Starts a thread, which waits for a WasmThreadData. It does not keep the process. */
export function startWasmWorker(): Worker {
  const worker = new Worker(new URL('./wasm-worker.js', import.meta.url), {
    // Loaders that the process was started with are no business of a thread that runs one file of ours.
    execArgv: [],
    env: SHARE_ENV,
    // The descriptors that it reads are not its own.
    trackUnmanagedFds: false,
  });
  worker.unref();
  return worker;
}

/** Has threads that were started ahead used first. */
export function useStartedWorkers(workers: readonly Worker[]): void {
  ahead.push(...workers);
}

/** A thread that nobody uses. */
export function takeWasmWorker(): Worker {
  for (let worker = ahead.pop(); worker; worker = ahead.pop()) if (worker.threadId !== ENDED) return worker;
  return startWasmWorker();
}

/** `threadId` of a thread that is no more. */
const ENDED = -1;
