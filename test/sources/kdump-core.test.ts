import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { deflateSync } from 'node:zlib';
import fc from 'fast-check';
import t from 'tap';
import { dump } from '../../lib/dump.js';
import { encodeFlattenedEnd, encodeFlattenedHeader, encodeFlattenedRecord } from '../../lib/formats/flattened.js';
import { encodePageDescriptor } from '../../lib/formats/kdump.js';
import { decodePrstatus } from '../../lib/formats/notes.js';
import type { ByteInput } from '../../lib/io/byte-input.js';
import { FileBacking } from '../../lib/io/file-backing.js';
import { KDUMP_CODECS, type KdumpLayout, planKdump } from '../../lib/layouts/kdump-layout.js';
import { VmcoreError } from '../../lib/model/errors.js';
import type { Guest } from '../../lib/model/guest.js';
import { openGuest } from '../../lib/open-guest.js';
import { demoGuest } from '../../lib/sources/demo/demo.js';
import { FlattenedFile } from '../../lib/sources/kdump/flattened-file.js';
import { openKdump } from '../../lib/sources/kdump/kdump-core.js';
import { DEFAULT_KDUMP_LIMITS } from '../../lib/sources/kdump/kdump-headers.js';
import { openKdumpStream } from '../../lib/sources/kdump/kdump-stream.js';
import { MemoryGuest } from '../../lib/sources/memory-guest.js';
import { BufferBacking, patternGuest } from '../guest-fixture.js';
import { kdumpBytes } from '../kdump-fixture.js';
import { plainly } from '../plain-chunk.js';
import { prstatus64 } from './elf-fixtures.js';

const folder = mkdtempSync(join(tmpdir(), 'vmcore-kdump-'));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));

/** Writes bytes to a file and opens it. */
async function openBytes(bytes: Uint8Array, limits = DEFAULT_KDUMP_LIMITS) {
  const path = join(folder, 'vmcore');
  writeFileSync(path, bytes);
  return openKdump(path, limits);
}

/** All of a guest's memory by streaming. */
async function streamed(guest: Guest): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for await (const { length, data, release } of plainly(guest.chunks())) {
    parts.push(data ? Uint8Array.from(data) : new Uint8Array(length));
    release?.();
  }
  return Buffer.concat(parts);
}

/** All of a guest's memory by random access. */
function read(guest: Guest): Buffer {
  return Buffer.concat(
    guest.blocks.map(({ base, length }) => {
      const bytes = Buffer.alloc(length);
      for (let at = 0; at < length; at += 1000) guest.memory!.read(base + at, bytes.subarray(at, at + 1000));
      return bytes;
    }),
  );
}

/** A guest of whole pages, each filled with a value; 0 for a zero page, 255 for one of noise. */
function guestOf(...runs: readonly [pfn: number, values: readonly number[]][]): MemoryGuest {
  return new MemoryGuest({
    name: 'pages',
    arch: 'x86_64',
    regions: runs.map(([pfn, values]) => {
      const bytes = new Uint8Array(values.length * 4096);
      values.forEach((value, i) => {
        const page = bytes.subarray(i * 4096, (i + 1) * 4096);
        if (value === 255) for (let at = 0; at < 4096; at++) page[at] = Math.floor(Math.random() * 256);
        else page.fill(value);
      });
      return { base: pfn * 4096, length: bytes.length, backing: new BufferBacking(bytes), offset: 0 };
    }),
    cpus: [],
    notes: [],
  });
}

const GUEST = guestOf([0, [1, 0, 255, 3, 0]], [16, [4, 255]]);

