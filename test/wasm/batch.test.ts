import { Worker } from 'node:worker_threads';
import fc from 'fast-check';
import t from 'tap';
import { WASM_CODECS, SCRATCH_BYTES, SIZE_BYTES, TABLE_ENTRY_BYTES } from '../../lib/wasm/encoder-module.js';
import { PAGE_COMPRESSED, PAGE_SIZE, PAGE_STORED, PAGE_ZERO } from '../../lib/model/stage.js';
import type { BatchJob } from './batch-worker.js';
import { CODECS, decodesTo, hardPages, WasmBench, noise, text, VARIANTS } from './encoder-fixture.js';

const CAPACITY = 64;
const bench = new WasmBench(CAPACITY);

const ZEROS = new Uint8Array(PAGE_SIZE);
const NOISE = noise(PAGE_SIZE, 4);
const TEXT = text(PAGE_SIZE);

function join(pages: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(pages));
}

/** Encodes pages as a batch and tells the first thing that is wrong with the outcome. */
function faultOf(codec: (typeof CODECS)[number], level: number, pages: readonly Uint8Array[]): string | null {
  const { kinds, sizes, data } = bench.encodeBatch(codec, level, join(pages));
  let at = 0;
  for (const [index, page] of pages.entries()) {
    const size = sizes[index]!;
    const encoded = data.subarray(at, at + size);
    at += size;
    const isZero = page.every((byte) => byte === 0);
    if (isZero !== (kinds[index] === PAGE_ZERO)) return `page ${index}: kind ${kinds[index]}`;
    switch (kinds[index]) {
      case PAGE_ZERO:
        if (size !== 0) return `page ${index}: zero, of ${size} bytes`;
        break;
      case PAGE_STORED:
        if (Buffer.compare(encoded, page) !== 0) return `page ${index}: stored, and not as it is`;
        if (bench.encode(codec, level, page).length < PAGE_SIZE) return `page ${index}: stored, but shrinks`;
        break;
      case PAGE_COMPRESSED:
        if (size >= PAGE_SIZE) return `page ${index}: compressed to ${size} bytes`;
        if (!decodesTo(codec, encoded, page)) return `page ${index}: decodes to something else`;
        break;
      default:
        return `page ${index}: kind ${kinds[index]}`;
    }
  }
  return at === data.length ? null : `sizes add up to ${at}, not ${data.length}`;
}

for (const [codec, level] of VARIANTS) {
  t.test(`${codec} level ${level}: batches`, async (t) => {
    t.equal(faultOf(codec, level, []), null, 'no pages');
    t.equal(faultOf(codec, level, [ZEROS, TEXT, NOISE, ZEROS, ZEROS, NOISE, NOISE, TEXT, ZEROS]), null, 'every kind');
    t.equal(faultOf(codec, level, Array(CAPACITY).fill(NOISE)), null, 'a full output');
    t.equal(faultOf(codec, level, Array(CAPACITY).fill(ZEROS)), null, 'an empty output');
    const hard = [...hardPages()].map(([, page]) => page);
    for (let at = 0; at < hard.length; at += CAPACITY)
      t.equal(faultOf(codec, level, hard.slice(at, at + CAPACITY)), null, `hard pages from ${at}`);
    fc.assert(
      fc.property(fc.array(fc.constantFrom(ZEROS, TEXT, NOISE, ...hard), { maxLength: CAPACITY }), (pages) => {
        t.equal(faultOf(codec, level, pages), null);
      }),
      { numRuns: 40 },
    );
  });
}

t.test('every kind is counted', async (t) => {
  for (const codec of CODECS) {
    const { kinds, sizes } = bench.encodeBatch(codec, 1, join([ZEROS, NOISE, TEXT, ZEROS]));
    t.same([...kinds], [PAGE_ZERO, PAGE_STORED, PAGE_COMPRESSED, PAGE_ZERO]);
    t.same([sizes[0], sizes[1], sizes[3]], [0, PAGE_SIZE, 0]);
  }
});

t.test('a page with one byte that is not zero is no zero page', async (t) => {
  for (let at = 0; at < PAGE_SIZE; at++) {
    const page = new Uint8Array(PAGE_SIZE);
    page[at] = 0x80;
    if (bench.encodeBatch('snappy', 1, page).kinds[0] === PAGE_ZERO) t.fail(`byte ${at}`);
  }
});

t.test('threads over one memory give the same bytes', async (t) => {
  const pages = join([...hardPages()].map(([, page]) => page));
  const count = pages.length / PAGE_SIZE;
  const outBytes = pages.length + PAGE_SIZE;
  const tableBytes = Math.ceil((count * TABLE_ENTRY_BYTES) / 64) * 64;
  const input = 0;
  const placesOf = (thread: number) => outBytes + thread * (outBytes + tableBytes + SCRATCH_BYTES);
  const units = Math.ceil(placesOf(2) / 65_536);
  const memory = new WebAssembly.Memory({ initial: units, maximum: units, shared: true });
  const bytes = new Uint8Array(memory.buffer);
  bytes.set(pages, input);
  for (const codec of CODECS) {
    const results = await Promise.all(
      [0, 1].map(async (thread) => {
        const out = placesOf(thread);
        const table = out + outBytes;
        const scratch = table + tableBytes;
        const job: BatchJob = {
          module: bench.kernel,
          memory,
          codec: WASM_CODECS[codec],
          pages: input,
          count,
          out,
          sizes: table,
          kinds: table + count * SIZE_BYTES,
          scratch,
          rounds: 20,
        };
        const worker = new Worker(new URL('./batch-worker.js', import.meta.url), { workerData: job });
        const size = await new Promise<number>((resolve, reject) => worker.on('message', resolve).on('error', reject));
        return [bytes.slice(out, out + size), bytes.slice(table, table + count * TABLE_ENTRY_BYTES)] as const;
      }),
    );
    const [[data, table], [otherData, otherTable]] = results as [(typeof results)[0], (typeof results)[0]];
    t.equal(Buffer.compare(otherData, data), 0, `${codec}: encodings of two threads`);
    t.equal(Buffer.compare(otherTable, table), 0, `${codec}: tables of two threads`);
    const alone = new WasmBench(count).encodeBatch(codec, 1, pages);
    t.equal(Buffer.compare(alone.data, data), 0, `${codec}: as in one thread`);
  }
});
