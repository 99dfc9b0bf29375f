/** A live guest, dumped in each way: our ELF against QEMU's own of the same pause, byte for byte. */

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { compareElf } from '../oracle/compare-elf.js';
import { checkFailure, runCli } from '../cli/run-cli.js';
import { bootLive, dumpLive, type LiveGuest, liveQemus, MIB } from './live-qemu.js';
import { checkReaders, dumpForReaders } from './readers.js';

/** What is booted, which ways are to be had with it, and whether makedumpfile takes kdumps of it; null is not asked. */
const MACHINES = [
  {
    title: 'in a shared file, below 4 GiB',
    options: {},
    ways: ['file', 'proc', 'stream'],
    best: 'file',
    isSparse: true,
    refilters: false,
  },
  {
    title: 'in a shared file, above 4 GiB too',
    options: { machineOptions: ['max-ram-below-4g=128M'] },
    ways: ['file', 'proc', 'stream'],
    best: 'file',
    // Linux uses all of it.
    isSparse: false,
    refilters: true,
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
    refilters: null,
  },
  {
    title: 'in memory that nobody shares',
    options: { machineOptions: ['memory-backend=other'], args: ['-object', 'memory-backend-ram,id=other,size=256M'] },
    ways: ['proc', 'stream'],
    best: 'proc',
    isSparse: false,
    refilters: null,
  },
] as const;

/** A description of the machine, made now, is worth a dump of it. */
async function checkCapture(t: Test, live: LiveGuest, elf: string): Promise<void> {
  const json = join(live.folder, 'guest.json');
  const capture = ['capture', live.source, '-o', json];
  t.match(await runCli(capture), { code: 0, stderr: '' }, 'captured');
  checkFailure(t, await runCli(capture), 1, /exists; give --force to replace it/, 'not over another one');
  const ours = join(live.folder, 'captured');
  const dumped = await runCli(['dump', json, '-o', ours]);
  t.match(dumped, { code: 0, stderr: '' }, 'and dumped');
  t.equal(spawnSync('cmp', [elf, ours], { encoding: 'utf8' }).stdout, '', 'the same dump');
  rmSync(ours);

  const files = readdirSync(live.folder).filter((name) => name.startsWith('guest.json'));
  for (const name of files)
    t.equal(statSync(join(live.folder, name)).mode & 0o777, 0o600, `${name}: for its owner only`);
  // Of the files that are written it is the last but one.
  rmSync(`${json}.blocks`);
  mkdirSync(`${json}.blocks`);
  checkFailure(t, await runCli([...capture, '--force']), 1, /blocks: is a directory/, 'not all can be written');
  t.same(
    readdirSync(live.folder).filter((name) => name.includes('guest.json')),
    files,
    'what they would have replaced is still there, and nothing else',
  );
}

async function refuseCapture(t: Test, live: LiveGuest): Promise<void> {
  const json = join(live.folder, 'guest.json');
  checkFailure(t, await runCli(['capture', live.source, '-o', json]), 1, /in no shared file/, 'memory in no file');
  t.notOk(existsSync(json));
}

/** Of the machines these are started in every QEMU, the others in the first only. */
const IN_EVERY = 2;

for (const [i, qemu] of (await liveQemus()).entries())
  t.test(qemu.name, { skip: qemu.skip }, async (t) => {
    for (const { title, options, ways, best, isSparse, refilters } of i === 0 ? MACHINES : MACHINES.slice(0, IN_EVERY))
      t.test(title, async (t) => {
        const live = await bootLive(t, qemu, options);
        const path = (name: string) => join(live.folder, name);
        const before = live.allocated();
        if (isSparse) t.ok(before * 512 < 200 * MIB, 'the memory file is sparse');
        const auto = await dumpLive(live, {}, {}, path('auto'));
        t.equal(auto.memoryPath, best, 'the best way is found');
        t.same(auto.warnings, [], 'and there is nothing to warn of');
        if (isSparse) {
          await checkCapture(t, live, path('auto'));
          t.equal(live.allocated(), before, 'no block of the file was allocated');
        }
        for (const way of ways) {
          const { memoryPath } = await dumpLive(live, { memoryPath: way }, {}, path(way));
          t.equal(memoryPath, way);
        }
        await live.qemu.dump({ paging: false, file: path('qemu') });
        const memoryBytes = auto.memory.reduce((sum, { length }) => sum + length, 0);
        for (const way of ['auto', ...ways])
          await t.test(way, async (t) => {
            compareElf(t, path(way), path('qemu'), { memoryBytes });
            t.equal(await live.status(), 'paused', 'a paused guest stays paused');
          });
        t.ok(statSync(path('qemu')).size > memoryBytes);
        if (best === 'proc') await refuseCapture(t, live);
        if (refilters !== null)
          await checkReaders(t, await dumpForReaders(live), {
            elf: path('qemu'),
            programs: await qemu.readers(),
            refilters,
          });
        await live.qemu.kill();
      });
  });
