import fc from 'fast-check';
import t from 'tap';
import { encodeUtsname, type Utsname } from '../../lib/formats/kdump.js';
import { encodeNote } from '../../lib/formats/notes.js';
import { vmcoreinfoNote } from '../../lib/formats/vmcoreinfo.js';
import type { MemoryBlock } from '../../lib/model/physical-memory.js';
import { MemoryGuest } from '../../lib/sources/memory-guest.js';
import { guestUtsname } from '../../lib/linux/guest-utsname.js';
import { bitmapExtents } from '../../lib/layouts/kdump-bitmap.js';
import { encodeKdumpHead, planKdump } from '../../lib/layouts/kdump-layout.js';
import { BufferBacking, patternGuest } from '../guest-fixture.js';
import type { ElfNote } from '../../lib/model/note.js';

const K = 1024;
const codec = 'zlib';

/** A guest of blocks that nobody reads. */
function guestOf(blocks: readonly MemoryBlock[], notes: ElfNote[] = [], arch: 'x86_64' | 'i386' = 'x86_64') {
  const regions = blocks.map((block) => ({ ...block, backing: null, offset: 0 }));
  return new MemoryGuest({ name: 'blocks', arch, regions, cpus: [], notes });
}

t.test('places everything block by block', async (t) => {
  const layout = planKdump(patternGuest([{ base: 0, length: 40 * K }]), { codec });
  t.match(layout, {
    class: 2,
    runs: [{ firstPfn: 0, count: 10 }],
    pageCount: 10,
    bitmapOffset: 8192,
    bitmapBytes: 4096,
    descriptorsOffset: 16384,
    zeroPageOffset: 16384 + 240,
    memoryBytes: 40 * K,
    header: { version: 6, status: 1, blockSize: 4096, subHeaderBlocks: 1, bitmapBlocks: 2, maxMapnr: 10, cpus: 0 },
    subHeader: { dumpLevel: 1, split: 0, offsetNote: 4200, sizeNote: 0, maxMapnr: 10, physBase: 0n },
  });
  t.equal(encodeKdumpHead(layout).length, 8192);
});

t.test('the class follows the rule of ELF: 64 bits in long mode or with memory above 4 GiB', async (t) => {
  const plan = (base: number, arch: 'x86_64' | 'i386') =>
    planKdump(guestOf([{ base, length: 4096 }], [], arch), { codec });
  t.match(plan(0, 'x86_64'), { class: 2, header: { utsname: { machine: 'x86_64' } } });
  t.match(plan(0, 'i386'), { class: 1, header: { utsname: { machine: 'i686' } } });
  t.match(plan(2 ** 32, 'i386'), { class: 2, header: { utsname: { machine: 'i686' } } });
});

t.test('pages that blocks share or cut count once and whole', async (t) => {
  const blocks = [
    { base: 0x800, length: 0x900 },
    { base: 0x1200, length: 0x100 },
    { base: 0x3fff, length: 2 },
    { base: 0x10000, length: 1 },
  ];
  const layout = planKdump(guestOf(blocks), { codec });
  t.strictSame(layout.runs, [
    { firstPfn: 0, count: 2 },
    { firstPfn: 3, count: 2 },
    { firstPfn: 16, count: 1 },
  ]);
  t.match(layout, { pageCount: 5, memoryBytes: 0x900 + 0x100 + 2 + 1, header: { maxMapnr: 17 } });
});

t.test('a range leaves out what is outside; none of the memory in it is an error', async (t) => {
  const guest = guestOf([{ base: 0, length: 64 * K }]);
  const layout = planKdump(guest, { codec, range: { base: 0x1234, length: 0x2000 } });
  t.strictSame(layout.runs, [{ firstPfn: 1, count: 3 }]);
  t.equal(layout.memoryBytes, 0x2000);
  t.throws(() => planKdump(guest, { codec, range: { base: 64 * K, length: 10 } }), { code: 'NO_MEMORY' });
});

t.test('max_mapnr beyond 32 bits stands in the sub header', async (t) => {
  const layout = planKdump(guestOf([{ base: 2 ** 51, length: 4096 }]), { codec });
  t.match(layout, { header: { maxMapnr: 0xffff_ffff }, subHeader: { maxMapnr: 2 ** 39 + 1 } });
  t.equal([...bitmapExtents(layout)].length, 2, 'and a bitmap of 64 GiB is one piece of it, twice');
});

