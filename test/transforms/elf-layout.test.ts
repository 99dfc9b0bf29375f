import fc from 'fast-check';
import t from 'tap';
import {
  ELFCLASS32,
  ELFCLASS64,
  EM_386,
  EM_X86_64,
  NOT_STORED,
  PN_XNUM,
  PT_LOAD,
  PT_NOTE,
} from '../../lib/formats/elf.js';
import { encodeNote } from '../../lib/formats/notes.js';
import { type CpuState, GENERAL_REGISTERS, NULL_SEGMENT, SEGMENT_REGISTERS } from '../../lib/model/guest.js';
import { encodeElfHead, planElf } from '../../lib/layouts/elf-layout.js';
import { patternGuest } from '../guest-fixture.js';

const MIB = 1 << 20;
const GIB = 2 ** 30;
const LOW = { base: 0, length: MIB };
const HIGH = { base: 4 * GIB, length: MIB };

function cpu(longMode: boolean): CpuState {
  return {
    ...(Object.fromEntries(GENERAL_REGISTERS.map((name) => [name, 0n])) as Record<
      (typeof GENERAL_REGISTERS)[number],
      bigint
    >),
    ...(Object.fromEntries(SEGMENT_REGISTERS.map((name) => [name, NULL_SEGMENT])) as Record<
      (typeof SEGMENT_REGISTERS)[number],
      typeof NULL_SEGMENT
    >),
    longMode,
    system: null,
  };
}

t.test("class and machine go by the first CPU's mode and the highest address, as in QEMU", async (t) => {
  const cases = [
    { blocks: [LOW], cpus: [cpu(true)], class: ELFCLASS64, machine: EM_X86_64 },
    { blocks: [LOW], cpus: [cpu(false)], class: ELFCLASS32, machine: EM_386 },
    { blocks: [LOW, HIGH], cpus: [cpu(false)], class: ELFCLASS64, machine: EM_386 },
    { blocks: [LOW], cpus: [cpu(false), cpu(true)], class: ELFCLASS32, machine: EM_386 },
    // A block that ends at 4 GiB counts as one that ends above what 32 bits can say.
    { blocks: [{ base: 4 * GIB - MIB, length: MIB }], cpus: [cpu(false)], class: ELFCLASS64, machine: EM_386 },
    { blocks: [LOW], cpus: [], class: ELFCLASS64, machine: EM_X86_64 },
  ];
  for (const { blocks, cpus, class: cls, machine } of cases) {
    const layout = planElf(patternGuest(blocks, { cpus }));
    t.same({ class: layout.class, machine: layout.machine }, { class: cls, machine });
  }
});

t.test('PT_NOTE first, then a PT_LOAD a block; memory at a page boundary, in order', async (t) => {
  const { programHeaders, blocks, memoryOffset, size, memoryBytes } = planElf(patternGuest([HIGH, LOW]));
  t.same(
    programHeaders.map(({ type, vaddr, paddr, filesz, memsz, offset }) => ({
      type,
      vaddr,
      paddr,
      filesz,
      memsz,
      offset,
    })),
    [
      { type: PT_NOTE, vaddr: 0n, paddr: 0, filesz: 0, memsz: 0, offset: 64 + 3 * 56 },
      { type: PT_LOAD, vaddr: 0n, paddr: 0, filesz: MIB, memsz: MIB, offset: 4096 },
      { type: PT_LOAD, vaddr: BigInt(4 * GIB), paddr: 4 * GIB, filesz: MIB, memsz: MIB, offset: 4096 + MIB },
    ],
  );
  t.equal(memoryOffset, 4096);
  t.equal(memoryBytes, 2 * MIB);
  t.equal(size, 4096 + 2 * MIB);
  t.same(
    blocks.map(({ base, offset }) => [base, offset]),
    [
      [0, 4096],
      [4 * GIB, 4096 + MIB],
    ],
  );
});

t.test('a mapping that runs past its block stores what is in it; one that begins outside stores nothing', async (t) => {
  const mappings = [
    { vaddr: 0x1000n, paddr: MIB - 4096, length: 8192 },
    { vaddr: 0x9000n, paddr: 2 * MIB, length: 4096 },
  ];
  const [, first, second] = planElf(patternGuest([LOW]), { mappings }).programHeaders;
  t.match(first, { filesz: 4096, memsz: 8192, offset: 4096 + MIB - 4096 });
  t.match(second, { filesz: 0, memsz: 4096, offset: NOT_STORED });
});

