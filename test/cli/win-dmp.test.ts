/** `vmcore dump -f win-dmp` and `vmcore inspect` of what it makes, as a user runs them. */

import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { readCrashDump } from '../crash-dump-reader.js';
import { ALL_RUNS, KERN, MEMORY, PLACES, registersText, windowsGuestFixture } from '../windows-fixture.js';
import { checkFailure, eachOf, runCli, runShell } from './run-cli.js';

/** A folder with the fixture's guest as files: with a note (guest.json), and without one (bare.json). */
const folder = t.testdir({});
const { guest, bytes } = windowsGuestFixture({ runs: [...ALL_RUNS, { BasePage: 100n, PageCount: 3n }] });
writeFileSync(join(folder, 'ram'), bytes);
writeFileSync(join(folder, 'registers'), registersText(64, 0));
writeFileSync(join(folder, 'note'), guest.notes[0]!.raw);
const bare = { version: 1, arch: 'x86_64', memory: [{ base: 0, length: MEMORY, file: 'ram' }], registers: 'registers' };
writeFileSync(join(folder, 'bare.json'), JSON.stringify(bare));
writeFileSync(join(folder, 'guest.json'), JSON.stringify({ ...bare, vmcoreinfo: 'note' }));
const run = (...args: string[]) => runCli(args, { cwd: folder });

t.test('a dump, its summary, and what inspect says of it', async (t) => {
  const result = await run('dump', 'guest.json', '-f', 'win-dmp', '-o', 'a.dmp');
  t.match(result, { code: 0, stderr: '' });
  t.match(
    result.stdout.toString(),
    /^a\.dmp: win-dmp, x86_64, 276 KiB\n67 pages: .*; 3 are no memory of the guest's, and zeros\n/,
  );
  t.equal(statSync(join(folder, 'a.dmp')).size, 0x2000 + 67 * 4096);

  const text = (await run('inspect', 'a.dmp')).stdout.toString();
  for (const line of [
    /^a\.dmp: Windows crash dump, full, 64 bit, x86_64$/m,
    /^CPU 0: rip 0x[0-9a-f]+, rsp 0x[0-9a-f]+, cr3 0x1000, paging 4-level$/m,
    /^ {2}DirectoryTableBase: 0x1000$/m,
    /^ {2}KdDebuggerDataBlock: 0xfffff80000010e00$/m,
    /^ {2}BugcheckCode: 0x161$/m,
    /^runs:\n {2}0x0 {2}256 KiB\n {2}0x64000 {2}12 KiB$/m,
  ])
    t.match(text, line);
  const json = JSON.parse((await run('inspect', 'a.dmp', '--json')).stdout.toString()) as { winDmp: unknown };
  t.match(json.winDmp, {
    header: { NumberOfRuns: 2, NumberProcessors: 1 },
    runs: [{ base: '0x0', length: MEMORY }, {}],
  });
});

t.test('through a pipe the same bytes', async (t) => {
  const { code } = await runShell('$vmcore dump guest.json -f win-dmp -o - > piped 2> /dev/null', folder);
  t.equal(code, 0);
  t.same(readFileSync(join(folder, 'piped')), readFileSync(join(folder, 'a.dmp')));
});

t.test('without a note: found, or refused when told not to look', async (t) => {
  t.match(await run('dump', 'bare.json', '-f', 'win-dmp', '-o', 'b.dmp'), { code: 0, stderr: '' });
  t.match(readCrashDump(join(folder, 'b.dmp')), {
    hasKdbg: true,
    kernBase: KERN[64],
    header: { KdDebuggerDataBlock: KERN[64] + BigInt(PLACES.kdbg), DirectoryTableBase: 0x1000n },
  });
});

t.test('what cannot be done: one line, and no file', async (t) => {
  await run('dump', 'guest.json', '-o', 'elf');
  const win = ['-f', 'win-dmp', '-o', 'none'];
  const cases: readonly [args: string[], code: number, message: RegExp][] = [
    [['dump', 'bare.json', '--no-find-kdbg', ...win], 1, /win-dump: invalid vmcoreinfo note size$/m],
    [['dump', 'demo:', ...win], 1, /no KDBG block \(tag 'KDBG', .* in the memory of demo:/],
    [['dump', 'guest.json', '--paging', ...win], 2, /win-dmp has no place for virtual addresses/],
    [['dump', 'guest.json', '--begin', '0', '--length', '4K', ...win], 2, /or a part of the memory/],
  ];
  await eachOf(cases, async ([args, code, message]) =>
    checkFailure(t, await run(...args), code, message, args.join(' ')),
  );
  checkFailure(
    t,
    await runShell('cat elf | $vmcore dump - -f win-dmp -o none', folder),
    1,
    /stdin is a stream/,
    'stream',
  );
  checkFailure(t, await runShell('cat a.dmp | $vmcore dump - -o none', folder), 1, /is a Windows crash dump/, '.dmp');
  t.throws(() => statSync(join(folder, 'none')), { code: 'ENOENT' });
});
