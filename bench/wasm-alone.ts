/**
 * The encoder module alone: MB/s in one thread and in two, and the ratio, beside what native libraries do with the pages.
 *
 * The native side is a C loop, if there are a compiler and the libraries, and node:zlib. What is printed is the best of
 * several rounds: on a noisy machine the least disturbed one says most.
 */

import { closeSync, openSync, readSync, statSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import {
  compileEncoder,
  INPUT_SLACK,
  WASM_CODECS,
  MAX_ENCODED_PAGE,
  OUTPUT_SLACK,
  SCRATCH_BYTES,
  TABLE_ENTRY_BYTES,
} from '../lib/wasm/encoder-module.js';
import { PAGE_SIZE } from '../lib/model/page-size.js';
import { BATCH_PAGES, batchEncoder, type Places, type ThreadData, type Variant } from './wasm-thread.js';
import { type CodecSpeed, measureNative, measureNodeZlib } from './native-codecs.js';

const PAGES = 20_480;
const ROUNDS = 7;
const THREADS = 2;
const READ_BYTES = 4 << 20;

/** Codecs and levels that are measured. */
const VARIANTS: readonly Variant[] = [
  { name: 'lzo, level 1', codec: WASM_CODECS.lzo, level: 1 },
  { name: 'lzo, level 2', codec: WASM_CODECS.lzo, level: 2 },
  { name: 'snappy, level 1', codec: WASM_CODECS.snappy, level: 1 },
  { name: 'snappy, level 2', codec: WASM_CODECS.snappy, level: 2 },
  { name: 'zlib, level 1', codec: WASM_CODECS.zlib, level: 1 },
  { name: 'zlib, level 2', codec: WASM_CODECS.zlib, level: 2 },
  { name: 'zlib, level 4', codec: WASM_CODECS.zlib, level: 4 },
];

/** Non-zero pages of a file of raw memory, evenly spread, back to back. */
function samplePages(path: string, wanted: number): Buffer {
  const file = openSync(path, 'r');
  const found: number[] = [];
  const chunk = Buffer.alloc(READ_BYTES);
  const zeros = Buffer.alloc(PAGE_SIZE);
  const { size } = statSync(path);
  for (let offset = 0; offset < size; offset += READ_BYTES) {
    const length = readSync(file, chunk, 0, READ_BYTES, offset);
    for (let at = 0; at + PAGE_SIZE <= length; at += PAGE_SIZE)
      if (zeros.compare(chunk, at, at + PAGE_SIZE) !== 0) found.push(offset + at);
  }
  const count = Math.min(wanted, found.length);
  const pages = Buffer.alloc(count * PAGE_SIZE);
  for (let i = 0; i < count; i++)
    readSync(file, pages, i * PAGE_SIZE, PAGE_SIZE, found[Math.floor((i * found.length) / count)]!);
  closeSync(file);
  return pages;
}

/** In one thread: the sum of each batch's best time. */
function measureAlone(variant: Variant, data: Omit<ThreadData, 'next'>): CodecSpeed {
  const encode = batchEncoder(data);
  const batches = Math.ceil(data.places.count / BATCH_PAGES);
  const best = new Float64Array(batches).fill(Number.POSITIVE_INFINITY);
  let bytes = 0;
  for (let round = 0; round < ROUNDS; round++) {
    bytes = 0;
    for (let batch = 0; batch < batches; batch++) {
      const started = performance.now();
      bytes += encode(variant, batch);
      best[batch] = Math.min(best[batch]!, performance.now() - started);
    }
  }
  return { seconds: best.reduce((sum, time) => sum + time, 0) / 1000, bytes };
}

/** Threads that take batches in turn: the best round. */
async function measureTogether(variant: Variant, workers: readonly Worker[], next: Int32Array): Promise<number> {
  let best = Number.POSITIVE_INFINITY;
  for (let round = 0; round < ROUNDS; round++) {
    Atomics.store(next, 0, 0);
    const started = performance.now();
    const done = workers.map((worker) => new Promise((resolve) => worker.once('message', resolve)));
    for (const worker of workers) worker.postMessage(variant);
    await Promise.all(done);
    best = Math.min(best, performance.now() - started);
  }
  return best / 1000;
}

/** The pages in memory that threads share, and where each thread has its own things behind them. */
function share(pages: Buffer): { memory: WebAssembly.Memory; placesOf(thread: number): Places } {
  const inputEnd = Math.ceil((pages.length + INPUT_SLACK) / 64) * 64;
  const outBytes = Math.ceil((BATCH_PAGES * MAX_ENCODED_PAGE + OUTPUT_SLACK) / 64) * 64;
  const tableBytes = BATCH_PAGES * TABLE_ENTRY_BYTES;
  const threadBytes = outBytes + tableBytes + SCRATCH_BYTES;
  const units = Math.ceil((inputEnd + THREADS * threadBytes) / 65_536);
  const memory = new WebAssembly.Memory({ initial: units, maximum: units, shared: true });
  new Uint8Array(memory.buffer).set(pages);
  const placesOf = (thread: number): Places => {
    const out = inputEnd + thread * threadBytes;
    const table = out + outBytes;
    return { pages: 0, count: pages.length / PAGE_SIZE, out, table, scratch: table + tableBytes };
  };
  return { memory, placesOf };
}

/**
 * Prints MB/s of pages and the ratio for each codec.
 * @param path raw guest memory
 * @param wanted how many of its non-zero pages to take, evenly spread
 */
export async function printWasmSpeed(path: string, wanted = PAGES): Promise<void> {
  const pages = samplePages(path, wanted);
  console.log(`${pages.length / PAGE_SIZE} non-zero pages; MB/s of pages, best of ${ROUNDS} rounds\n`);
  const { memory, placesOf } = share(pages);
  const module = compileEncoder();
  const next = new Int32Array(new SharedArrayBuffer(4));
  const workers = Array.from({ length: THREADS }, (_, thread) => {
    const data: ThreadData = { module, memory, places: placesOf(thread), next };
    return new Worker(new URL('wasm-thread.js', import.meta.url), { workerData: data });
  });

  const row = (name: string, ...cells: readonly string[]) =>
    console.log(name.padEnd(34) + cells.map((cell) => cell.padStart(13)).join(''));
  const speed = (seconds: number) => (pages.length / seconds / 1e6).toFixed(0);
  const ratio = ({ bytes }: CodecSpeed) => (pages.length / bytes).toFixed(3);

  row('', 'one thread', `${THREADS} threads`, 'ratio');
  for (const variant of VARIANTS) {
    const alone = measureAlone(variant, { module, memory, places: placesOf(0) });
    const together = await measureTogether(variant, workers, next);
    row(`module ${variant.name}`, speed(alone.seconds), speed(together), ratio(alone));
  }
  for (const worker of workers) await worker.terminate();
  for (const [name, result] of measureNative(pages)) row(name, speed(result.seconds), '', ratio(result));
  const node = measureNodeZlib(pages);
  row('node:zlib deflateSync level 1', speed(node.seconds), '', ratio(node));
}