t.test('a range cuts blocks and mappings; virtual address 0 stays what it is', async (t) => {
  const range = { base: 0x1800, length: 0x1000 };
  const mappings = [
    { vaddr: 0xffff_8000_0000_0000n, paddr: 0, length: MIB },
    { vaddr: 0n, paddr: 0x1000, length: 0x1000 },
    { vaddr: 0x5000n, paddr: 0x8000, length: 0x1000 },
  ];
  const layout = planElf(patternGuest([LOW]), { range, mappings });
  t.same(
    layout.programHeaders.slice(1).map(({ vaddr, paddr, memsz }) => ({ vaddr, paddr, memsz })),
    [
      { vaddr: 0xffff_8000_0000_1800n, paddr: 0x1800, memsz: 0x1000 },
      { vaddr: 0x1800n, paddr: 0x1800, memsz: 0x800 },
    ],
  );
  t.equal(layout.memoryBytes, 0x1000);
});

t.test('a range without memory is refused', async (t) => {
  t.throws(() => planElf(patternGuest([LOW]), { range: { base: 2 * MIB, length: MIB } }), { code: 'NO_MEMORY' });
});

t.test('PN_XNUM: the number of program headers moves to a section header, and only then there is one', async (t) => {
  const layoutOf = (count: number) =>
    planElf(patternGuest([LOW]), {
      mappings: Array.from({ length: count }, (_, i) => ({ vaddr: BigInt(i + 1) << 12n, paddr: 0, length: 4096 })),
    });
  const header = (count: number) => {
    const head = encodeElfHead(layoutOf(count));
    const view = new DataView(head.buffer);
    const shoff = Number(view.getBigUint64(40, true));
    return {
      phnum: view.getUint16(56, true),
      shnum: view.getUint16(60, true),
      shInfo: shoff && view.getUint32(shoff + 44, true),
    };
  };
  t.same(header(PN_XNUM - 2), { phnum: PN_XNUM - 1, shnum: 0, shInfo: 0 });
  t.same(header(PN_XNUM - 1), { phnum: PN_XNUM, shnum: 1, shInfo: PN_XNUM });
  t.same(header(PN_XNUM + 10), { phnum: PN_XNUM, shnum: 1, shInfo: PN_XNUM + 11 });
});

t.test('notes stand in the file as they were found, each padded to 4 bytes', async (t) => {
  const note = encodeNote('ODD', 7, Uint8Array.of(1, 2, 3));
  const unpadded = { ...note, raw: note.raw.subarray(0, note.raw.length - 1) };
  const layout = planElf(patternGuest([LOW], { notes: [unpadded, note] }));
  const { offset, filesz } = layout.programHeaders[0]!;
  const bytes = encodeElfHead(layout).subarray(offset, offset + filesz);
  t.same(Buffer.from(bytes), Buffer.concat([note.raw, note.raw]));
});

t.test('property: stored memory never overlaps in the file, and every block byte has its place', async () => {
  const parts = fc.array(fc.record({ gap: fc.nat(5), pages: fc.integer({ min: 1, max: 5 }) }), {
    minLength: 1,
    maxLength: 9,
  });
  fc.assert(
    fc.property(parts, fc.nat(40 * 4096), fc.integer({ min: 1, max: 40 * 4096 }), (list, base, length) => {
      let at = 0;
      const blocks = list.map(({ gap, pages }) => {
        at += gap * 4096;
        const block = { base: at, length: pages * 4096 };
        at += block.length;
        return block;
      });
      const overlap = (block: { base: number; length: number }) =>
        Math.max(0, Math.min(block.base + block.length, base + length) - Math.max(block.base, base));
      const expected = blocks.reduce((sum, block) => sum + overlap(block), 0);
      fc.pre(expected > 0);
      const layout = planElf(patternGuest(blocks), { range: { base, length } });
      let offset = layout.memoryOffset;
      for (const block of layout.blocks) {
        if (block.offset !== offset || block.base < base || block.base + block.length > base + length) return false;
        offset += block.length;
      }
      return offset === layout.size && layout.memoryBytes === expected;
    }),
  );
});