for (const codec of KDUMP_CODECS)
  for (const flattened of [false, true])
    t.test(`${codec}${flattened ? ', flattened' : ''}: what was dumped is read`, async (t) => {
      const guest = await openBytes(await kdumpBytes(GUEST, { codec, flattened }));
      t.strictSame(
        guest.blocks.map(({ base, length }) => [base, length]),
        [
          [0, 5 * 4096],
          [16 * 4096, 2 * 4096],
        ],
      );
      t.match(guest, { arch: 'x86_64', flattened, pageCounts: { memory: 7, stored: 7, excluded: 0 } });
      t.equal(Buffer.compare(read(guest), read(GUEST)), 0);
      t.equal(Buffer.compare(await streamed(guest), read(GUEST)), 0);
      guest.close();
    });

t.test('CPUs of which but some have control registers come back in order, after kdump and after ELF', async (t) => {
  const half = decodePrstatus(prstatus64(0x1111n, 1n))!;
  const whole = { ...demoGuest().cpus[0]!, rip: 0x2222n, rsp: 2n, longMode: true };
  const guest = patternGuest([{ base: 0, length: 1 << 20 }], { cpus: [half, whole] });
  const asKdump = await openBytes(await kdumpBytes(guest, { codec: 'zlib' }));
  const target = join(folder, 'half-cpus.elf');
  await dump(guest, {}, { file: target }).finished;
  const asElf = await openGuest(target);
  for (const [format, { cpus }] of Object.entries({ asKdump, asElf }))
    t.match(
      cpus,
      [
        { rip: 0x1111n, rsp: 1n, system: null },
        { rip: 0x2222n, rsp: 2n, system: { cr3: whole.system!.cr3 } },
      ],
      format,
    );
  asKdump.close();
  asElf.close();
});

t.test('property: any guest comes back, flattened or not, as a stream or at random', async () => {
  const values = fc.array(fc.constantFrom(0, 0, 0, 7, 9, 255), { minLength: 1, maxLength: 60 });
  const runs = fc.array(fc.record({ gap: fc.integer({ min: 1, max: 5000 }), values }), { minLength: 1, maxLength: 4 });
  await fc.assert(
    fc.asyncProperty(runs, fc.constantFrom(...KDUMP_CODECS), fc.boolean(), async (parts, codec, flattened) => {
      let pfn = 0;
      const guest = guestOf(
        ...parts.map(({ gap, values }): [number, number[]] => {
          pfn += gap + values.length;
          return [pfn - values.length, values];
        }),
      );
      const opened = await openBytes(await kdumpBytes(guest, { codec, flattened }));
      const same = Buffer.compare(read(opened), read(guest)) === 0;
      const sameStream = Buffer.compare(await streamed(opened), read(guest)) === 0;
      opened.close();
      return same && sameStream && opened.blocks.length === guest.blocks.length;
    }),
    { numRuns: 40 },
  );
});

t.test('device memory far above: what is dumped is read, and it is said what is far', async (t) => {
  const far = 56 * 2 ** 40;
  const guest = patternGuest([
    { base: 0, length: 1 << 20 },
    { base: far, length: 1 << 20 },
  ]);
  for (const format of ['kdump-raw-lzo', 'kdump-lzo'] as const) {
    const target = join(folder, `far.${format}`);
    const { warnings } = await dump(guest, { format }, { file: target }).finished;
    t.match(warnings, [
      /^memory block 0x380000000000\+0x100000 lies so high that .* two bitmaps of 1\.75 GiB.*; --begin 0 --length 1M leaves it out$/,
    ]);
    const opened = await openKdump(target);
    t.match(opened.pageCounts, { memory: 512, stored: 512 });
    t.equal(Buffer.compare(await streamed(opened), await streamed(guest)), 0);
    opened.close();
  }
  const { warnings } = await dump(
    guest,
    { format: 'kdump-lzo', range: { base: 0, length: 1 << 20 } },
    { file: join(folder, 'near') },
  ).finished;
  t.same(warnings, []);
});

