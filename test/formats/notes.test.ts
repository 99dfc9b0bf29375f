import { spawnSync } from 'node:child_process';
import fc from 'fast-check';
import t from 'tap';
import { VmcoreError } from '../../lib/model/errors.js';
import {
  decodePrstatus,
  decodeQemuCpuState,
  encodeNote,
  encodePrstatus,
  encodeQemuCpuState,
  guestNotes,
  NOTE_NAME_CORE,
  NOTE_NAME_QEMU,
  NOTE_NAME_VMCOREINFO,
  NT_PRSTATUS,
  parseNotes,
  prstatusSize,
  QEMU_CPU_STATE_SIZE,
  splitNotes,
} from '../../lib/formats/notes.js';
import {
  type CpuState,
  GENERAL_REGISTERS,
  SEGMENT_REGISTERS,
  type Segment,
  SYSTEM_SEGMENTS,
  type SystemState,
} from '../../lib/model/guest.js';
import {
  concat,
  makeCore,
  makeNote,
  PT_NOTE,
  pattern,
  prstatus32,
  prstatus64,
  Scratch,
} from '../sources/elf-fixtures.js';

const hasReadelf = spawnSync('readelf', ['--version']).status === 0;

const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const segments: fc.Arbitrary<Segment> = fc.record({
  selector: fc.integer({ min: 0, max: 0xffff }),
  limit: u32,
  flags: u32,
  base: u64,
});

function each<T>(names: readonly string[], value: fc.Arbitrary<T>): Record<string, fc.Arbitrary<T>> {
  return Object.fromEntries(names.map((name) => [name, value]));
}

const systems = fc.record({
  ...each(SYSTEM_SEGMENTS, segments),
  ...each(['cr0', 'cr1', 'cr2', 'cr3', 'cr4', 'kernelGsBase'], u64),
}) as unknown as fc.Arbitrary<SystemState>;

const cpus = fc.record({
  ...each(GENERAL_REGISTERS, u64),
  ...each(SEGMENT_REGISTERS, segments),
  longMode: fc.boolean(),
  system: systems,
}) as unknown as fc.Arbitrary<CpuState & { system: SystemState }>;

t.test('parses notes that were written by hand', (t) => {
  const bytes = concat(
    makeNote('CORE', 1, pattern(5)),
    makeNote('A', 7, new Uint8Array(0)),
    makeNote('', 9, pattern(4)),
  );
  const notes = parseNotes(bytes, 'here');
  t.same(
    notes.map(({ name, type, desc }) => ({ name, type, desc: [...desc] })),
    [
      { name: 'CORE', type: 1, desc: [...pattern(5)] },
      { name: 'A', type: 7, desc: [] },
      { name: '', type: 9, desc: [...pattern(4)] },
    ],
  );
  t.same(Buffer.concat(notes.map((note) => note.raw)), Buffer.from(bytes), 'raw notes are all of the bytes');
  t.end();
});

t.test('the last note may lack its padding, and zeros may follow', (t) => {
  const note = makeNote('CORE', 1, pattern(5));
  t.equal(parseNotes(note.subarray(0, note.length - 3), 'here').length, 1);
  t.equal(parseNotes(concat(note, new Uint8Array(100)), 'here').length, 1);
  t.same(parseNotes(new Uint8Array(0), 'here'), []);
  t.end();
});

t.test('a note that claims more than there is', (t) => {
  const note = makeNote('CORE', 1, pattern(40));
  t.throws(() => parseNotes(note.subarray(0, 30), 'here'), {
    name: 'VmcoreError',
    code: 'BAD_INPUT',
    message: /^here: note at byte 0/,
  });
  new DataView(note.buffer).setUint32(0, 0xffff_ffff, true);
  t.throws(() => parseNotes(note, 'here'), { code: 'BAD_INPUT' });
  t.end();
});

t.test('any bytes are notes or a VmcoreError', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      try {
        parseNotes(bytes, 'fuzz');
      } catch (error) {
        t.ok(error instanceof VmcoreError);
      }
    }),
  );
  t.end();
});

t.test('notes survive a round trip', (t) => {
  const name = fc.string({ maxLength: 12 }).map((text) => text.replace(/[^ -~]/g, '_'));
  const note = fc.tuple(name, fc.integer({ min: 1, max: 0xffff_ffff }), fc.uint8Array({ maxLength: 40 }));
  fc.assert(
    fc.property(fc.array(note), (fields) => {
      const encoded = fields.map(([name, type, desc]) => encodeNote(name, type, desc));
      const parsed = parseNotes(concat(...encoded.map(({ raw }) => raw)), 'round trip');
      t.same(
        parsed.map(({ name, type, desc }) => [name, type, [...desc]]),
        fields.map(([name, type, desc]) => [name, type, [...desc]]),
      );
    }),
  );
  t.end();
});