t.test('VMCOREINFO is found where the sub header says', async (t) => {
  const text = Buffer.from('OSRELEASE=6.1.0\nNUMBER(phys_base)=289406976\n');
  const notes = [encodeNote('OTHER', 5, new Uint8Array(7)), vmcoreinfoNote(text)];
  const layout = planKdump(guestOf([{ base: 0, length: 4096 }], notes), { codec });
  const { offsetVmcoreinfo, sizeVmcoreinfo, physBase } = layout.subHeader;
  const head = encodeKdumpHead(layout);
  t.same(Buffer.from(head.subarray(offsetVmcoreinfo, offsetVmcoreinfo + sizeVmcoreinfo)), text);
  t.equal(physBase, 289406976n, 'decimal');
});

t.test('property: bitmaps equal those set bit by bit, both of them', async () => {
  const block = fc.record({ gap: fc.nat(700_000), count: fc.integer({ min: 1, max: 1_200_000 }) });
  fc.assert(
    fc.property(fc.array(block, { minLength: 1, maxLength: 6 }), (parts) => {
      let pfn = 0;
      const blocks = parts.map(({ gap, count }) => {
        const base = (pfn + gap) * 4096;
        pfn += gap + count;
        return { base, length: count * 4096 };
      });
      const layout = planKdump(guestOf(blocks), { codec });
      const expected = new Uint8Array(layout.bitmapBytes);
      for (const { firstPfn, count } of layout.runs)
        for (let i = firstPfn; i < firstPfn + count; i++) expected[i >> 3]! |= 1 << (i & 7);
      const found = new Uint8Array(2 * layout.bitmapBytes);
      for (const { offset, data } of bitmapExtents(layout)) found.set(data!, offset - layout.bitmapOffset);
      return Buffer.compare(found, Buffer.concat([expected, expected])) === 0;
    }),
    { numRuns: 30 },
  );
});

// Utsname -------------------------------------------------------------------------------------------------------------

const UTSNAME: Utsname = {
  sysname: 'Linux',
  nodename: 'host',
  release: '6.1.0',
  version: '#1 SMP',
  machine: 'x86_64',
  domainname: '(none)',
};

/** A guest with a utsname at 0x2000 + offset, and VMCOREINFO that leads to 0x2000. */
function linuxGuest(utsname: Utsname, lines: readonly string[], offset = 0) {
  const bytes = new Uint8Array(0x4000);
  bytes.set(encodeUtsname(utsname), 0x2000 + offset);
  return new MemoryGuest({
    name: 'linux',
    arch: 'x86_64',
    regions: [{ base: 0, length: bytes.length, backing: new BufferBacking(bytes), offset: 0 }],
    cpus: [],
    notes: [vmcoreinfoNote(Buffer.from(lines.join('\n')))],
  });
}

const SYMBOL = 'SYMBOL(init_uts_ns)=ffffffff81002000';
const PHYS_BASE = `NUMBER(phys_base)=-${0x1000000}`;

t.test('utsname is read from memory, at the offset that VMCOREINFO says', async (t) => {
  t.strictSame(guestUtsname(linuxGuest(UTSNAME, [SYMBOL, PHYS_BASE, 'OSRELEASE=6.1.0']), true), UTSNAME);
  const said = [SYMBOL, PHYS_BASE, 'OFFSET(uts_namespace.name)=100'];
  t.strictSame(guestUtsname(linuxGuest(UTSNAME, said, 100), true), UTSNAME);
});

t.test('utsname: without an offset both that there have been are tried', async (t) => {
  t.strictSame(guestUtsname(linuxGuest(UTSNAME, [SYMBOL, PHYS_BASE], 4), true), UTSNAME);
});

t.test('utsname: what is not plausible is not taken, and no member is empty', async (t) => {
  const lines = [SYMBOL, PHYS_BASE, 'OSRELEASE=6.1.0'];
  const guessed = { sysname: 'Linux', release: '6.1.0', version: 'unknown', machine: 'x86_64', nodename: '(none)' };
  for (const wrong of [
    { machine: 'pdp11' },
    { release: '5.0' },
    { version: '' },
    { sysname: '\x01\x02' },
    { nodename: 'caf\xe9' },
  ])
    t.match(guestUtsname(linuxGuest({ ...UTSNAME, ...wrong }, lines), true), guessed);
  t.match(guestUtsname(linuxGuest(UTSNAME, [SYMBOL]), true), { ...guessed, release: 'unknown' }, 'no phys_base');
  t.match(guestUtsname(linuxGuest(UTSNAME, ['OSRELEASE=6.1.0', 'SYMBOL(init_uts_ns)=0']), true), guessed);
  t.match(guestUtsname(linuxGuest(UTSNAME, ['SYMBOL(init_uts_ns)=ffffffffffffffff', PHYS_BASE]), true), {
    version: 'unknown',
  });
  t.match(guestUtsname(guestOf([{ base: 0, length: 4096 }]), false), { machine: 'i686', release: 'unknown' });
});