t.test('runs of zero pages are told as holes', async (t) => {
  const guest = await openBytes(
    await kdumpBytes(guestOf([0, [...new Array(100).fill(0), 5, ...new Array(200).fill(0)]]), { codec: 'lzo' }),
  );
  const { backing } = guest.memory.regions[0]!;
  t.strictSame(backing!.nextData!(10, 301 * 4096), { start: 100 * 4096, end: 101 * 4096 });
  t.equal(backing!.nextData!(101 * 4096, 301 * 4096), null);
  t.strictSame(backing!.nextData!(100 * 4096 + 5, 100 * 4096 + 9), { start: 100 * 4096 + 5, end: 100 * 4096 + 9 });
  let read = 0;
  for await (const { data } of plainly(guest.chunks())) read += data?.length ?? 0;
  t.equal(read, 4096);
  guest.close();
});

t.test('a 32-bit guest has a 32-bit header', async (t) => {
  const source = patternGuest([{ base: 0, length: 16 << 20 }], { arch: 'i386' });
  const guest = await openBytes(await kdumpBytes(source, { codec: 'zlib' }));
  t.match(guest, { arch: 'i386', headers: { class: 1, header: { utsname: { machine: 'i686' } } } });
  t.equal(Buffer.compare(await streamed(guest), await streamed(source)), 0);
  guest.close();
});

t.test('pages that makedumpfile left out are memory that reads as zeros, and are counted', async (t) => {
  const bytes = await kdumpBytes(GUEST, { codec: 'zlib' });
  const layout = planKdump(GUEST, { codec: 'zlib' });
  // Page 1 (zeros) and page 3 leave the second bitmap; the descriptors behind them move up.
  bytes[layout.bitmapOffset + layout.bitmapBytes] = 0b10101;
  const table = bytes.subarray(layout.descriptorsOffset, layout.zeroPageOffset);
  const kept = [0, 2, 4, 5, 6].map((i) => Buffer.from(table.subarray(24 * i, 24 * i + 24)));
  Buffer.concat(kept).copy(table);
  const guest = await openBytes(bytes);
  t.match(guest.pageCounts, { memory: 7, stored: 5, excluded: 2 });
  const expected = read(GUEST);
  expected.fill(0, 3 * 4096, 4 * 4096);
  t.equal(Buffer.compare(await streamed(guest), expected), 0);
  t.equal(Buffer.compare(read(guest), expected), 0);
  guest.close();
});

t.test('CPUs and notes come back', async (t) => {
  const { cpus, notes } = await openBytes(await kdumpBytes(GUEST, { codec: 'zlib' }));
  t.strictSame([cpus.length, notes.length], [0, 0]);
});

// Hostile files -------------------------------------------------------------------------------------------------------

const VALID = await kdumpBytes(GUEST, { codec: 'zlib' });
const LAYOUT = planKdump(GUEST, { codec: 'zlib' });

/** A copy of a valid file with some of it changed. */
function changed(change: (view: DataView, bytes: Buffer, layout: KdumpLayout) => void): Buffer {
  const bytes = Buffer.from(VALID);
  change(new DataView(bytes.buffer, bytes.byteOffset, bytes.length), bytes, LAYOUT);
  return bytes;
}

/** Opens and reads everything. */
async function readAll(bytes: Uint8Array): Promise<void> {
  const guest = await openBytes(bytes);
  try {
    await streamed(guest);
    read(guest);
  } finally {
    guest.close();
  }
}

const descriptor = (index: number, offset: number, size: number, flags: number) =>
  changed((view, _, { descriptorsOffset }) =>
    encodePageDescriptor(view, descriptorsOffset + 24 * index, offset, size, flags),
  );

/** A page of the file whose bytes are replaced, with its size. */
const replaced = (data: Uint8Array) => Buffer.concat([descriptor(0, VALID.length, data.length, 1), data]);

