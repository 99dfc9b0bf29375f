/**
 * The page kernel alone: MB/s in one thread and in two, and the ratio, beside what native libraries do with the pages.
 *
 *   node dist/bench/kernel-speed.js [MEMORY [PAGES]]
 *
 * MEMORY is a file of raw guest memory, the first Linux guest in .guests by default. Of its non-zero pages, 20,480 are
 * taken, evenly spread. The native side is a C loop, if there are a compiler and the libraries, and node:zlib. What is
 * printed is the best of several rounds: on a noisy machine the least disturbed one says most.
 */

import { execFileSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { deflateSync } from 'node:zlib';
import {
  compileKernel,
  INPUT_SLACK,
  instantiateKernel,
  KERNEL_CODECS,
  MAX_ENCODED_PAGE,
  OUTPUT_SLACK,
  SCRATCH_BYTES,
  SIZE_BYTES,
  TABLE_ENTRY_BYTES,
} from '../lib/kernel/kernel.js';
import { PAGE_SIZE } from '../lib/stage.js';

const PAGES = 20_480;
const BATCH_PAGES = 256;
const ROUNDS = 7;
const THREADS = 2;
const READ_BYTES = 4 << 20;

/** Codecs and levels that are measured. */
const VARIANTS = [
  { name: 'lzo', codec: KERNEL_CODECS.lzo, level: 1 },
  { name: 'snappy', codec: KERNEL_CODECS.snappy, level: 1 },
  { name: 'zlib, level 1', codec: KERNEL_CODECS.zlib, level: 1 },
  { name: 'zlib, level 2', codec: KERNEL_CODECS.zlib, level: 2 },
  { name: 'zlib, level 4', codec: KERNEL_CODECS.zlib, level: 4 },
];

/** Where things are in the kernel's memory; what threads have of their own comes one thread behind the other. */
interface Places {
  readonly pages: number;
  readonly count: number;
  readonly out: number;
  readonly table: number;
  readonly scratch: number;
}

/** What a thread starts with. */
interface ThreadData {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly places: Places;
  /** number of the next batch, shared by the threads of a round */
  readonly next: Int32Array;
}

/** What a codec came to, with times in seconds. */
interface Result {
  readonly seconds: number;
  readonly bytes: number;
}

type Variant = (typeof VARIANTS)[number];

/** Makes a function that encodes one batch of the pages, and gives its size. */
function batchEncoder({ module, memory, places }: Omit<ThreadData, 'next'>) {
  const { pages, count, out, table, scratch } = places;
  const kernel = instantiateKernel(module, memory);
  kernel.init(scratch);
  return ({ codec, level }: Variant, batch: number): number => {
    const first = batch * BATCH_PAGES;
    const size = Math.min(BATCH_PAGES, count - first);
    return kernel.encodeBatch(
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

/** Number of the round's next batch for each message, until there are none. */
function runThread(data: ThreadData): void {
  const encode = batchEncoder(data);
  const batches = Math.ceil(data.places.count / BATCH_PAGES);
  parentPort!.on('message', (variant: Variant) => {
    for (let batch = Atomics.add(data.next, 0, 1); batch < batches; batch = Atomics.add(data.next, 0, 1))
      encode(variant, batch);
    parentPort!.postMessage(null);
  });
}

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

/** One thread: the sum of each batch's best time. */
function measureAlone(variant: Variant, data: Omit<ThreadData, 'next'>): Result {
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

/** Prints a line of name, seconds and bytes for each library; takes the file of pages. */
const NATIVE = `
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zlib.h>
int lzo1x_1_compress(const unsigned char *, size_t, unsigned char *, size_t *, void *);
int snappy_compress(const char *, size_t, char *, size_t *);
static unsigned char page[4096], out[8192], work[1 << 17];
static z_stream stream;
static size_t lzo(unsigned char *in) { size_t n; lzo1x_1_compress(in, 4096, out, &n, work); return n; }
static size_t snap(unsigned char *in) { size_t n = sizeof out; snappy_compress((char *)in, 4096, (char *)out, &n); return n; }
static size_t fresh(unsigned char *in) { uLongf n = sizeof out; compress2(out, &n, in, 4096, 1); return n; }
static size_t reused(unsigned char *in) {
  deflateReset(&stream);
  stream.next_in = in; stream.avail_in = 4096; stream.next_out = out; stream.avail_out = sizeof out;
  deflate(&stream, Z_FINISH);
  return stream.total_out;
}
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static void run(const char *name, size_t (*encode)(unsigned char *), unsigned char *pages, size_t size) {
  double best = 1e9; size_t bytes = 0;
  for (int round = 0; round < 4; round++) {
    double start = now(); bytes = 0;
    for (size_t at = 0; at < size; at += 4096) { size_t n = encode(pages + at); bytes += n < 4096 ? n : 4096; }
    if (now() - start < best) best = now() - start;
  }
  printf("%s\\t%f\\t%zu\\n", name, best, bytes);
}
int main(int count, char **arguments) {
  FILE *file = fopen(arguments[1], "rb");
  size_t size = 0; unsigned char *pages = NULL;
  while (fread(page, 1, 4096, file) == 4096) {
    if (size % (1 << 24) == 0) pages = realloc(pages, size + (1 << 24));
    memcpy(pages + size, page, 4096); size += 4096;
  }
  deflateInit(&stream, 1);
  run("liblzo2 lzo1x_1_compress", lzo, pages, size);
  run("libsnappy snappy_compress", snap, pages, size);
  run("zlib level 1, compress2 (QEMU's)", fresh, pages, size);
  run("zlib level 1, one z_stream", reused, pages, size);
}
`;

/** What native libraries do with the pages, by name; nothing where they or a compiler are not to be had. */
function measureNative(pages: Buffer): Map<string, Result> {
  const folder = mkdtempSync(join(tmpdir(), 'kernel-speed-'));
  try {
    const [source, program, input] = ['native.c', 'native', 'pages'].map((name) => join(folder, name));
    writeFileSync(source!, NATIVE);
    writeFileSync(input!, pages);
    const libraries = ['-lz', '-l:liblzo2.so.2', '-l:libsnappy.so.1'];
    execFileSync('cc', ['-O2', '-o', program!, source!, ...libraries], { stdio: 'ignore' });
    const lines = execFileSync(program!, [input!], { encoding: 'utf8' }).trim().split('\n');
    return new Map(
      lines.map((line) => {
        const [name = '', seconds, bytes] = line.split('\t');
        return [name, { seconds: Number(seconds), bytes: Number(bytes) }];
      }),
    );
  } catch {
    console.log('(no cc, zlib.h, liblzo2.so.2 or libsnappy.so.1: no native libraries to compare with)');
    return new Map();
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function measureNodeZlib(pages: Buffer): Result {
  let bytes = 0;
  const started = performance.now();
  for (let at = 0; at < pages.length; at += PAGE_SIZE)
    bytes += Math.min(PAGE_SIZE, deflateSync(pages.subarray(at, at + PAGE_SIZE), { level: 1 }).length);
  return { seconds: (performance.now() - started) / 1000, bytes };
}

/** Memory of the first Linux guest that the tests have built. */
function firstGuest(): string {
  const paths = readdirSync('.guests').map((name) => join('.guests', name, 'guest.ram'));
  const path = paths.find((path) => path.includes('linux') && existsSync(path));
  if (!path) throw new Error('no guest memory: name a file');
  return path;
}

async function main(): Promise<void> {
  const path = process.argv[2] ?? firstGuest();
  const pages = samplePages(path, Number(process.argv[3] ?? PAGES));
  const count = pages.length / PAGE_SIZE;
  console.log(`${count} non-zero pages of ${path}; MB/s of pages, best of ${ROUNDS} rounds\n`);

  const inputEnd = Math.ceil((pages.length + INPUT_SLACK) / 64) * 64;
  const outBytes = Math.ceil((BATCH_PAGES * MAX_ENCODED_PAGE + OUTPUT_SLACK) / 64) * 64;
  const tableBytes = BATCH_PAGES * TABLE_ENTRY_BYTES;
  const threadBytes = outBytes + tableBytes + SCRATCH_BYTES;
  const placesOf = (thread: number): Places => {
    const out = inputEnd + thread * threadBytes;
    return { pages: 0, count, out, table: out + outBytes, scratch: out + outBytes + tableBytes };
  };
  const units = Math.ceil((inputEnd + THREADS * threadBytes) / 65_536);
  const memory = new WebAssembly.Memory({ initial: units, maximum: units, shared: true });
  new Uint8Array(memory.buffer).set(pages);
  const module = compileKernel();
  const next = new Int32Array(new SharedArrayBuffer(4));
  const workers = Array.from({ length: THREADS }, (_, thread) => {
    const data: ThreadData = { module, memory, places: placesOf(thread), next };
    return new Worker(new URL(import.meta.url), { workerData: data });
  });

  const row = (name: string, ...cells: readonly string[]) =>
    console.log(name.padEnd(34) + cells.map((cell) => cell.padStart(13)).join(''));
  const speed = (seconds: number) => (pages.length / seconds / 1e6).toFixed(0);
  const ratio = ({ bytes }: Result) => (pages.length / bytes).toFixed(3);

  row('', 'one thread', `${THREADS} threads`, 'ratio');
  for (const variant of VARIANTS) {
    const alone = measureAlone(variant, { module, memory, places: placesOf(0) });
    const together = await measureTogether(variant, workers, next);
    row(`kernel ${variant.name}`, speed(alone.seconds), speed(together), ratio(alone));
  }
  for (const worker of workers) await worker.terminate();
  for (const [name, result] of measureNative(pages)) row(name, speed(result.seconds), '', ratio(result));
  const node = measureNodeZlib(pages);
  row('node:zlib deflateSync level 1', speed(node.seconds), '', ratio(node));
}

if (isMainThread) await main();
else runThread(workerData as ThreadData);