t.test('decodes an NT_PRSTATUS that was written by hand', (t) => {
  t.match(decodePrstatus(prstatus64(0x1234_5678_9abc_def0n)), {
    rip: 0x1234_5678_9abc_def0n,
    longMode: true,
    system: null,
  });
  t.match(decodePrstatus(prstatus32(0xc010_1000)), { rip: 0xc010_1000n, longMode: false, system: null });
  t.equal(decodePrstatus(new Uint8Array(337)), null);
  t.end();
});

t.test('NT_PRSTATUS survives a round trip', (t) => {
  fc.assert(
    fc.property(cpus, (cpu) => {
      const decoded = decodePrstatus(encodePrstatus(cpu, 3, true))!;
      for (const name of GENERAL_REGISTERS) t.equal(decoded[name], cpu[name], name);
      for (const name of SEGMENT_REGISTERS) t.equal(decoded[name].selector, cpu[name].selector, name);
      t.equal(decoded.fs.base, cpu.fs.base);
      t.equal(decoded.gs.base, cpu.gs.base);
      const narrow = decodePrstatus(encodePrstatus(cpu, 3, false))!;
      t.equal(narrow.rip, BigInt.asUintN(32, cpu.rip));
      t.equal(narrow.ss.selector, cpu.ss.selector);
    }),
    { numRuns: 50 },
  );
  t.end();
});

t.test('an NT_PRSTATUS that was read is written back as it was', (t) => {
  const desc = concat(prstatus64(1n));
  desc.fill(0xaa, 0, 32);
  const cpu = decodePrstatus(desc)!;
  t.equal(encodePrstatus(cpu, 1, true), desc);
  t.equal(encodePrstatus(cpu, 1, false).length, prstatusSize(false), 'unless the other layout is asked for');
  t.end();
});

t.test('the QEMU note survives a round trip', (t) => {
  fc.assert(
    fc.property(cpus, (cpu) => {
      const desc = encodeQemuCpuState(cpu, cpu.system);
      t.equal(desc.length, QEMU_CPU_STATE_SIZE);
      t.same(decodeQemuCpuState(desc, cpu.longMode), cpu);
    }),
    { numRuns: 50 },
  );
  t.end();
});

t.test('the QEMU note by hand: version 1, rip, cr3 and kernel_gs_base at their offsets', (t) => {
  const desc = new Uint8Array(440);
  const view = new DataView(desc.buffer);
  view.setUint32(0, 1, true);
  view.setUint32(4, 440, true);
  view.setBigUint64(8 + 16 * 8, 0xabcn, true);
  view.setBigUint64(392 + 3 * 8, 0x3000n, true);
  view.setBigUint64(432, 0x777n, true);
  t.match(decodeQemuCpuState(desc, true), { rip: 0xabcn, system: { cr3: 0x3000n, kernelGsBase: 0x777n } });
  t.match(
    decodeQemuCpuState(desc.subarray(0, 432), true),
    { rip: 0xabcn, system: { kernelGsBase: 0n } },
    'before 2.12',
  );
  t.equal(decodeQemuCpuState(desc.subarray(0, 431), true), null);
  view.setUint32(0, 2, true);
  t.equal(decodeQemuCpuState(desc, true), null, 'another version');
  t.end();
});

t.test('notes of a guest: in QEMU order, and back', (t) => {
  fc.assert(
    fc.property(fc.array(cpus, { minLength: 1, maxLength: 3 }), (many) => {
      const guest = { cpus: many, notes: [encodeNote(NOTE_NAME_VMCOREINFO, 0, Buffer.from('A=1\n'))] };
      const notes = guestNotes(guest, true);
      t.same(
        notes.map(({ name }) => name),
        [...many.map(() => NOTE_NAME_CORE), ...many.map(() => NOTE_NAME_QEMU), NOTE_NAME_VMCOREINFO],
      );
      const split = splitNotes(notes, true);
      // The mode of CPUs after the first is in no note: see below.
      t.same(
        split.cpus,
        many.map((cpu, i) => ({ ...cpu, longMode: split.cpus[i]!.longMode, prstatus: notes[i]!.desc })),
      );
      t.equal(split.cpus[0]!.longMode, true);
      t.same(split.others, guest.notes);
    }),
    { numRuns: 20 },
  );
  t.end();
});

/** A CPU of which only what NT_PRSTATUS has is known, and one of which all is. */
const HALF: CpuState = decodePrstatus(prstatus64(0x1111n, 1n))!;
const WHOLE = {
  ...decodePrstatus(prstatus64(0x2222n, 2n))!,
  system: { ...fc.sample(systems, 1)[0]!, cr0: 1n << 31n, cr4: 1n << 5n },
};

