import { execFileSync } from 'node:child_process';
import { deflateSync } from 'node:zlib';
import fc from 'fast-check';
import { LZO } from 'lzo-ts';
import t from 'tap';
import { PAGE_CODEC_FLAGS } from '../../lib/formats/kdump.js';
import { pageDecoder } from '../../lib/codecs/page-decoder.js';
import { COMPRESS } from '../kdump-fixture.js';
import { needsTools } from '../tools.js';

const CODECS = ['zlib', 'lzo', 'snappy'] as const;

/** Pages of many kinds: random, text, repetitive at all distances, with runs. */
const pages = fc.oneof(
  fc.uint8Array({ minLength: 4096, maxLength: 4096 }),
  fc
    .array(fc.constantFrom('struct ', 'page ', '0x', 'ffff', '\n'), { minLength: 4096, maxLength: 4096 })
    .map((words) => Uint8Array.from(Buffer.from(words.join('').slice(0, 4096).padEnd(4096, '.')))),
  fc.uint8Array({ minLength: 1, maxLength: 3000 }).map((part) => Uint8Array.from(Buffer.alloc(4096, part))),
  fc.array(fc.tuple(fc.nat(255), fc.integer({ min: 1, max: 700 })), { minLength: 1, maxLength: 40 }).map((runs) => {
    const page = new Uint8Array(4096);
    let at = 0;
    for (const [byte, length] of runs) {
      page.fill(byte, at, at + length);
      at += length;
    }
    return page;
  }),
);

for (const codec of CODECS) {
  const decode = pageDecoder(PAGE_CODEC_FLAGS[codec])!;

  t.test(`property: ${codec}: what an independent encoder made comes back`, async () => {
    fc.assert(
      fc.property(pages, (page) => {
        const into = new Uint8Array(4096);
        return decode(COMPRESS[codec](page), into) && Buffer.compare(into, page) === 0;
      }),
      { numRuns: 200 },
    );
  });

  t.test(`fuzz: ${codec}: damaged input ends, and never writes elsewhere`, async () => {
    const damage = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 0, maxLength: 6 });
    fc.assert(
      fc.property(pages, damage, fc.double({ min: 0, max: 1, noNaN: true }), (page, changes, cut) => {
        const input = Uint8Array.from(COMPRESS[codec](page));
        for (const [at, byte] of changes) input[at % input.length] = byte;
        const arena = new Uint8Array(4096 * 3).fill(0xa5);
        decode(input.subarray(0, Math.ceil(input.length * cut)), arena.subarray(4096, 8192));
        return [...arena.subarray(0, 4096), ...arena.subarray(8192)].every((byte) => byte === 0xa5);
      }),
      { numRuns: 300 },
    );
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (input) => {
        decode(input, new Uint8Array(4096));
      }),
      { numRuns: 1000 },
    );
  });

  t.test(`${codec}: what is cut, longer or shorter than a page is refused`, async (t) => {
    const compressed = (length: number) => COMPRESS[codec](new Uint8Array(length).fill(7));
    t.equal(decode(compressed(4096), new Uint8Array(4096)), true);
    t.equal(decode(compressed(4096).subarray(0, -1), new Uint8Array(4096)), false);
    t.equal(decode(compressed(4097), new Uint8Array(4096)), false);
    t.equal(decode(compressed(4095), new Uint8Array(4096)), false);
    t.equal(decode(compressed(2 ** 20), new Uint8Array(4096)), false);
    t.equal(decode(new Uint8Array(0), new Uint8Array(4096)), false);
  });
}

t.test('LZO: all forms of literals and matches at every length of output', async (t) => {
  // Random bytes of few values over short and long distances make every instruction of the format.
  for (let length = 1; length <= 4096; length += length < 300 ? 1 : 61) {
    const bytes = new Uint8Array(length).map((_, i) => (i * 2654435761) % (i % 7 === 0 ? 251 : 3));
    const into = new Uint8Array(length);
    if (!pageDecoder(2)!(LZO.compress(bytes), into) || Buffer.compare(into, bytes) !== 0) t.fail(`length ${length}`);
  }
});

t.test('LZO: a far match, beyond 16 KiB', async (t) => {
  const bytes = new Uint8Array(40000).map(() => Math.floor(Math.random() * 256));
  bytes.copyWithin(36000, 100, 3000);
  const into = new Uint8Array(bytes.length);
  t.equal(pageDecoder(2)!(LZO.compress(bytes), into), true);
  t.same(into, bytes);
});

t.test('flags that are no codec, or two, have no decoder', async (t) => {
  for (const flags of [0, 3, 8, 0x10, 0x40, 0x80000000]) t.equal(pageDecoder(flags), null);
});

t.test('a decompression bomb costs a page', async (t) => {
  const bomb = deflateSync(new Uint8Array(64 << 20));
  t.equal(pageDecoder(1)!(bomb, new Uint8Array(4096)), false);
});

const noZstd = needsTools('zstd') || (pageDecoder(0x20) === null && 'neither Node nor the package fzstd has zstd here');

t.test('zstd: what the zstd tool made comes back, if it is a page', { skip: noZstd }, async (t) => {
  const decode = pageDecoder(0x20)!;
  const compress = (input: Uint8Array) =>
    execFileSync('zstd', ['-q', '-c', `--stream-size=${input.length}`], { input });
  const page = new Uint8Array(4096).map((_, i) => (i * i) >> 5);
  const into = new Uint8Array(4096);
  t.equal(decode(compress(page), into), true);
  t.equal(Buffer.compare(into, page), 0);
  for (const length of [0, 4095, 4097, 1 << 24]) t.equal(decode(compress(new Uint8Array(length)), into), false);
  t.equal(decode(compress(page).subarray(0, 100), into), false);
});
