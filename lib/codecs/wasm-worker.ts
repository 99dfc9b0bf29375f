/** What runs in a WasmThread: the encoder module, one job at a time. */

import { readSync } from 'node:fs';
import { parentPort } from 'node:worker_threads';
import { instantiateEncoder, KIND_BYTES, type EncoderModule, SIZE_BYTES } from '../wasm/encoder-module.js';
import { PAGE_SIZE } from '../model/page-size.js';
import type { FilePlace } from '../model/physical-memory.js';
import { type WasmJob, type WasmResult, type WasmThreadData, READ_PAGES } from './wasm-thread.js';

/** Does a thread's jobs. */
class JobRunner {
  readonly #encoder: EncoderModule;
  readonly #bytes: Uint8Array;
  #milliseconds = 0;

  constructor(private readonly data: WasmThreadData) {
    this.#encoder = instantiateEncoder(data.module, data.memory);
    this.#encoder.init(data.scratch);
    this.#bytes = new Uint8Array(data.memory.buffer);
  }

  run(job: WasmJob): WasmResult {
    const { pages, count, out } = job;
    this.#milliseconds = 0;
    const bytes = typeof pages === 'number' ? this.#encode(job, pages, 0, count, out) : this.#encodeFile(job, pages);
    return { bytes, milliseconds: this.#milliseconds };
  }

  /** Reads and encodes piece by piece; null when a read fails: whoever asked will find out why. */
  #encodeFile(job: WasmJob, { fd, offset }: FilePlace): number | null {
    let out = job.out;
    for (let first = 0; first < job.count; first += READ_PAGES) {
      const count = Math.min(READ_PAGES, job.count - first);
      if (!this.#read(fd, offset + first * PAGE_SIZE, count * PAGE_SIZE)) return null;
      out += this.#encode(job, this.data.input, first, count, out);
    }
    return out - job.out;
  }

  /** Encodes pages of a job, from its `first` on. @returns bytes of their encodings */
  #encode(job: WasmJob, pages: number, first: number, count: number, out: number): number {
    const { codec, scratch, level } = this.data;
    const sizes = job.sizes + first * SIZE_BYTES;
    const kinds = job.kinds + first * KIND_BYTES;
    const started = performance.now();
    const size = this.#encoder.encodeBatch(codec, pages, count, out, sizes, kinds, scratch, level);
    this.#milliseconds += performance.now() - started;
    return size;
  }

  #read(fd: number, offset: number, length: number): boolean {
    try {
      for (let done = 0; done < length;) {
        const count = readSync(fd, this.#bytes, this.data.input + done, length - done, offset + done);
        if (count === 0) return false;
        done += count;
      }
      return true;
    } catch {
      return false;
    }
  }
}

let runner: JobRunner | null = null;

parentPort!.on('message', (message: WasmThreadData | WasmJob) => {
  if (runner) parentPort!.postMessage(runner.run(message as WasmJob));
  else runner = new JobRunner(message as WasmThreadData);
});
