/** A live guest, dumped in each way: our ELF against QEMU's own of the same pause, byte for byte. */

import { spawnSync } from 'node:child_process';
import { existsSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { dump } from '../../lib/dump.js';
import type { Guest } from '../../lib/guest.js';
import { FORMATS } from '../../lib/plan.js';
import { openGuest, type OpenGuestOptions } from '../../lib/sources/open.js';
import { sameMemory } from '../oracle/compare-kdump.js';
import { compareElf } from '../oracle/compare-elf.js';
import { checkFailure, runCli } from '../cli/run-cli.js';
import { findBanner } from '../oracle/linux-banner.js';
import { needsPython, needsTools, PYTHON } from '../tools.js';
import { bootLive, type LiveGuest, liveQemus, MIB } from './live-qemu.js';

t.setTimeout(600_000);

/** What is booted, and which ways are to be had with it. */
const MACHINES = [
  {
    title: 'in a shared file, below 4 GiB',
    options: {},
    ways: ['file', 'proc', 'stream'],
    best: 'file',
    isSparse: true,
  },
  {
    title: 'in a shared file, above 4 GiB too',
    options: { machineOptions: ['max-ram-below-4g=128M'] },
    ways: ['file', 'proc', 'stream'],
    best: 'file',
    // Linux uses all of it.
    isSparse: false,
  },
  {
    title: 'in a memfd',
    options: {
      machineOptions: ['memory-backend=other'],
      args: ['-object', 'memory-backend-memfd,id=other,size=256M,share=on'],
    },
    ways: ['file'],
    best: 'file',
    isSparse: false,
  },
  {
    title: 'in memory that nobody shares',
    options: { machineOptions: ['memory-backend=other'], args: ['-object', 'memory-backend-ram,id=other,size=256M'] },
    ways: ['proc', 'stream'],
    best: 'proc',
    isSparse: false,
  },
] as const;

async function withGuest<T>(
  live: LiveGuest,
  options: OpenGuestOptions,
  work: (guest: Guest) => Promise<T>,
): Promise<T> {
  const guest = await openGuest(live.source, options);
  try {
    return await work(guest);
  } finally {
    await guest.live!.release();
    guest.close();
  }
}

async function dumpElf(live: LiveGuest, options: OpenGuestOptions, file: string): Promise<Guest['live']> {
  return withGuest(live, options, async (guest) => {
    await dump(guest, {}, { file }).finished;
    return guest.live;
  });
}

/** A description of the machine, made now, is worth a dump of it. */
async function checkCapture(t: Test, live: LiveGuest, elf: string): Promise<void> {
  const json = join(live.folder, 'guest.json');
  const capture = ['capture', live.source, '-o', json];
  t.match(await runCli(capture), { code: 0, stderr: '' }, 'captured');
  checkFailure(t, await runCli(capture), 1, /exists; --force replaces it/, 'not over another one');
  const ours = join(live.folder, 'captured');
  const dumped = await runCli(['dump', json, '-o', ours]);
  t.match(dumped, { code: 0, stderr: '' }, 'and dumped');
  t.equal(spawnSync('cmp', [elf, ours], { encoding: 'utf8' }).stdout, '', 'the same dump');
  rmSync(ours);
}

async function refuseCapture(t: Test, live: LiveGuest): Promise<void> {
  const json = join(live.folder, 'guest.json');
  checkFailure(t, await runCli(['capture', live.source, '-o', json]), 1, /in no shared file/, 'memory in no file');
  t.notOk(existsSync(json));
}

/** Every kdump format, from the live machine, and what reads it. */
async function checkFormats(t: Test, live: LiveGuest, elf: string): Promise<void> {
  const saved = await openGuest(elf);
  for (const format of FORMATS.filter((format) => format.startsWith('kdump'))) {
    const file = join(live.folder, format);
    await withGuest(live, {}, (guest) => dump(guest, { format }, { file }).finished);
    await t.test(format, async (t) => {
      const ours = await openGuest(file);
      await sameMemory(t, saved, ours);
      ours.close();
    });
    if (format === 'kdump-raw-lzo') await checkReaders(t, join(live.folder, 'auto'), file);
    rmSync(file);
  }
  saved.close();
}

const READ_WITH_DRGN = `
import sys, drgn
program = drgn.Program()
program.set_core_dump(sys.argv[1])
print(program.read(int(sys.argv[2], 16), 200, True).split(b'\\n')[0].decode())
`;

/** What reads dumps of this machine; makedumpfile takes kdumps for smaller than they are, so it gets the ELF. */
async function checkReaders(t: Test, elf: string, kdump: string): Promise<void> {
  await t.test('makedumpfile takes it', { skip: needsTools('makedumpfile') }, async (t) => {
    const small = `${elf}.small`;
    const run = spawnSync('makedumpfile', ['-l', '-d', '31', elf, small], { encoding: 'utf8' });
    t.equal(run.status, 0, run.stderr);
    t.ok(statSync(small).size < statSync(kdump).size);
  });
  await t.test('drgn reads it', { skip: needsPython('drgn', 'kdumpfile') }, async (t) => {
    const saved = await openGuest(elf);
    const { paddr, text } = findBanner(saved.memory!);
    saved.close();
    const run = spawnSync(PYTHON, ['-c', READ_WITH_DRGN, kdump, paddr.toString(16)], { encoding: 'utf8' });
    t.equal(run.stdout.trim(), text, run.stderr);
  });
}

/** Of the machines these are started in every QEMU, the others in the first only. */
const IN_EVERY = 2;

for (const [i, qemu] of (await liveQemus()).entries())
  t.test(qemu.name, { skip: qemu.skip }, async (t) => {
    for (const { title, options, ways, best, isSparse } of i === 0 ? MACHINES : MACHINES.slice(0, IN_EVERY))
      t.test(title, async (t) => {
        const live = await bootLive(t, qemu, options);
        const path = (name: string) => join(live.folder, name);
        const before = live.allocated();
        if (isSparse) t.ok(before * 512 < 200 * MIB, 'the memory file is sparse');
        const auto = await dumpElf(live, {}, path('auto'));
        t.equal(auto!.report.memoryPath, best, 'the best way is found');
        t.same(auto!.report.warnings, [], 'and there is nothing to warn of');
        if (isSparse) {
          await checkCapture(t, live, path('auto'));
          t.equal(live.allocated(), before, 'no block of the file was allocated');
        }
        for (const way of ways) {
          const machine = await dumpElf(live, { memoryPath: way }, path(way));
          t.equal(machine!.report.memoryPath, way);
        }
        await live.qemu.dump({ paging: false, file: path('qemu') });
        const memoryBytes = auto!.report.memory.reduce((sum, { length }) => sum + length, 0);
        for (const way of ['auto', ...ways])
          await t.test(way, async (t) => {
            compareElf(t, path(way), path('qemu'), { memoryBytes });
            t.equal(await live.status(), 'paused', 'a paused guest stays paused');
          });
        t.ok(statSync(path('qemu')).size > memoryBytes);
        if (best === 'proc') await refuseCapture(t, live);
        if (isSparse) await checkFormats(t, live, path('qemu'));
        await live.qemu.kill();
      });
  });
