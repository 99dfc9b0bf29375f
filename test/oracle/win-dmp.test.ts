/**
 * Our Windows crash dumps against QEMU's of the same pause, byte by byte; and where QEMU refuses, its words. Each guest
 * is dumped as it is, and with something in its memory changed (`cases` of the manifest, windows.ts).
 */

import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { dump } from '../../lib/dump.js';
import { messageOf } from '../../lib/model/errors.js';
import { NOTE_HEADER_SIZE, parseNotes } from '../../lib/formats/notes.js';
import type { Guest } from '../../lib/model/guest.js';
import { inspect } from '../../lib/inspect.js';
import { MemoryGuest } from '../../lib/sources/memory-guest.js';
import { openGuest } from '../../lib/open-guest.js';
import { type CrashDump, readCrashDump } from '../crash-dump-reader.js';
import { BufferBacking } from '../guest-fixture.js';
import {
  type Patch,
  WINDOWS_GUEST_NAMES,
  WINDOWS_GUESTS,
  WINDOWS_PLACES,
  type WindowsGuest,
  windowsGuest,
} from '../guests/windows.js';
import { needsTools } from '../tools.js';

/** What the header and the kernel say of the memory (win.inc), and where the kernel is. */
const RUNS = [
  [0x1n, 0x9en],
  [0x100n, 0xf00n],
  [0x100000n, 0x1100n],
  [0x1000n, 0x180n],
];
const KERNEL = 0xffff_f800_0000_0000n;
const KERNEL_32 = 0x8040_0000n;

const missing = needsTools('qemu-system-x86_64', 'as', 'ld', 'cmp');

/** The guest with patches in a copy of its memory, and the note that is there then. */
async function patchedGuest(windows: WindowsGuest, patches: readonly Patch[]): Promise<MemoryGuest> {
  const guest = await openGuest(windows.path('guest.json'));
  const regions = guest.blocks.map(({ base, length }) => {
    const bytes = new Uint8Array(length);
    guest.memory!.read(base, bytes);
    for (const patch of patches)
      if (patch.paddr >= base && patch.paddr < base + length)
        bytes.set(Buffer.from(patch.bytes, 'hex'), patch.paddr - base);
    return { base, length, backing: new BufferBacking(bytes), offset: 0 };
  });
  guest.close();
  const patched = new MemoryGuest({ name: 'patched', arch: guest.arch, cpus: guest.cpus, notes: [], regions });
  return Object.assign(patched, { notes: parseNotes(noteAt(patched), 'note').slice(0, 1) });
}

/** The note as QEMU reads it: as long as its header says. */
function noteAt({ memory }: MemoryGuest): Uint8Array {
  const header = new Uint8Array(NOTE_HEADER_SIZE);
  memory.read(WINDOWS_PLACES.note, header);
  const view = new DataView(header.buffer);
  const padded = (at: number) => Math.ceil(view.getUint32(at, true) / 4) * 4;
  const note = new Uint8Array(NOTE_HEADER_SIZE + padded(0) + padded(4));
  memory.read(WINDOWS_PLACES.note, note);
  return note;
}

/** Registers of a CPU as a CONTEXT has them, from the guest. */
function contextOf({ cpus }: Guest, bits: 64 | 32): unknown {
  return cpus.map((cpu) =>
    bits === 64
      ? { Rip: cpu.rip, Rsp: cpu.rsp, R15: cpu.r15, Rbx: cpu.rbx, SegSs: BigInt(cpu.ss.selector), EFlags: cpu.rflags }
      : { Eip: cpu.rip, Esp: cpu.rsp, Ebx: cpu.rbx, SegSs: BigInt(cpu.ss.selector), EFlags: cpu.rflags },
  );
}

/** Where guests' memory differs first, of what both have; null when it does not. */
async function firstDifference(a: Guest, b: Guest, except: readonly number[] = []): Promise<number | null> {
  const other = Buffer.alloc(4096);
  const page = Buffer.alloc(4096);
  for (const { base, length } of a.blocks)
    for (let at = base; at < base + length; at += 4096) {
      const same = !b.memory!.read(at, other) || (a.memory!.read(at, page) && page.equals(other));
      if (!same && !except.includes(at)) return at;
    }
  return null;
}

