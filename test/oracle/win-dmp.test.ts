/**
 * Our Windows crash dumps against QEMU's of the same pause, byte by byte; and where QEMU refuses, its words. Each guest
 * is dumped as it is, and with something in its memory changed (`cases` of the manifest, windows.ts).
 */

import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { dump } from '../../lib/dump.js';
import { messageOf } from '../../lib/errors.js';
import { NOTE_HEADER_SIZE, parseNotes } from '../../lib/formats/notes.js';
import { MemoryGuest } from '../../lib/sources/memory-guest.js';
import { openGuest } from '../../lib/sources/open.js';
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

t.setTimeout(600_000);

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

    for (const { about, patches, file, error } of windows.manifest.cases)
      await t.test(`${about}${error ? `: ${error}` : ''}`, async (t) => {
        const guest = await patchedGuest(windows, patches);
        const before = [...guest.blocks].map(({ backing }) => Buffer.from((backing as BufferBacking).bytes));
        const job = dump(guest, { format: 'win-dmp' }, { file: ours, force: true });
        if (file) {
          await job.finished;
          compare(t, ours, windows.path(file));
        } else {
          const refusal = await job.finished.catch((error: unknown) => error);
          t.match(refusal, { code: 'BAD_INPUT' });
          t.equal(messageOf(refusal), error);
        }
        const after = [...guest.blocks].map(({ backing }) => Buffer.from((backing as BufferBacking).bytes));
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
function compareButDebugRegisters(t: Test, ours: string, qemus: string): void {
  const [a, b] = [readFileSync(ours), readFileSync(qemus)];
  const frame = 0x2000 + 0x9e * 0x1000 + (0x315e80 - 0x100000);
  const mxcsrs = [frame + 0x34, frame + 0x118];
  t.same(
    mxcsrs.map((at) => b.readUInt32LE(at)),
    [0x1fa0, 0x1fa0],
  );
  t.equal(b.readUInt32LE(frame + 0x48), 0x12345678, "QEMU's has DR0");
  for (const file of [a, b]) {
    for (const at of mxcsrs) file.fill(0, at, at + 4);
    file.fill(0, frame + 0x48, frame + 0x78);
  }
  t.equal(a.compare(b), 0, 'all else is equal');
}
