import fc from 'fast-check';
import t from 'tap';
import { ELFCLASS32, ELFCLASS64, type ElfClass } from '../../lib/formats/elf.js';
import {
  decodeFlattenedRecord,
  encodeFlattenedEnd,
  encodeFlattenedHeader,
  encodeFlattenedRecord,
  isFlattened,
} from '../../lib/formats/flattened.js';
import {
  decodeKdumpHeader,
  decodeKdumpSubHeader,
  decodePageDescriptor,
  encodeKdumpHeader,
  encodeKdumpSubHeader,
  encodePageDescriptor,
  KDUMP_SIGNATURE,
  type KdumpHeader,
  type KdumpSubHeader,
  kdumpClass,
} from '../../lib/formats/kdump.js';

const UTSNAME = { sysname: 'Linux', nodename: 'n', release: '6.1', version: '#1', machine: 'x86_64', domainname: 'd' };
const HEADER: KdumpHeader = {
  signature: KDUMP_SIGNATURE,
  version: 6,
  utsname: UTSNAME,
  status: 2,
  blockSize: 4096,
  subHeaderBlocks: 3,
  bitmapBlocks: 64,
  maxMapnr: 0x100000,
  cpus: 4,
};
const SUB_HEADER: KdumpSubHeader = {
  physBase: 0x12345678n,
  dumpLevel: 1,
  split: 0,
  startPfn: 5,
  endPfn: 6,
  offsetVmcoreinfo: 0x1111,
  sizeVmcoreinfo: 0x222,
  offsetNote: 0x3333,
  sizeNote: 0x444,
  offsetEraseinfo: 0x5555,
  sizeEraseinfo: 0x666,
  maxMapnr: 0x100000,
};

const hex = (bytes: Uint8Array, at: number, length: number) =>
  Buffer.from(bytes)
    .subarray(at, at + length)
    .toString('hex');

t.test('the main header has its members where C puts them', async (t) => {
  const wide = encodeKdumpHeader(ELFCLASS64, HEADER);
  t.equal(wide.length, 464);
  t.equal(Buffer.from(wide).toString('latin1', 0, 8), 'KDUMP   ');
  t.equal(hex(wide, 8, 4), '06000000');
  t.equal(Buffer.from(wide).toString('latin1', 12 + 4 * 65, 12 + 4 * 65 + 7), 'x86_64\0');
  t.equal(hex(wide, 424, 20), '0200000000100000030000004000000000001000');
  t.equal(hex(wide, 460, 4), '04000000');
  const narrow = encodeKdumpHeader(ELFCLASS32, HEADER);
  t.equal(narrow.length, 452);
  t.equal(hex(narrow, 412, 20), hex(wide, 424, 20));
  t.equal(hex(narrow, 448, 4), '04000000');
});

t.test('the sub header has its members where C puts them', async (t) => {
  const wide = new DataView(encodeKdumpSubHeader(ELFCLASS64, SUB_HEADER).buffer);
  t.equal(wide.byteLength, 104);
  t.equal(wide.getBigUint64(0, true), 0x12345678n);
  t.equal(wide.getUint32(8, true), 1);
  t.equal(wide.getBigUint64(32, true), 0x1111n);
  t.equal(wide.getBigUint64(48, true), 0x3333n);
  t.equal(wide.getBigUint64(80, true), 5n);
  t.equal(wide.getBigUint64(96, true), 0x100000n);
  const narrow = new DataView(encodeKdumpSubHeader(ELFCLASS32, SUB_HEADER).buffer);
  t.equal(narrow.byteLength, 80);
  t.equal(narrow.getBigUint64(20, true), 0x1111n);
  t.equal(narrow.getUint32(28, true), 0x222);
  t.equal(narrow.getBigUint64(32, true), 0x3333n);
  t.equal(narrow.getBigUint64(72, true), 0x100000n);
});

t.test('phys_base may be negative, and wraps as C does', async (t) => {
  const bytes = encodeKdumpSubHeader(ELFCLASS64, { ...SUB_HEADER, physBase: -0x1a600000n });
  t.equal(decodeKdumpSubHeader(bytes, ELFCLASS64, 6).physBase, 0xffff_ffff_e5a0_0000n);
});