const blockOf = ({ base, length }: { base: number; length: number }) => ({ base, length });

/** Pages that have context frames in them (win.inc). */
const FRAME_PAGES = [0x314000, 0x315000, 0x31a000, 0x31b000];

function compare(t: Test, ours: string, qemus: string): void {
  const cmp = spawnSync('cmp', [ours, qemus], { encoding: 'utf8' });
  t.equal(cmp.status, 0, `every byte is QEMU's ${cmp.stdout}${cmp.stderr}`);
}

for (const name of WINDOWS_GUEST_NAMES)
  t.test(name, { skip: missing }, async (t) => {
    const windows = await windowsGuest(name);
    const ours = join(t.testdir({}), 'ours.dmp');

    await t.test('from memory and registers', async (t) => {
      const guest = await openGuest(windows.path('guest.json'));
      const summary = await dump(guest, { format: 'win-dmp' }, { file: ours, force: true }).finished;
      guest.close();
      compare(t, ours, windows.path('qemu.win-dmp'));
      t.same(summary.warnings, []);
      t.match(summary, { format: 'win-dmp', pages: { total: 0x9e + 0xf00 + 0x1100 + 0x180, missing: 0x80 } });
    });

    await t.test("from QEMU's ELF", async (t) => {
      const guest = await openGuest(windows.path('qemu.elf'));
      await dump(guest, { format: 'win-dmp' }, { file: ours, force: true }).finished;
      guest.close();
      if (WINDOWS_GUESTS[name].cpus === 1) compare(t, ours, windows.path('qemu.win-dmp'));
      else compareButDebugRegisters(t, ours, windows.path('qemu.win-dmp'));
    });

    await t.test('a reader of others finds it whole', async (t) => {
      const guest = await openGuest(windows.path('guest.json'));
      await dump(guest, { format: 'win-dmp' }, { file: ours, force: true }).finished;
      const { bits } = WINDOWS_GUESTS[name];
      const read = readCrashDump(ours);
      t.match(read, { bits, runs: RUNS, hasKdbg: true, kernBase: bits === 64 ? KERNEL : KERNEL_32, trailing: 0 });
      t.match(read.contexts, contextOf(guest, bits));
      t.match(read.header, { BugCheckCode: 0x161n, BugCheckParameter1: 0x1001n, BugCheckParameter4: 0x1004n });
      t.match(read.bugcheck?.readUInt32LE(), 0);
      guest.close();
    });

    await t.test('without a note, --find-kdbg makes a dump in which the reader finds the same', async (t) => {
      const guest = await openGuest(windows.path('guest.json'));
      const without = Object.assign(guest, { notes: [] });
      await dump(without, { format: 'win-dmp' }, { file: ours, force: true }).finished;
      const found = readCrashDump(ours);
      const qemus = readCrashDump(windows.path('qemu.win-dmp'));
      const same = ({ runs, hasKdbg, kernBase, contexts, bugcheck, header }: CrashDump) => {
        const { DirectoryTableBase, NumberProcessors, KdDebuggerDataBlock, PfnDataBase, MachineImageType } = header;
        const { BugCheckCode, BugCheckParameter1, PsLoadedModuleList, PsActiveProcessHead, MinorVersion } = header;
        // The driver's has flags in it.
        const dtb = DirectoryTableBase! & ~0x1fn;
        const lists = { PsLoadedModuleList, PsActiveProcessHead, PfnDataBase, KdDebuggerDataBlock };
        const bugchecks = { BugCheckCode, BugCheckParameter1, bugcheck };
        const versions = { MajorVersion: header['MajorVersion'], MinorVersion, MachineImageType, NumberProcessors };
        return { runs, hasKdbg, kernBase, contexts, dtb, ...lists, ...bugchecks, ...versions };
      };
      t.strictSame(same(found), same(qemus));
      await t.rejects(dump(without, { format: 'win-dmp', findKdbg: false }, { file: ours, force: true }).finished, {
        message: 'win-dump: invalid vmcoreinfo note size',
      });
      guest.close();
    });

    await t.test('elf to win-dmp to elf: the same memory, and back again the same dump', async (t) => {
      const [elf, again] = [`${ours}.elf`, `${ours}.again`];
      const original = await openGuest(windows.path('qemu.elf'));
      await dump(original, { format: 'win-dmp' }, { file: ours, force: true }).finished;
      const crash = await openGuest(ours);
      await dump(crash, { format: 'elf' }, { file: elf, force: true }).finished;
      const back = await openGuest(elf);
      t.same(back.blocks.map(blockOf), crash.blocks.map(blockOf));
      t.equal(await firstDifference(back, original, FRAME_PAGES), null);
      t.same(
        back.cpus.map(({ rip, rsp, rax, r9, rflags }) => ({ rip, rsp, rax, r9, rflags })),
        original.cpus.map(({ rip, rsp, rax, r9, rflags }) => ({ rip, rsp, rax, r9, rflags })),
      );
      await dump(back, { format: 'win-dmp' }, { file: again, force: true }).finished;
      compareButDebugRegisters(t, ours, again, false);
      for (const guest of [original, crash, back]) guest.close();
    });

    await t.test('inspect names every field', async (t) => {
      const { winDmp, format, cpus } = await inspect(windows.path('qemu.win-dmp'));
      const { bits } = WINDOWS_GUESTS[name];
      const read = readCrashDump(windows.path('qemu.win-dmp'));
      t.equal(format, `Windows crash dump, full, ${bits} bit`);
      t.equal(winDmp!.runs.length, 4);
      t.equal(cpus.length, WINDOWS_GUESTS[name].cpus);
      const spelled = new Map(Object.entries(winDmp!.header).map(([field, value]) => [field.toLowerCase(), value]));
      for (const [field, value] of Object.entries(read.header)) {
        if (/^(pad|unused|spare|reserved|signature|validdump)/i.test(field)) continue;
        const ours = spelled.get(field.toLowerCase());
        t.not(ours, undefined, field);
        const low = bits === 32 && field === 'RequiredDumpSpace' ? value & 0xffff_ffffn : value;
        t.equal(BigInt(ours ?? -1), low, `${field} is what the reader has`);
      }
      t.match(await inspect(windows.path('qemu.elf')), { winDmp: { header: { Signature: 'PAGE' } }, vmcoreinfo: null });
    });

    for (const { about, patches, file, error } of windows.manifest.cases)
      await t.test(`${about}${error ? `: ${error}` : ''}`, async (t) => {
        const guest = await patchedGuest(windows, patches);
        const before = [...guest.memory!.regions].map(({ backing }) => Buffer.from((backing as BufferBacking).bytes));
        const job = dump(guest, { format: 'win-dmp' }, { file: ours, force: true });
        if (file) {
          await job.finished;
          compare(t, ours, windows.path(file));
        } else {
          const refusal = await job.finished.catch((error: unknown) => error);
          t.match(refusal, { code: 'BAD_INPUT' });
          t.equal(messageOf(refusal), error);
        }
        const after = [...guest.memory!.regions].map(({ backing }) => Buffer.from((backing as BufferBacking).bytes));
        t.ok(
          before.every((bytes, i) => bytes.equals(after[i]!)),
          'the guest is as it was',
        );
      });
  });

/**
 * The second CPU has debug registers and an MXCSR that no vmcore tells (ours then says what a reset leaves): in its
 * frame only these differ. The frame is at 0x315e80, the run with it begins at page 0x100 behind 0x9e others.
 */
function compareButDebugRegisters(t: Test, ours: string, qemus: string, differ = true): void {
  const [a, b] = [readFileSync(ours), readFileSync(qemus)];
  const frame = 0x2000 + 0x9e * 0x1000 + (0x315e80 - 0x100000);
  const mxcsrs = [frame + 0x34, frame + 0x118];
  if (differ)
    t.same(
      [...mxcsrs, frame + 0x48].map((at) => b.readUInt32LE(at)),
      [0x1fa0, 0x1fa0, 0x12345678],
      "QEMU's has them",
    );
  for (const file of [a, b]) {
    for (const at of mxcsrs) file.fill(0, at, at + 4);
    file.fill(0, frame + 0x48, frame + 0x78);
  }
  t.equal(a.compare(b), 0, 'all else is equal');
}