const HOSTILE: readonly [string, Buffer, string, RegExp][] = [
  ['an empty file', Buffer.alloc(0), 'TRUNCATED', /ends at byte 0/],
  ['another file', Buffer.alloc(10000, 'x'), 'BAD_INPUT', /is not a kdump/],
  ['a header alone', VALID.subarray(0, 464), 'TRUNCATED', /the sub header reaches/],
  ['a file cut in its bitmaps', VALID.subarray(0, LAYOUT.bitmapOffset + 10), 'TRUNCATED', /its bitmaps reach/],
  ['a file cut in its descriptors', VALID.subarray(0, LAYOUT.descriptorsOffset + 30), 'TRUNCATED', /descriptors/],
  ['a file cut in its pages', VALID.subarray(0, -10), 'TRUNCATED', /page 0x11000 reaches/],
  ['no block size', changed((view) => view.setUint32(428, 0, true)), 'BAD_INPUT', /damaged/],
  ['a future version', changed((view) => view.setUint32(8, 7, true)), 'UNSUPPORTED', /version 7/],
  ['another machine', changed((_, bytes) => bytes.write('s390x\0', 12 + 4 * 65)), 'UNSUPPORTED', /s390x/],
  ['a bitmap larger than the file', changed((view) => view.setUint32(436, 0x7fff_fffe, true)), 'TRUNCATED', /bitmaps/],
  ['more pages than bits', changed((view) => view.setBigUint64(4096 + 96, 70000n, true)), 'BAD_INPUT', /70000 page/],
  ['2^63 pages', changed((view) => view.setBigUint64(4096 + 96, 2n ** 63n, true)), 'BAD_INPUT', /page frames/],
  ['no pages', changed((view) => view.setBigUint64(4096 + 96, 0n, true)), 'BAD_INPUT', /0 page frames/],
  [
    'an empty bitmap',
    changed((_, bytes, l) => bytes.fill(0, l.bitmapOffset, l.descriptorsOffset)),
    'BAD_INPUT',
    /empty/,
  ],
  ['a split dump', changed((view) => view.setUint32(4096 + 12, 1, true)), 'UNSUPPORTED', /part of a split dump/],
  ['an incomplete dump', changed((view) => view.setUint32(424, 9, true)), 'TRUNCATED', /incomplete/],
  [
    'notes beyond the file',
    changed((view) => view.setBigUint64(4096 + 56, 2n ** 21n, true)),
    'TRUNCATED',
    /notes reach/,
  ],
  ['notes without bound', changed((view) => view.setBigUint64(4096 + 56, 2n ** 40n, true)), 'LIMIT', /maxNoteBytes/],
  ['a page in the headers', descriptor(0, 100, 50, 1), 'BAD_INPUT', /page 0x0 .*inside the headers/],
  ['a page of no bytes', descriptor(2, LAYOUT.zeroPageOffset + 4096, 0, 1), 'BAD_INPUT', /page 0x2000 claims 0 bytes/],
  ['a page of more than a page', descriptor(0, LAYOUT.zeroPageOffset + 4096, 4097, 1), 'BAD_INPUT', /4097 bytes/],
  ['a plain page of less', descriptor(0, LAYOUT.zeroPageOffset + 4096, 4095, 0), 'BAD_INPUT', /4095 bytes/],
  ['unknown flags', descriptor(0, LAYOUT.zeroPageOffset + 4096, 100, 0x40), 'BAD_INPUT', /flags 0x40/],
  ['two codecs', descriptor(0, LAYOUT.zeroPageOffset + 4096, 100, 3), 'BAD_INPUT', /flags 0x3/],
  ['a page beyond the file', descriptor(0, 2 ** 50, 100, 1), 'TRUNCATED', /page 0x0 reaches/],
  ['a page at 2^64', descriptor(0, 2 ** 64 - 2 ** 11, 100, 1), 'TRUNCATED', /page 0x0 reaches beyond byte 2\^53$/],
  [
    'another codec than it says',
    descriptor(0, LAYOUT.zeroPageOffset + 4096, 20, 2),
    'BAD_INPUT',
    /does not decompress/,
  ],
  ['a decompression bomb', replaced(deflateSync(Buffer.alloc(1 << 20)).subarray(0, 4096)), 'BAD_INPUT', /decompress/],
  ['a page that is too short', replaced(deflateSync(Buffer.alloc(100))), 'BAD_INPUT', /decompress/],
];