t.test('members that an old header does not have are zero', async (t) => {
  const bytes = encodeKdumpSubHeader(ELFCLASS64, SUB_HEADER);
  const none = { offsetVmcoreinfo: 0, offsetNote: 0, offsetEraseinfo: 0, maxMapnr: 0 };
  t.match(decodeKdumpSubHeader(bytes, ELFCLASS64, 1), { dumpLevel: 1, split: 0, ...none });
  t.match(decodeKdumpSubHeader(bytes, ELFCLASS64, 4), { ...none, offsetVmcoreinfo: 0x1111, offsetNote: 0x3333 });
});

t.test(
  'the class shows in the header, also for a guest of 16 MiB, whose max_mapnr looks like a block size',
  async (t) => {
    for (const cls of [ELFCLASS32, ELFCLASS64] as const)
      for (const maxMapnr of [4096, 1, 0xffff_ffff]) {
        const bytes = new Uint8Array(464);
        bytes.set(encodeKdumpHeader(cls, { ...HEADER, maxMapnr }));
        t.equal(kdumpClass(bytes), cls);
      }
    t.equal(kdumpClass(new Uint8Array(464)), null);
  },
);

t.test('property: headers come back as they were', async () => {
  const u32 = fc.nat(0xffff_ffff);
  const text = fc.string({ maxLength: 64 }).map((s) => s.replaceAll('\0', ''));
  const utsname = fc.record(
    {
      sysname: text,
      nodename: text,
      release: text,
      version: text,
      machine: text,
      domainname: text,
    },
    { noNullPrototype: true },
  );
  const header = fc.record(
    {
      signature: fc.constant(KDUMP_SIGNATURE),
      version: fc.nat(6),
      utsname,
      status: u32,
      blockSize: u32,
      subHeaderBlocks: u32,
      bitmapBlocks: u32,
      maxMapnr: u32,
      cpus: u32,
    },
    { noNullPrototype: true },
  );
  const cls = fc.constantFrom<ElfClass>(ELFCLASS32, ELFCLASS64);
  fc.assert(
    fc.property(header, cls, (header, cls) => {
      const bytes = new Uint8Array(464);
      bytes.set(encodeKdumpHeader(cls, header));
      t.strictSame(decodeKdumpHeader(bytes, cls), header);
    }),
    { numRuns: 50 },
  );
  fc.assert(
    fc.property(fc.nat(0xffff_ffff), fc.nat(2 ** 31), cls, (size, offsetNote, cls) => {
      const sub = { ...SUB_HEADER, sizeNote: size, offsetNote: offsetNote * 2 ** 20 };
      t.strictSame(decodeKdumpSubHeader(encodeKdumpSubHeader(cls, sub), cls, 6), sub);
    }),
    { numRuns: 50 },
  );
});

t.test('a utsname that is too long is cut, and keeps its NUL', async (t) => {
  const bytes = encodeKdumpHeader(ELFCLASS64, { ...HEADER, utsname: { ...UTSNAME, sysname: 'x'.repeat(100) } });
  t.equal(bytes[12 + 64], 0);
  t.equal(decodeKdumpHeader(bytes, ELFCLASS64).utsname.sysname, 'x'.repeat(64));
});

t.test('page descriptors hold offsets above 4 GiB', async (t) => {
  const view = new DataView(new ArrayBuffer(48));
  encodePageDescriptor(view, 24, 0x12_3456_789a, 1234, 4);
  t.equal(hex(new Uint8Array(view.buffer), 24, 24), '9a78563412000000d2040000040000000000000000000000');
  t.strictSame(decodePageDescriptor(view, 24), { offset: 0x12_3456_789a, size: 1234, flags: 4 });
});

t.test('the flattened format, byte for byte', async (t) => {
  const header = encodeFlattenedHeader();
  t.equal(header.length, 4096);
  t.equal(hex(header, 0, 32), `6d616b6564756d7066696c6500000000${'0000000000000001'.repeat(2)}`);
  t.equal(isFlattened(header), true);
  t.equal(isFlattened(header.subarray(0, 20)), false);
  t.equal(isFlattened(Buffer.from('makedumpfiles')), false);
  t.equal(hex(encodeFlattenedRecord({ offset: 0x1000, size: 0x20 }), 0, 16), '00000000000010000000000000000020');
  t.equal(hex(encodeFlattenedEnd(), 0, 16), 'f'.repeat(32));
  t.equal(decodeFlattenedRecord(encodeFlattenedEnd()), 'end');
  for (const [offset, size] of [
    [-2, 1],
    [0, 0],
    [0, -1],
    [Number.MAX_SAFE_INTEGER, 1],
  ] as const)
    t.equal(decodeFlattenedRecord(encodeFlattenedRecord({ offset, size })), null);
});
