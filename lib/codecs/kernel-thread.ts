/** One worker thread that runs the page kernel; jobs are addresses in the shared memory. */

import { Worker } from 'node:worker_threads';
import { VmcoreError } from '../errors.js';

/** What a thread starts with; it becomes the worker's `workerData`. */
export interface KernelThreadData {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  /** number of the codec in the kernel */
  readonly codec: number;
  readonly level: number;
  /** address of the thread's scratch memory */
  readonly scratch: number;
}

/** A batch: addresses in the shared memory. */
export interface KernelJob {
  readonly pages: number;
  /** number of pages */
  readonly count: number;
  readonly out: number;
  readonly table: number;
}

/** What became of a batch. */
export interface KernelResult {
  /** bytes of all encodings */
  readonly bytes: number;
  /** how long it took */
  readonly milliseconds: number;
}

interface Pending {
  resolve(result: KernelResult): void;
  reject(error: Error): void;
}

/** Runs jobs in the order in which they come. */
export class KernelThread {
  readonly #worker: Worker;
  readonly #pending: Pending[] = [];
  #failure: VmcoreError | null = null;

  constructor(workerData: KernelThreadData) {
    // Loaders that the process was started with are no business of a thread that runs one file of ours.
    this.#worker = new Worker(new URL('./kernel-worker.js', import.meta.url), { workerData, execArgv: [] });
    this.#worker.on('message', (result: KernelResult) => this.#pending.shift()?.resolve(result));
    this.#worker.on('error', (error) => this.#fail(error.message));
    this.#worker.on('exit', () => this.#fail('it ended'));
  }

  /** Jobs that are not done. */
  get pending(): number {
    return this.#pending.length;
  }

  /** Encodes a batch. */
  encode(job: KernelJob): Promise<KernelResult> {
    if (this.#failure) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      this.#pending.push({ resolve, reject });
      this.#worker.postMessage(job);
    });
  }

  async close(): Promise<void> {
    await this.#worker.terminate();
  }

  #fail(why: string): void {
    this.#failure ??= new VmcoreError('LIMIT', `a compressor thread stopped: ${why}`);
    for (const { reject } of this.#pending.splice(0)) reject(this.#failure);
  }
}