for (const [name, bytes, code, message] of HOSTILE)
  t.test(`hostile: ${name}`, (t) => t.rejects(readAll(bytes), { code, message }));

/** A kdump with such a header, and the NT_PRSTATUS of a CPU, written by hand; QEMU has no name for any machine. */
function foreignKdump(bits: 32 | 64, littleEndian: boolean, blockSize: number, prstatusBytes: number): Buffer {
  const bytes = Buffer.alloc(2 * blockSize + 4096);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const u32 = (at: number, value: number) => view.setUint32(at, value, littleEndian);
  bytes.write('KDUMP   ');
  u32(8, 6);
  bytes.write('Unknown', 12 + 4 * 65);
  const status = bits === 64 ? 424 : 412;
  [1, blockSize, 1, 2, 16].forEach((value, i) => u32(status + 4 * i, value));
  const offsetNote = blockSize + (bits === 64 ? 104 : 80);
  const [offsetAt, sizeAt] = bits === 64 ? [48, 56] : [32, 40];
  view.setBigUint64(blockSize + offsetAt, BigInt(offsetNote), littleEndian);
  if (bits === 64) view.setBigUint64(blockSize + sizeAt, BigInt(20 + prstatusBytes), littleEndian);
  else u32(blockSize + sizeAt, 20 + prstatusBytes);
  view.setBigUint64(blockSize + (bits === 64 ? 96 : 72), 16n, littleEndian);
  [5, prstatusBytes, 1].forEach((value, i) => u32(offsetNote + 4 * i, value));
  bytes.write('CORE', offsetNote + 12);
  bytes[2 * blockSize] = 1;
  return bytes;
}

const FOREIGN: readonly [machine: string, ...Parameters<typeof foreignKdump>][] = [
  ['riscv64', 64, true, 4096, 376],
  ['riscv32', 32, true, 4096, 204],
  ['arm', 32, true, 4096, 148],
  ['loongarch64', 64, true, 4096, 480],
  ['loongarch64', 64, true, 16384, 480],
  ['aarch64', 64, true, 65536, 392],
  ['ppc64le', 64, true, 65536, 504],
  ['ppc64', 64, false, 4096, 504],
  ['ppc', 32, false, 4096, 328],
  ['s390x', 64, false, 4096, 336],
  ['a machine whose NT_PRSTATUS has 500 bytes', 64, true, 4096, 500],
  ['a big-endian machine with pages of 8192 bytes', 64, false, 8192, 500],
];
for (const [machine, ...layout] of FOREIGN)
  t.test(`a kdump by QEMU of another machine: ${layout.join(', ')}`, (t) =>
    t.rejects(readAll(foreignKdump(...layout)), {
      code: 'UNSUPPORTED',
      message: new RegExp(`is a kdump of ${machine}, not of x86$`),
    }),
  );

t.test('a kdump of x86 without memory is told as that', async (t) => {
  for (const [machine, blockSizeAt] of [
    ['x86_64', 428],
    ['i686', 416],
  ] as const) {
    const bytes = Buffer.alloc(4096);
    bytes.write('KDUMP   ');
    bytes.writeUInt32LE(6, 8);
    bytes.write(machine, 12 + 4 * 65);
    bytes.writeUInt32LE(4096, blockSizeAt);
    await t.rejects(readAll(bytes), { code: 'BAD_INPUT', message: /holds no memory: it has no bitmap$/ }, machine);
  }
});

t.test('limits name what to raise', async (t) => {
  const open = (limits: Partial<typeof DEFAULT_KDUMP_LIMITS>) =>
    openBytes(VALID, { ...DEFAULT_KDUMP_LIMITS, ...limits });
  await t.rejects(open({ maxBlocks: 1 }), { code: 'LIMIT', message: /maxBlocks = 1/ });
  await t.rejects(open({ maxBitmapBytes: 2 }), { code: 'LIMIT', message: /maxBitmapBytes = 2/ });
});

