/**
 * Our dumps beside those of QEMU 10, where the machine has an older one, and in the hands of the readers that came with
 * it: makedumpfile 1.7.6, and drgn with a libkdumpfile that reads flattened files.
 */

import { spawnSync } from 'node:child_process';
import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { dump } from '../../lib/dump.js';
import { findVmcoreinfo } from '../../lib/formats/vmcoreinfo.js';
import type { Guest } from '../../lib/model/guest.js';
import { openGuestDescription } from '../../lib/sources/description/guest-description.js';
import { openKdump } from '../../lib/sources/kdump/kdump-core.js';
import { PAGE_SIZE } from '../../lib/model/stage.js';
import { KDUMP_CODECS } from '../../lib/layouts/kdump-layout.js';
import { assemble, bootBareMetal } from '../guests/bare-metal.js';
import { type GuestName, type GuestTraits, ORACLE_GUESTS } from '../guests/guests.js';
import { bootLinux, linuxKernel, missingForLinux } from '../guests/linux.js';
import { missingTools, take, type Taken } from '../guests/oracle.js';
import { cacheFolder } from '../guests/places.js';
import { roomyFolder } from '../guests/qemu.js';
import { needsTrixie, type Trixie, trixie } from '../guests/trixie.js';
import { skipUnless } from '../tools.js';
import { compareElf } from './compare-elf.js';
import { compareKdumpHeads, firstDifference, sameMemory } from './compare-kdump.js';
import { findBanner } from './linux-banner.js';
import { maskLostRegisters } from './lost-registers.js';

const MIB = 2 ** 20;
const BARE_METAL: readonly GuestName[] = ['real-mode', 'flat-32', 'pae', 'long-5level'];
/** With 5-level tables, which no other guest has together with VMCOREINFO. */
const LINUX: GuestTraits = {
  ...ORACLE_GUESTS['linux-1cpu'],
  paging: '5-level',
  qemu: { ...ORACLE_GUESTS['linux-1cpu'].qemu, machine: 'q35', memory: 256 * MIB, cpu: 'max' },
};

const noTrixie = await needsTrixie();
const folder = mkdtempSync(join(roomyFolder(2 ** 31), 'vmcore-qemu10-'));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));

/** A guest as QEMU 10 has left it in a folder. */
interface Left {
  readonly taken: Taken;
  readonly guest: Guest;
  path(file: string): string;
}

/** Boots a guest in QEMU 10, and takes all that the tests compare with in one pause. */
async function leave(name: string, traits: GuestTraits, { qemu: binary }: Trixie): Promise<Left> {
  const into = join(folder, name);
  mkdirSync(into);
  const options = { ...traits.qemu, binary };
  const qemu =
    traits.kind === 'linux'
      ? await bootLinux(await linuxKernel(cacheFolder()), options)
      : await bootBareMetal(assemble(traits.source ?? name, into), options);
  const path = (file: string) => join(into, file);
  try {
    await qemu.stop();
    const taken = await take(qemu, traits, into);
    await qemu.dump({ paging: false, file: path('qemu.kdump-raw-zlib'), format: 'kdump-raw-zlib' });
    return { taken, guest: await openGuestDescription(path('guest.json')), path };
  } finally {
    await qemu.quit();
  }
}

/** Puts a flattened file together. */
function rearrange(makedumpfile: string, flattened: string): string {
  const path = `${flattened}.rearranged`;
  const stdin = openSync(flattened, 'r');
  const { status } = spawnSync(makedumpfile, ['-R', '-f', path], { stdio: [stdin, 'ignore', 'ignore'] });
  closeSync(stdin);
  if (status !== 0) throw new Error(`makedumpfile -R on ${flattened}: status ${status}`);
  return path;
}

async function compare(t: Test, { taken, guest, path }: Left, { makedumpfile }: Trixie): Promise<void> {
  const memoryBytes = taken.blocks.reduce((sum, { length }) => sum + length, 0);
  // Else the text of `info registers` would have another form than 7.2's, and the mask would hide what we cannot read.
  t.ok(
    taken.registersLost.every((field) => field.endsWith('.flags')),
    `all registers are in the text: ${taken.registersLost}`,
  );
  const mask = maskLostRegisters(taken);
  for (const paging of [true, false]) {
    await dump(guest, { paging }, { file: path('elf'), force: true }).finished;
    compareElf(t, path('elf'), path(paging ? 'qemu-paging.elf' : 'qemu.elf'), { memoryBytes, mask });
  }
  await dump(guest, { format: 'kdump-raw-zlib' }, { file: path('kdump') }).finished;
  compareKdumpHeads(t, guest, path('kdump'), path('qemu.kdump-raw-zlib'));
  compareKdumpHeads(t, guest, path('kdump'), rearrange(makedumpfile, path('qemu.kdump-zlib')));
  for (const file of ['kdump', 'qemu.kdump-raw-zlib', 'qemu.kdump-zlib']) {
    const kdump = await openKdump(path(file));
    await sameMemory(t, kdump, guest);
    kdump.close();
  }
}

for (const name of BARE_METAL)
  t.test(name, { skip: noTrixie || skipUnless(missingTools(name)) }, async (t) => {
    const programs = await trixie();
    const left = await leave(name, ORACLE_GUESTS[name], programs);
    await compare(t, left, programs);
    left.guest.close();
  });

const READ_WITH_DRGN = `
import sys, drgn
program = drgn.Program()
program.set_core_dump(sys.argv[1])
print(program.read(int(sys.argv[2], 16), 6))
print(program.read(int(sys.argv[3], 16), 200, True).split(b'\\n')[0].decode())
`;

t.test('Linux', { skip: noTrixie || skipUnless(missingForLinux(cacheFolder())) }, async (t) => {
  const programs = await trixie();
  const left = await leave('linux', LINUX, programs);
  const { guest, path } = left;
  t.teardown(() => guest.close());
  await t.test('dumps', (t) => compare(t, left, programs));

  await t.test('makedumpfile takes the ELF', async (t) => {
    const args = ['-l', '-d', '1', path('elf'), path('refiltered')];
    const { status, stderr } = spawnSync(programs.makedumpfile, args, { encoding: 'utf8' });
    t.equal(status, 0, stderr);
    const refiltered = await openKdump(path('refiltered'));
    t.equal(refiltered.pageCounts.stored, LINUX.qemu.memory / PAGE_SIZE);
    t.equal(await firstDifference(refiltered, guest), null, 'the same memory');
    refiltered.close();
  });

  await t.test('drgn opens the flattened ones', async (t) => {
    const symbol = findVmcoreinfo(guest.notes)!.symbol('init_uts_ns')!.toString(16);
    const banner = findBanner(guest.memory!);
    for (const codec of KDUMP_CODECS) {
      await dump(guest, { format: `kdump-${codec}` }, { file: path('flattened'), force: true }).finished;
      const args = ['-c', READ_WITH_DRGN, path('flattened'), symbol, banner.paddr.toString(16)];
      const { stdout, stderr } = spawnSync(programs.python, args, { encoding: 'utf8' });
      t.equal(stdout, `b'Linux\\x00'\n${banner.text}\n`, `${codec}: ${stderr}`);
    }
  });
});
