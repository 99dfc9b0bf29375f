import fc from 'fast-check';
import t from 'tap';
import { PAGE_SIZE } from '../../lib/model/stage.js';
import {
  anyInput,
  anyTables,
  CODECS,
  type Codec,
  decodesTo,
  hardPages,
  WasmBench,
  noise,
  oneMatch,
  text,
  VARIANTS,
  words,
} from './encoder-fixture.js';

const bench = new WasmBench(1);
const benchOfTwo = new WasmBench(2);

/** Encodings longer than a page can be no longer than this. */
const LONGEST: Readonly<Record<Codec, number>> = { zlib: PAGE_SIZE + 11, lzo: 4118, snappy: 4107 };

for (const [codec, level] of VARIANTS) {
  t.test(`${codec} level ${level}`, async (t) => {
    t.test('hard pages', async (t) => {
      for (const [name, page] of hardPages()) {
        const encoded = bench.encode(codec, level, page);
        if (!decodesTo(codec, encoded, page)) t.fail(name);
        if (encoded.length > LONGEST[codec]) t.fail(`${name}: ${encoded.length} bytes`);
      }
    });

    t.test('every length', async (t) => {
      const inputs = [text(PAGE_SIZE), noise(PAGE_SIZE, 77), new Uint8Array(PAGE_SIZE), oneMatch(40, 20, 4000)];
      for (let length = 0; length <= PAGE_SIZE; length++) {
        const input = inputs[length % inputs.length]!.subarray(0, length);
        if (!decodesTo(codec, bench.encode(codec, level, input), input)) t.fail(`${length} bytes`);
        const end = text(PAGE_SIZE).subarray(PAGE_SIZE - length);
        if (length < 200 && !decodesTo(codec, bench.encode(codec, level, end), end)) t.fail(`${length} bytes of text`);
      }
    });

    t.test('any input', async () => {
      fc.assert(
        fc.property(anyInput(PAGE_SIZE), (input) => decodesTo(codec, bench.encode(codec, level, input), input)),
        { numRuns: 1500 },
      );
    });

    t.test('any short input', async () => {
      fc.assert(
        fc.property(fc.uint8Array({ maxLength: 80, max: 3 }), (input) =>
          decodesTo(codec, bench.encode(codec, level, input), input),
        ),
        { numRuns: 3000 },
      );
    });

    t.test('the same bytes whatever was encoded before', async () => {
      const busy = words((index) => index % 37);
      fc.assert(
        fc.property(anyTables(), (page) => {
          bench.forget();
          const fresh = bench.encode(codec, level, page);
          bench.encode(codec, level, busy);
          const later = bench.encode(codec, level, page);
          return later.equals(fresh) && decodesTo(codec, later, page);
        }),
        { numRuns: 500 },
      );
    });

    t.test('the same bytes whatever follows', async () => {
      // The end of the page was there before, and what follows may or may not go on as it did there.
      const seed = fc.integer({ min: 1, max: 1 << 30 });
      const followed = (seed: number, next: number) => {
        const pages = new Uint8Array(2 * PAGE_SIZE);
        const tail = noise(PAGE_SIZE / 2, seed);
        pages.set(tail, PAGE_SIZE / 2);
        pages.set(tail.subarray(100, 108), PAGE_SIZE - (seed % 8));
        pages.fill(next, PAGE_SIZE);
        const { data, sizes } = benchOfTwo.encodeBatch(codec, level, pages);
        return { encoded: Buffer.from(data.subarray(0, sizes[0])), goesOn: tail[100 + (seed % 8)]! };
      };
      fc.assert(
        fc.property(seed, (seed) => {
          const { encoded, goesOn } = followed(seed, 1);
          return [0, 255, goesOn].every((next) => followed(seed, next).encoded.equals(encoded));
        }),
        { numRuns: 200 },
      );
    });
  });
}

t.test('pages with a pattern shrink', async (t) => {
  for (const codec of CODECS) {
    const limit = codec === 'snappy' ? 250 : 60;
    for (const page of [new Uint8Array(PAGE_SIZE).fill(0xcc), oneMatch(8, 8, PAGE_SIZE)])
      t.ok(bench.encode(codec, 1, page).length < limit, codec);
  }
});

t.test('a higher level makes zlib pages smaller', async (t) => {
  const sizeAt = (level: number) => {
    let size = 0;
    for (const [, page] of hardPages()) size += bench.encode('zlib', level, page).length;
    return size;
  };
  t.ok(sizeAt(2) < sizeAt(1));
  t.ok(sizeAt(9) < sizeAt(2));
});
