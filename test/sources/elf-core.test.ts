import { spawnSync } from 'node:child_process';
import { closeSync, existsSync, openSync, readdirSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { VmcoreError } from '../../lib/model/errors.js';
import { encodeElfHeader, encodePhnumSection, encodeProgramHeaders, PN_XNUM } from '../../lib/formats/elf.js';
import type { Guest } from '../../lib/model/guest.js';
import { openElfCore } from '../../lib/sources/elf/elf-core.js';
import {
  type CoreSpec,
  collect,
  concat,
  EM_386,
  makeCore,
  makeNote,
  memoryOf,
  PT_NOTE,
  pattern,
  prstatus32,
  prstatus64,
  Scratch,
  type Segment,
  smallCore,
} from './elf-fixtures.js';

const scratch = new Scratch();
const DATA_AT = 0x1000;
const data = pattern(0x4000);
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const dataAt = (offset: number, length: number): string => hex(data.subarray(offset, offset + length));

/** A core whose segments lie over `data` at 0x1000. */
function coreOf(segments: readonly Segment[], more: CoreSpec = {}): Uint8Array {
  return makeCore({ segments, ...more, parts: [[DATA_AT, data], ...(more.parts ?? [])] });
}

function open(bytes: Uint8Array): Promise<Guest> {
  return openElfCore(scratch.write(bytes));
}

function blocksOf(guest: Guest): [number, number][] {
  return guest.blocks.map(({ base, length }) => [base, length]);
}

t.test('a small core: blocks, memory, CPUs, notes', async (t) => {
  const guest = await open(smallCore());
  t.equal(guest.arch, 'x86_64');
  t.same(blocksOf(guest), [
    [0, 0x180],
    [0x100000, 0x200],
  ]);
  t.equal(guest.missing, null, 'a page of which the core has bytes is not left out');
  t.equal(guest.cpus.length, 1);
  t.match(guest.cpus[0], { rip: 0xffffffff81000000n, longMode: true, system: null });
  t.same(
    guest.notes.map(({ name, desc }) => [name, Buffer.from(desc).toString()]),
    [['VMCOREINFO', 'OSRELEASE=6.1\n']],
  );
  const bytes = Buffer.alloc(0x10);
  t.ok(guest.memory!.read(0x1000f8, bytes), 'across stored bytes and zeros');
  t.equal(bytes.toString('hex'), hex(pattern(0x100, 2).subarray(0xf8)) + '00'.repeat(8));
  t.notOk(guest.memory!.read(0x5000, bytes));
  const memory = await memoryOf(guest);
  t.equal(memory.get(0), hex(pattern(0x180, 1)));
  t.equal(memory.get(0x100000)?.slice(0x200), '00'.repeat(0x100), 'p_memsz beyond p_filesz reads as zeros');
  guest.close();
});

t.test('ELF32, and ELF64 of a 32-bit machine', async (t) => {
  const note = makeNote('CORE', 1, prstatus32(0xc0101234));
  for (const cls of [1, 2] as const) {
    const segments = [
      { type: PT_NOTE, offset: 0x200, filesz: note.length },
      { paddr: 0x2000, offset: DATA_AT, filesz: 0x800 },
    ];
    const guest = await open(coreOf(segments, { class: cls, machine: EM_386, parts: [[0x200, note]] }));
    t.equal(guest.arch, 'i386');
    t.match(guest.cpus, [{ rip: 0xc0101234n, longMode: false }]);
    t.same([...(await memoryOf(guest))], [[0x2000, dataAt(0, 0x800)]]);
    guest.close();
  }
});

t.test('program headers behind a section header, as QEMU 7.2 writes them', async (t) => {
  const guest = await open(coreOf([{ paddr: 0, offset: DATA_AT, filesz: 0x100 }], { phoff: 128, shoff: 64, shnum: 1 }));
  t.same(blocksOf(guest), [[0, 0x100]]);
  guest.close();
});

t.test('more program headers than e_phnum can say', async (t) => {
  for (const cls of [1, 2] as const) {
    const count = PN_XNUM + 5;
    const ehdr = cls === 2 ? 64 : 52;
    const phdrs = encodeProgramHeaders(
      cls,
      Array.from({ length: count }, (_, i) => ({
        type: 1,
        flags: 0,
        offset: ehdr,
        vaddr: 0n,
        paddr: i * 16,
        filesz: i < count - 1 ? 0 : 16,
        memsz: i < count - 1 ? 0 : 16,
        align: 0,
      })),
    );
    const header = encodeElfHeader({
      class: cls,
      machine: EM_386,
      phoff: ehdr,
      phnum: PN_XNUM,
      shoff: ehdr + phdrs.length,
      shnum: 1,
    });
    const bytes = concat(header, phdrs, encodePhnumSection(cls, count));
    const guest = await open(bytes);
    t.same(blocksOf(guest), [[(count - 1) * 16, 16]]);
    guest.close();
    await t.rejects(open(bytes.subarray(0, bytes.length - 1)), { code: 'TRUNCATED', message: /section header 0/ });
    await t.rejects(open(concat(header, phdrs, encodePhnumSection(cls, 2 ** 31))), {
      code: 'LIMIT',
      message: /maxProgramHeaders = 262144/,
    });
  }
});

t.test('notes behind the memory, in several segments', async (t) => {
  const [one, two] = [makeNote('CORE', 1, prstatus64(1n)), makeNote('CORE', 1, prstatus64(2n))];
  const segments = [
    { type: PT_NOTE, offset: 0x6000, filesz: one.length },
    { paddr: 0, offset: DATA_AT, filesz: 0x100 },
    { type: PT_NOTE, offset: 0x7000, filesz: two.length },
    { type: PT_NOTE, offset: 0x999999, filesz: 0 },
  ];
  const guest = await open(
    coreOf(segments, {
      parts: [
        [0x6000, one],
        [0x7000, two],
      ],
    }),
  );
  t.same(
    guest.cpus.map((cpu) => cpu.rip),
    [1n, 2n],
  );
  guest.close();
});

t.test('which bytes are which memory', async (t) => {
  const cases: {
    name: string;
    segments: Segment[];
    notes?: Uint8Array;
    parts?: [number, Uint8Array][];
    want: [number, string][];
  }[] = [
    {
      name: 'adjacent blocks of a physical dump stay apart',
      segments: [
        { paddr: 0, offset: 0x1000, filesz: 0x100 },
        { paddr: 0x100, vaddr: 0x100, offset: 0x1100, filesz: 0x100 },
      ],
      want: [
        [0, dataAt(0, 0x100)],
        [0x100, dataAt(0x100, 0x100)],
      ],
    },
    {
      name: 'pieces of a virtual map that adjoin in memory and in the file are one block',
      segments: [
        { paddr: 0x100, vaddr: 0xffff_8000_0000_0000n, offset: 0x1100, filesz: 0x100 },
        { paddr: 0, vaddr: 0xffff_9000_0000_0000n, offset: 0x1000, filesz: 0x100 },
        { paddr: 0x200, vaddr: 0x200, offset: 0x1300, filesz: 0x100 },
      ],
      want: [
        [0, dataAt(0, 0x200)],
        [0x200, dataAt(0x300, 0x100)],
      ],
    },
    {
      name: 'aliases are one piece of memory',
      segments: [
        { paddr: 0x80, vaddr: 0x1000, offset: 0x1080, filesz: 0x80 },
        { paddr: 0, vaddr: 0x2000, offset: 0x1000, filesz: 0x300 },
        { paddr: 0x200, vaddr: 0x3000, offset: 0x1200, filesz: 0x200 },
      ],
      want: [[0, dataAt(0, 0x400)]],
    },
    {
      name: 'where two offsets give one address, the first in the table wins',
      segments: [
        { paddr: 0x100, vaddr: 0xffffffff81000000n, offset: 0x2000, filesz: 0x100 },
        { paddr: 0, vaddr: 0xffff888000000000n, offset: 0x1000, filesz: 0x400 },
      ],
      parts: [[0x2000, data.subarray(0x100, 0x200)]],
      want: [
        [0, dataAt(0, 0x100)],
        [0x100, dataAt(0x100, 0x100)],
        [0x200, dataAt(0x200, 0x200)],
      ],
    },
    {
      name: 'bytes win over what was left out, whatever the order',
      segments: [
        { paddr: 0, offset: 0x1000, filesz: 0x10, memsz: 0x100 },
        { paddr: 0x80, offset: 0x1100, filesz: 0x20 },
      ],
      want: [[0, dataAt(0, 0x10) + '00'.repeat(0x70) + dataAt(0x100, 0x20) + '00'.repeat(0x60)]],
    },
    {
      name: 'what has neither bytes nor a place for them is not memory',
      segments: [
        { paddr: 0, offset: 0x1000, filesz: 0, memsz: 0 },
        { paddr: 0x1000, offset: -1n, filesz: 0x1000 },
        { paddr: 0x4000, offset: -1n, filesz: 0, memsz: 0x1000 },
        { paddr: -1n, vaddr: 0xffffc90000000000n, offset: 0x1800, filesz: 0x100 },
        { paddr: 0x2000, offset: 0x1000, filesz: 0x100 },
      ],
      want: [[0x2000, dataAt(0, 0x100)]],
    },
    {
      name: "mappings of QEMU's paging dump run past their block, and that is no memory",
      notes: makeNote('QEMU', 0, new Uint8Array(440)),
      segments: [{ paddr: 0, vaddr: 0xffff888000000000n, offset: 0x1000, filesz: 0x100, memsz: 0x200000 }],
      want: [[0, dataAt(0, 0x100)]],
    },
    {
      name: 'PT_LOADs that are sorted by neither address nor offset',
      segments: [
        { paddr: 0x9000, offset: 0x1400, filesz: 0x100 },
        { paddr: 0x1000, offset: 0x1800, filesz: 0x100 },
        { paddr: 0x5000, offset: 0x1000, filesz: 0x100 },
      ],
      want: [
        [0x1000, dataAt(0x800, 0x100)],
        [0x5000, dataAt(0, 0x100)],
        [0x9000, dataAt(0x400, 0x100)],
      ],
    },
  ];
  for (const { name, segments, notes = new Uint8Array(0), parts = [], want } of cases) {
    const note = { type: PT_NOTE, offset: 0x800, filesz: notes.length };
    const guest = await open(coreOf([...segments, note], { parts: [[0x800, notes], ...parts] }));
    t.same([...(await memoryOf(guest))], want, name);
    guest.close();
  }
});

t.test('what is refused, in one clear line', async (t) => {
  const load = { paddr: 0, offset: DATA_AT, filesz: 0x100 };
  const cases: [string, Uint8Array, string, RegExp][] = [
    ['an empty file', new Uint8Array(0), 'TRUNCATED', /ends at byte 0, but an ELF header reaches to byte 16$/],
    ['a text', Buffer.from('this is not an ELF file at all'), 'BAD_INPUT', /is not an ELF file$/],
    ['big-endian', coreOf([load], { data: 2 }), 'BAD_INPUT', /big-endian/],
    ['an unknown class', coreOf([load], { class: 7 as 1 }), 'BAD_INPUT', /class 7/],
    ['an executable', coreOf([load], { type: 2 }), 'BAD_INPUT', /is an ELF file but not a core: an executable$/],
    ['a PIE', coreOf([load], { type: 3 }), 'BAD_INPUT', /position-independent executable$/],
    ['an unknown type', coreOf([load], { type: 0xfe00 }), 'BAD_INPUT', /e_type 65024$/],
    ['another machine', coreOf([load], { machine: 183 }), 'BAD_INPUT', /is a core of AArch64, not of x86$/],
    ['an unknown machine', coreOf([load], { machine: 999 }), 'BAD_INPUT', /e_machine 999/],
    ['e_phentsize', coreOf([load], { phentsize: 32 }), 'BAD_INPUT', /e_phentsize of 32, .* 56 bytes$/],
    ['e_phentsize 0', coreOf([load], { phentsize: 0 }), 'BAD_INPUT', /e_phentsize of 0/],
    ['e_phnum 0', coreOf([load], { phnum: 0 }), 'BAD_INPUT', /no program headers/],
    ['e_phnum too large', coreOf([load], { phnum: 5000 }), 'TRUNCATED', /table of 5000 program headers reaches/],
    ['PN_XNUM alone', coreOf([load], { phnum: 0xffff }), 'BAD_INPUT', /no section header to count/],
    ['PN_XNUM elsewhere', coreOf([load], { phnum: 0xffff, shoff: 2n ** 60n }), 'BAD_INPUT', /where no file reaches/],
    ['e_phoff in the header', coreOf([load], { phoff: 8 }), 'BAD_INPUT', /e_phoff of 8/],
    ['e_phoff behind the end', coreOf([load], { phoff: 1e9, phnum: 1 }), 'TRUNCATED', /program headers reaches/],
    ['e_phoff of 2^63', coreOf([load], { phoff: 2n ** 63n, phnum: 1 }), 'BAD_INPUT', /where no file reaches/],
    ['no memory', coreOf([{ type: 6, offset: 0, filesz: 5 }]), 'BAD_INPUT', /holds no memory/],
    ['p_paddr above 52 bits', coreOf([{ ...load, paddr: 2n ** 52n }]), 'BAD_INPUT', /above the 52 bits/],
    ['p_paddr at the edge', coreOf([{ ...load, paddr: 2n ** 52n - 0xffn }]), 'BAD_INPUT', /above the 52 bits/],
    ['p_memsz of 2^64', coreOf([{ ...load, memsz: 2n ** 64n - 1n }]), 'BAD_INPUT', /above the 52 bits/],
    [
      'memory left out without end',
      coreOf([{ ...load, memsz: 2n ** 51n }]),
      'LIMIT',
      /bytes of memory were left out .* maxLeftOutBytes = 70368744177664/,
    ],
    ['p_filesz > p_memsz', coreOf([{ ...load, memsz: 0xff }]), 'BAD_INPUT', /p_filesz 0x100 is larger/],
    [
      'huge p_filesz',
      coreOf([{ ...load, filesz: 2n ** 40n }]),
      'TRUNCATED',
      /memory of program header 0 reaches to byte/,
    ],
    ['huge p_offset', coreOf([{ ...load, offset: 2n ** 40n }]), 'TRUNCATED', /memory of program header 0 reaches/],
    ['p_offset of 2^63', coreOf([{ ...load, offset: 2n ** 63n }]), 'BAD_INPUT', /where no file reaches/],
    ['notes of 1 GiB', coreOf([load, { type: PT_NOTE, filesz: 2 ** 30 }]), 'LIMIT', /maxNoteBytes = 4194304/],
    [
      'notes behind the end',
      coreOf([load, { type: PT_NOTE, offset: 1e7, filesz: 9 }]),
      'TRUNCATED',
      /\(notes\) reaches/,
    ],
    [
      'notes at -1',
      coreOf([load, { type: PT_NOTE, offset: -1n, filesz: 9 }]),
      'BAD_INPUT',
      /\(notes\) has 9 bytes, but no p_offset/,
    ],
    ['notes at -2', coreOf([load, { type: PT_NOTE, offset: -2n, filesz: 9 }]), 'BAD_INPUT', /where no file reaches/],
    [
      'one byte for two addresses',
      coreOf([load, { ...load, paddr: 0x800 }]),
      'BAD_INPUT',
      /said to be memory at 0x800 and at 0x0/,
    ],
  ];
  for (const [name, bytes, code, message] of cases) {
    await t.rejects(open(bytes), { name: 'VmcoreError', code, message }, name);
    const error: unknown = await open(bytes).catch((error) => error);
    t.notMatch((error as Error).message, /\n|NaN|undefined/, 'one line');
  }
  await t.rejects(openElfCore(join(scratch.directory, 'none')), { code: 'READ', message: /no such file/ });
  await t.rejects(openElfCore(scratch.directory), VmcoreError);
});

t.test('limits can be set', async (t) => {
  const path = scratch.write(smallCore());
  await t.rejects(openElfCore(path, { maxProgramHeaders: 2, maxNoteBytes: 1000, maxLeftOutBytes: 0x100 }), {
    code: 'LIMIT',
  });
  await t.rejects(openElfCore(path, { maxProgramHeaders: 3, maxNoteBytes: 10, maxLeftOutBytes: 0x100 }), {
    code: 'LIMIT',
  });
  await t.rejects(openElfCore(path, { maxProgramHeaders: 3, maxNoteBytes: 1000, maxLeftOutBytes: 0xff }), {
    code: 'LIMIT',
  });
  (await openElfCore(path, { maxProgramHeaders: 3, maxNoteBytes: 1000, maxLeftOutBytes: 0x100 })).close();
});

t.test('cut anywhere, a core is a VmcoreError and leaves no file open', async (t) => {
  const bytes = smallCore();
  const before = openFiles();
  for (let length = 0; length < bytes.length; length++) {
    const error: unknown = await open(bytes.subarray(0, length)).catch((error: unknown) => error);
    if (!(error instanceof VmcoreError) || error.code !== 'TRUNCATED') t.fail(`cut at ${length}`, { error });
  }
  t.equal(openFiles(), before);
  (await open(bytes)).close();
});

t.test('a file that shrinks while it is read', async (t) => {
  const path = scratch.write(smallCore());
  const guest = await openElfCore(path);
  truncateSync(path, smallCore().length - 0x80);
  await t.rejects(collect(guest.chunks()), { name: 'VmcoreError', code: 'TRUNCATED' });
  guest.close();
});

/** The same memory in two segments, the second of which has `text` of it again. */
function coreWithText(text: Uint8Array): Uint8Array {
  const segments = [
    { paddr: 0x1000, vaddr: 0xffffffff81000000n, offset: 0x6000, filesz: text.length },
    { paddr: 0, vaddr: 0xffff888000000000n, offset: DATA_AT, filesz: data.length },
  ];
  return coreOf(segments, { parts: [[0x6000, text]] });
}

t.test('memory that is in the core twice, as /proc/vmcore has the text, has to be the same both times', async (t) => {
  const text = data.slice(0x1000, 0x3000);
  const guest = await open(coreWithText(text));
  t.equal([...(await memoryOf(guest)).values()].join(''), dataAt(0, data.length));
  guest.close();
  text[0x1234]! ^= 1;
  const refused = { code: 'BAD_INPUT', message: /memory at 0x2234 is at byte 29236 and at byte 12852 .* and differs/ };
  await t.rejects(open(coreWithText(text)), refused);
});

t.test('250,000 segments over each other are sorted out', async (t) => {
  const count = 250_000;
  const segments = Array.from({ length: count }, (_, i) => {
    const at = (i * 7919) % count;
    return { paddr: at * 4, vaddr: 0xffff_8000_0000_0000n, offset: 64 + at * 4, filesz: 4 + ((i * 31) % 1000) * 4 };
  });
  // Were each compared with each, this would take minutes.
  const guest = await open(makeCore({ segments }));
  t.equal(guest.blocks.length, 1);
  guest.close();
});

t.test('the core of a process', async (t) => {
  const vaddr = 0x5555_5555_4000n;
  const segments = [
    { vaddr, offset: DATA_AT, filesz: 0x100 },
    { vaddr: 0x7fff_f7fc_0000n, offset: DATA_AT + 0x100, filesz: 0x100 },
  ];
  const refused = { code: 'BAD_INPUT', message: /looks like the core of a process, not of a machine/ };
  await t.rejects(open(coreOf(segments)), refused);
  const prpsinfo = makeNote('CORE', 3, new Uint8Array(136));
  const note = { type: PT_NOTE, offset: 0x800, filesz: prpsinfo.length };
  await t.rejects(open(coreOf([segments[0]!, note], { parts: [[0x800, prpsinfo]] })), refused);
  const alias = { vaddr: 0xffff_8880_0000_0000n, offset: DATA_AT, filesz: 0x200 };
  const machine = await open(coreOf([segments[0]!, alias]));
  t.same(blocksOf(machine), [[0, 0x200]], 'mappings of the same first bytes are those of a machine');
  machine.close();
});

t.test('the core of a process, by gcore', async (t) => {
  const core = dumpProcess();
  if (core) await t.rejects(openElfCore(core), { code: 'BAD_INPUT', message: /core of a process/ });
  else t.pass('gcore cannot dump a process here', { skip: true });
});

t.test('a VirtualBox core', async (t) => {
  const desc = new Uint8Array(0x2240);
  const cpu = new DataView(desc.buffer);
  // DBGFCORECPU: rbx, rip, rsp; cs = { base, limit, attr, selector }; CRs, gdtr.cb, EFER, KernelGSBase
  cpu.setBigUint64(8, 0xbbn, true);
  cpu.setBigUint64(14 * 8, 0xffffffff81234567n, true);
  cpu.setBigUint64(15 * 8, 0x5555n, true);
  cpu.setUint32(144 + 8, 0xffffffff, true);
  cpu.setUint32(144 + 12, 0xa09b, true);
  cpu.setUint16(144 + 16, 0x10, true);
  cpu.setUint32(264 + 12, 0x10093, true);
  cpu.setBigUint64(288, 0x80050033n, true);
  cpu.setBigUint64(304, 0x1234000n, true);
  cpu.setUint32(384 + 8, 0x7f, true);
  cpu.setBigUint64(488, 0xd01n, true);
  cpu.setBigUint64(536, 0xffff888000000000n, true);
  const descriptor = new Uint8Array(24);
  const view = new DataView(descriptor.buffer);
  view.setUint32(0, 0xc01ac0de, true);
  view.setUint32(4, 0x00010006, true);
  const coreWith = (): Promise<Guest> => {
    const notes = concat(makeNote('VBCORE', 0xb00, descriptor), makeNote('VBCPU', 0xb01, desc));
    const segments = [
      { type: PT_NOTE, offset: 0x6000, filesz: notes.length },
      { paddr: 0, offset: DATA_AT, filesz: 0x100 },
      { paddr: 0xe0000000, offset: DATA_AT, filesz: 0, memsz: 0x8000000 },
    ];
    return open(coreOf(segments, { parts: [[0x6000, notes]] }));
  };
  const guest = await coreWith();
  t.same(blocksOf(guest), [[0, 0x100]], 'MMIO has no bytes');
  t.match(guest.cpus, [
    {
      longMode: true,
      rbx: 0xbbn,
      rip: 0xffffffff81234567n,
      rsp: 0x5555n,
      cs: { selector: 0x10, limit: 0xffffffff, flags: 0xa09b00, base: 0n },
      ss: { flags: 0x1300 },
      system: { cr0: 0x80050033n, cr3: 0x1234000n, gdt: { limit: 0x7f }, kernelGsBase: 0xffff888000000000n },
    },
  ]);
  t.same(
    guest.notes.map((note) => note.name),
    ['VBCORE'],
  );
  guest.close();
  view.setUint32(4, 0x00010000, true);
  const old = await coreWith();
  t.same(old.cpus, [], 'an old version, whose CPU is of another layout');
  t.match(
    old.assumption,
    /VirtualBox's CPU notes are of format 1\.0, not 1\.4 to 1\.6, and their registers are left aside/,
  );
  t.equal(old.notes.length, 2);
  old.close();
});

/** A core as `xl dump-core` writes it: sections, names of sections last. */
function xenCore(
  options: { magic?: bigint; pfns?: bigint[]; pages?: number; data?: Uint8Array; cut?: string } = {},
): Uint8Array {
  const { magic = 0xf00febeen, pfns = [0n, 1n, 0x100n, 2n ** 64n - 1n, 0x101n, 2n], cut } = options;
  const header = new BigUint64Array([magic, 1n, BigInt(pfns.length), 4096n]);
  const context = new Uint8Array(5168);
  const view = new DataView(context.buffer);
  view.setBigUint64(520 + 128, 0xffffffff81000042n, true);
  view.setBigUint64(520 + 112, 0xd1n, true);
  view.setUint16(520 + 136, 0x10, true);
  view.setBigUint64(4984, 0x80050033n, true);
  view.setBigUint64(4984 + 24, 0xabc000n, true);
  view.setBigUint64(4984 + 32, 0x20n, true);
  view.setBigUint64(5152, 0xffff888012345000n, true);
  view.setBigUint64(5160, 0x7f0000001000n, true);
  const sections: [string, Uint8Array][] = [
    ['', new Uint8Array(0)],
    ['.shstrtab', new Uint8Array(0)],
    ['.note.Xen', makeNote('Xen', 0x2000001, new Uint8Array(header.buffer))],
    ['.xen_prstatus', context],
    ['.xen_pages', options.data ?? pattern((options.pages ?? pfns.length) * 4096)],
    ['.xen_pfn', new Uint8Array(BigUint64Array.from(pfns).buffer)],
  ];
  const names = sections.map(([name]) => `${name}\0`).join('');
  sections[1]![1] = Buffer.from(names, 'latin1');
  const kept = sections.filter(([name]) => name !== cut);
  const table = new Uint8Array(kept.length * 64);
  const rows = new DataView(table.buffer);
  const parts: [number, Uint8Array][] = [[64, table]];
  let at = 64 + table.length;
  for (const [i, [name, bytes]] of kept.entries()) {
    rows.setUint32(i * 64, name ? names.indexOf(`\0${name}\0`) + 1 : 0, true);
    rows.setBigUint64(i * 64 + 24, BigInt(at), true);
    rows.setBigUint64(i * 64 + 32, BigInt(bytes.length), true);
    parts.push([at, bytes]);
    at += bytes.length;
  }
  return makeCore({ phoff: 64, phnum: 0, shoff: 64, shnum: kept.length, shstrndx: 1, parts });
}

t.test('a Xen HVM core', async (t) => {
  const guest = await open(xenCore());
  t.same(blocksOf(guest), [
    [0, 0x2000],
    [0x2000, 0x1000],
    [0x100000, 0x1000],
    [0x101000, 0x1000],
  ]);
  const page = (i: number): string => hex(pattern(6 * 4096).subarray(i * 4096, (i + 1) * 4096));
  const memory = await memoryOf(guest);
  t.equal(memory.get(0), page(0) + page(1));
  t.equal(memory.get(0x2000), page(5));
  t.equal(memory.get(0x101000), page(4), 'the page of no frame number is skipped');
  t.match(guest.cpus, [
    {
      longMode: true,
      rip: 0xffffffff81000042n,
      rdi: 0xd1n,
      cs: { selector: 0x10 },
      gs: { base: 0xffff888012345000n },
      system: { cr0: 0x80050033n, cr3: 0xabc000n, cr4: 0x20n, kernelGsBase: 0x7f0000001000n },
    },
  ]);
  guest.close();
});

t.test('a Xen core that names a frame twice, with the same bytes, is taken and told of', async (t) => {
  const page = pattern(4096);
  const guest = await open(xenCore({ pfns: [1n, 2n, 1n], data: concat(page, new Uint8Array(4096), page) }));
  t.match(guest.assumption, /names 1 page frame again; .* is taken once$/);
  t.same(await memoryOf(guest), new Map([[0x1000, hex(page) + '00'.repeat(4096)]]));
  guest.close();
});

t.test('Xen cores that are refused', async (t) => {
  const cases: [string, Uint8Array, string, RegExp][] = [
    ['paravirtual', xenCore({ magic: 0xf00febedn }), 'UNSUPPORTED', /paravirtual Xen guest/],
    ['no pages', xenCore({ cut: '.xen_pages' }), 'BAD_INPUT', /nor a section \.xen_pages/],
    ['no frame numbers', xenCore({ cut: '.xen_pfn' }), 'BAD_INPUT', /nor a section \.xen_pfn/],
    ['no note', xenCore({ cut: '.note.Xen' }), 'BAD_INPUT', /nor a section \.note\.Xen/],
    ['no names', xenCore({ cut: '.shstrtab' }), 'BAD_INPUT', /nor a section/],
    ['pages do not fit', xenCore({ pages: 5 }), 'BAD_INPUT', /does not fit/],
    ['a wild frame number', xenCore({ pfns: [2n ** 41n] }), 'BAD_INPUT', /above the 52 bits/],
    ['a frame number twice', xenCore({ pfns: [1n, 2n, 1n] }), 'BAD_INPUT', /memory at 0x1000 .* and differs/],
    ['no page at all', xenCore({ pfns: [2n ** 64n - 1n] }), 'BAD_INPUT', /names no page/],
  ];
  for (const [name, bytes, code, message] of cases)
    await t.rejects(open(bytes), { name: 'VmcoreError', code, message }, name);
  const bytes = xenCore();
  for (let length = 0; length < bytes.length; length += 61) {
    const error: unknown = await open(bytes.subarray(0, length)).catch((error: unknown) => error);
    if (!(error instanceof VmcoreError)) t.fail(`cut at ${length}`, { error });
  }
});

function openFiles(): number {
  return existsSync('/proc/self/fd') ? readdirSync('/proc/self/fd').length : 0;
}

/** The core of a `sleep`, or null where gdb may not trace. */
function dumpProcess(): string | null {
  const script = join(scratch.directory, 'dump.sh');
  writeFileSync(script, `sleep 30 & gcore -o "$1" $! >/dev/null 2>&1; kill $!; wait 2>/dev/null; mv "$1".* "$1"`);
  const core = join(scratch.directory, 'process');
  spawnSync('sh', [script, core], { timeout: 20_000 });
  if (!existsSync(core)) return null;
  closeSync(openSync(core, 'r'));
  return core;
}