// Flattened -----------------------------------------------------------------------------------------------------------

/** A flattened file of records; `end` for its end record. */
function flattenedFile(records: readonly [offset: number, data: Uint8Array][], end = true): Buffer {
  const parts = records.flatMap(([offset, data]) => [encodeFlattenedRecord({ offset, size: data.length }), data]);
  return Buffer.concat([encodeFlattenedHeader(), ...parts, ...(end ? [encodeFlattenedEnd()] : [])]);
}

const HEAD = VALID.subarray(0, 9000);
const REST = VALID.subarray(9000);

t.test('flattened records may come backwards, and a place may be written again', async (t) => {
  const guest = await openBytes(
    flattenedFile([
      [9000, REST],
      [0, Buffer.alloc(9000)],
      [0, HEAD],
    ]),
  );
  t.equal(Buffer.compare(await streamed(guest), read(GUEST)), 0);
  guest.close();
});

t.test('property: of records that overlap the later counts, as if each were written where it belongs', async (t) => {
  const place = fc.record({ offset: fc.nat(400), size: fc.integer({ min: 1, max: 200 }) });
  await fc.assert(
    fc.asyncProperty(fc.array(place, { minLength: 1, maxLength: 12 }), async (places) => {
      const records = places.map(
        ({ offset, size }, i) => [offset, Buffer.alloc(size, i + 1)] as [offset: number, data: Uint8Array],
      );
      const wanted = Buffer.alloc(Math.max(...places.map(({ offset, size }) => offset + size)));
      for (const [offset, data] of records) wanted.set(data, offset);
      const path = join(t.testdir({ flat: flattenedFile(records) }), 'flat');
      const file = FlattenedFile.open(FileBacking.open(path));
      t.equal(file.size, wanted.length);
      const bytes = new Uint8Array(wanted.length);
      file.readSync(0, bytes);
      t.ok(wanted.equals(bytes));
      file.close();
    }),
    { numRuns: 100 },
  );
});

t.test('what no record covers is zeros', async (t) => {
  const cut = flattenedFile([
    [0, HEAD],
    [LAYOUT.descriptorsOffset, VALID.subarray(LAYOUT.descriptorsOffset)],
  ]);
  const guest = await openBytes(cut);
  t.match(guest.pageCounts, { memory: 7, stored: 0, excluded: 7 }, 'the second bitmap is');
  guest.close();
});

const FLAT_HOSTILE: readonly [string, Buffer, string, RegExp][] = [
  ['a header alone', flattenedFile([], false), 'TRUNCATED', /without a flattened end record/],
  ['no records', flattenedFile([]), 'TRUNCATED', /main header/],
  ['no end', flattenedFile([[0, VALID]], false), 'TRUNCATED', /without a flattened end record/],
  ['a record cut', flattenedFile([[0, VALID]]).subarray(0, 5000), 'TRUNCATED', /record at byte 4096 has/],
  [
    'a negative offset',
    flattenedFile([
      [0, VALID],
      [-5, HEAD],
    ]),
    'BAD_INPUT',
    /negative/,
  ],
  [
    'a record of nothing',
    flattenedFile([
      [0, VALID],
      [2 ** 40, Buffer.alloc(0)],
    ]),
    'BAD_INPUT',
    /negative/,
  ],
  [
    'ELF',
    flattenedFile([[0, Buffer.concat([Buffer.from('\x7fELF\x02\x01\x01'), Buffer.alloc(9000)])]]),
    'UNSUPPORTED',
    /is a flattened ELF vmcore; put it together first: makedumpfile -R VMCORE < FILE/,
  ],
  ['zeros', Buffer.concat([encodeFlattenedHeader(), Buffer.alloc(1000)]), 'BAD_INPUT', /negative/],
];

for (const [name, bytes, code, message] of FLAT_HOSTILE)
  t.test(`hostile flattened: ${name}`, (t) => t.rejects(readAll(bytes), { code, message }));

