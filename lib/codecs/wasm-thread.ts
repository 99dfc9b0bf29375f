/** One worker thread that runs the encoder module; jobs are addresses in the shared memory. */

import type { Worker } from 'node:worker_threads';
import { VmcoreError } from '../model/errors.js';
import type { FilePlace } from '../model/physical-memory.js';
import { takeWasmWorker } from './wasm-workers.js';

/** What a thread starts with: the first message that it gets. */
export interface WasmThreadData {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  /** number of the codec in the module */
  readonly codec: number;
  readonly level: number;
  /** address of the thread's scratch memory */
  readonly scratch: number;
  /** address of room for READ_PAGES pages that the thread reads itself */
  readonly input: number;
}

/**
 * Pages that a thread reads and encodes at a time: they are still in its core's cache when the module comes to them, and
 * a system call for each such piece takes next to no time.
 */
export const READ_PAGES = 128;

/** A batch: addresses in the shared memory. */
export interface WasmJob {
  /** the pages: an address, or where they are in a file */
  readonly pages: number | FilePlace;
  /** number of pages */
  readonly count: number;
  readonly out: number;
  readonly sizes: number;
  readonly kinds: number;
}

/** What became of a batch. */
export interface WasmResult {
  /** bytes of all encodings; null when the file did not give its bytes */
  readonly bytes: number | null;
  /** how long the module took */
  readonly milliseconds: number;
}

interface Pending {
  resolve(result: WasmResult): void;
  reject(error: Error): void;
}

/** Runs jobs in the order in which they come. */
export class WasmThread {
  readonly #worker: Worker;
  readonly #pending: Pending[] = [];
  #failure: Error | null = null;
  #closing: Promise<void> | null = null;

  constructor(data: WasmThreadData) {
    this.#worker = takeWasmWorker();
    this.#worker.ref();
    this.#worker.postMessage(data);
    this.#worker.on('message', (result: WasmResult) => this.#pending.shift()?.resolve(result));
    this.#worker.on('error', (error) => this.#fail(error.message));
    this.#worker.on('exit', () => this.#fail('it ended'));
  }

  /** Jobs that are not done. */
  get pending(): number {
    return this.#pending.length;
  }

  /** Encodes a batch. */
  encode(job: WasmJob): Promise<WasmResult> {
    if (this.#failure) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      this.#pending.push({ resolve, reject });
      this.#worker.postMessage(job);
    });
  }

  /** Ends the thread; its jobs fail with this error when it is gone and touches neither memory nor files. */
  cancel(error: Error): void {
    this.#failure ??= error;
    void this.close();
  }

  /** Ends the thread, and settles when it is gone. */
  close(): Promise<void> {
    this.#closing ??= this.#worker.terminate().then(() => {});
    return this.#closing;
  }

  #fail(why: string): void {
    this.#failure ??= new VmcoreError('LIMIT', `a compressor thread stopped: ${why}`);
    for (const { reject } of this.#pending.splice(0)) reject(this.#failure);
  }
}