for (const cpus of [
  [HALF, WHOLE],
  [WHOLE, HALF],
  [HALF, WHOLE, HALF],
])
  t.test(`control registers of ${cpus.map((cpu) => (cpu === WHOLE ? 'one' : 'none')).join(', ')}`, (t) => {
    const notes = guestNotes({ cpus, notes: [] }, true);
    t.equal(notes.filter(({ name }) => name === NOTE_NAME_QEMU).length, cpus.length, 'readers pair notes by number');
    const told = ({ rip, rsp, longMode, system }: CpuState) => ({ rip, rsp, longMode, system });
    t.same(splitNotes(notes, true).cpus.map(told), cpus.map(told));

    // As writers have it that leave out what they do not know.
    const known = notes.filter(({ name }, i) => name === NOTE_NAME_CORE || cpus[i - cpus.length] === WHOLE);
    t.same(splitNotes(known, true).cpus.map(told), cpus.map(told), 'without notes of zeros');
    t.end();
  });

t.test('a QEMU note that is of no NT_PRSTATUS is a CPU of its own', (t) => {
  const notes = guestNotes({ cpus: [HALF, HALF], notes: [] }, true);
  notes.push(encodeNote(NOTE_NAME_QEMU, 0, encodeQemuCpuState(WHOLE, WHOLE.system)));
  t.same(
    splitNotes(notes, true).cpus.map(({ rip }) => rip),
    [0x2222n, 0x1111n, 0x1111n],
  );
  t.end();
});

t.test('notes of CPUs that are all alike are paired in time', (t) => {
  const cpus = Array.from({ length: 12_000 }, () => HALF);
  const notes = guestNotes({ cpus, notes: [] }, true);
  const qemu = encodeNote(NOTE_NAME_QEMU, 0, encodeQemuCpuState(HALF, WHOLE.system));
  t.equal(splitNotes([...notes, ...cpus.slice(1).map(() => qemu)], true).cpus.length, cpus.length);
  t.end();
});

t.test('NT_PRSTATUS without pr_fpvalid has all registers, and gets it when it is written', (t) => {
  for (const [whole, size, longMode] of [
    [prstatus64(0x1234n), 328, true],
    [prstatus64(0x1234n), 332, true],
    [prstatus32(0x1234), 140, false],
  ] as const) {
    whole[longMode ? 32 : 24] = 7;
    const { cpus } = splitNotes([encodeNote(NOTE_NAME_CORE, NT_PRSTATUS, whole.subarray(0, size))], longMode);
    t.match(cpus, [{ rip: 0x1234n, longMode }], `${size} bytes`);
    t.same(encodePrstatus(cpus[0]!, 1, longMode), whole, 'pr_pid is kept');
  }
  t.equal(decodePrstatus(new Uint8Array(327)), null);
  t.equal(decodePrstatus(new Uint8Array(139)), null);
  t.equal(decodePrstatus(new Uint8Array(148)), null, 'of ARM');
  t.end();
});

t.test('the mode of CPUs after the first shows in their registers', (t) => {
  const [PG, PAE, L] = [1n << 31n, 1n << 5n, 1 << 21];
  const [base] = fc.sample(cpus, 1);
  const cpuWith = (cr0: bigint, cr4: bigint, flags: number): CpuState & { system: SystemState } => ({
    ...base!,
    cs: { ...base!.cs, flags },
    system: { ...base!.system, cr0, cr4 },
  });
  const kinds = [cpuWith(0n, 0n, 0), cpuWith(PG, PAE, L), cpuWith(PG, PAE, 0), cpuWith(PG, 0n, 0), cpuWith(0n, 0n, L)];
  const notes = kinds.map((cpu) => encodeNote(NOTE_NAME_QEMU, 0, encodeQemuCpuState(cpu, cpu.system)));
  const modes = (first: boolean): boolean[] => splitNotes(notes, first).cpus.map((cpu) => cpu.longMode);
  t.same(modes(true), [true, true, true, false, false]);
  t.same(modes(false), [false, true, false, false, false]);
  t.end();
});

t.test('CPU notes of a kind that is not known stay notes', (t) => {
  const odd = [
    encodeNote(NOTE_NAME_CORE, NT_PRSTATUS, new Uint8Array(10)),
    encodeNote(NOTE_NAME_QEMU, 0, new Uint8Array(10)),
  ];
  t.same(splitNotes(odd, true), { cpus: [], others: odd });
  t.end();
});

t.test('readelf reads the notes', { skip: hasReadelf ? false : 'no readelf' }, (t) => {
  const cpu = decodePrstatus(prstatus64(1n))!;
  const notes = concat(
    ...guestNotes({ cpus: [cpu, cpu], notes: [encodeNote(NOTE_NAME_VMCOREINFO, 0, Buffer.from('A=1\n'))] }, true).map(
      (note) => note.raw,
    ),
  );
  const core = makeCore({ segments: [{ type: PT_NOTE, offset: 256, filesz: notes.length }], parts: [[256, notes]] });
  const { stdout, stderr } = spawnSync('readelf', ['-nW', new Scratch().write(core)], { encoding: 'utf8' });
  t.equal(stderr, '');
  t.equal(stdout.match(/CORE\s+0x0*150\s+NT_PRSTATUS/g)?.length, 2);
  t.match(stdout, /VMCOREINFO\s+0x0*4\s/);
  t.end();
});