// Streams -------------------------------------------------------------------------------------------------------------

async function* inPieces(bytes: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

t.test('a kdump from a stream, flattened or raw, whatever its pieces', async (t) => {
  const flat = await kdumpBytes(GUEST, { codec: 'snappy', flattened: true });
  for (const bytes of [flat, VALID])
    for (const size of [1000, 4096, 1 << 20]) {
      const guest = await openKdumpStream(inPieces(bytes, size), 'stdin');
      t.equal(guest.name, 'stdin');
      t.equal(Buffer.compare(await streamed(guest), read(GUEST)), 0);
      t.equal(Buffer.compare(read(guest), read(GUEST)), 0);
      guest.close();
    }
});

t.test('streams that end early, are something else or too much are refused', async (t) => {
  const open = (bytes: Uint8Array, options = {}) => openKdumpStream(inPieces(bytes, 3000), 'stdin', options);
  await t.rejects(open(Buffer.alloc(10)), { code: 'TRUNCATED', message: /^stdin ends/ });
  await t.rejects(open(Buffer.alloc(9000)), { code: 'BAD_INPUT' });
  await t.rejects(open(flattenedFile([[0, VALID]], false)), { code: 'TRUNCATED' });
  await t.rejects(open(flattenedFile([[0, VALID]]).subarray(0, 9000)), { code: 'TRUNCATED' });
  await t.rejects(open(VALID, { maxBytes: 5000 }), { code: 'LIMIT', message: /maxBytes/ });
  await t.rejects(open(VALID, { folder: '/nonexistent' }), { code: 'WRITE' });
  await t.rejects(open(flattenedFile([[2 ** 52, Buffer.alloc(1)]])), { code: 'WRITE' });
  await t.rejects(open(descriptor(0, 100, 50, 1).subarray(0, -20)).then(streamed), { message: /^stdin/ });
});

// Fuzz ----------------------------------------------------------------------------------------------------------------

t.test('without a place to keep it, a stream is let go of', async (t) => {
  let closed = false;
  const input: ByteInput = {
    readSome: async () => 0,
    close: () => {
      closed = true;
    },
  };
  await t.rejects(openKdumpStream(input, 'stdin', { folder: '/nonexistent' }), { code: 'WRITE' });
  t.ok(closed);
});

t.test('fuzz: a damaged file is read or refused in one line', async () => {
  const flat = await kdumpBytes(GUEST, { codec: 'lzo', flattened: true });
  const lzo = await kdumpBytes(GUEST, { codec: 'lzo' });
  // Where most of the file's structure is: headers, bitmaps, descriptors, records.
  const places = fc.oneof(
    fc.nat(464),
    fc.integer({ min: 4096, max: 4300 }),
    fc.integer({ min: LAYOUT.bitmapOffset, max: LAYOUT.bitmapOffset + 10 }),
    fc.integer({ min: LAYOUT.descriptorsOffset, max: LAYOUT.zeroPageOffset }),
    fc.nat(),
  );
  const values = fc.oneof(fc.nat(255), fc.constantFrom(0, 0x7f, 0x80, 0xff));
  const changes = fc.array(fc.tuple(places, values), { maxLength: 5 });
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(VALID, lzo, flat),
      changes,
      fc.option(fc.double({ min: 0, max: 1, noNaN: true }), { freq: 4 }),
      async (original, changes, cut) => {
        const bytes = Buffer.from(original);
        for (const [at, value] of changes) bytes[at % bytes.length] = value;
        const input = cut === null ? bytes : bytes.subarray(0, Math.floor(bytes.length * cut));
        try {
          await readAll(input);
          const guest = await openKdumpStream(inPieces(input, 5000), 'stdin');
          guest.close();
        } catch (error) {
          return error instanceof VmcoreError && !error.message.includes('\n');
        }
        return true;
      },
    ),
    { numRuns: 400 },
  );
});
