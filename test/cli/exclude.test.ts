/** Dump levels as a user meets them. What is left out of real guests: test/oracle/exclude.test.ts. */

import { statSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { DumpSummary } from '../../lib/dump.js';
import { SyntheticKernel } from '../linux/synthetic-kernel.js';
import { checkFailure, runCli } from './run-cli.js';

t.test('options that contradict each other or make no sense', async (t) => {
  const folder = t.testdir({});
  const cases: readonly (readonly [readonly string[], RegExp])[] = [
    [['-d', '32'], /--dump-level takes a whole number from 0 to 31, not "32"/],
    [['-d', '1.5'], /--dump-level takes a whole number from 0 to 31/],
    [['-d', 'free'], /--dump-level takes a whole number/],
    [['--exclude', 'zero,fre'], /--exclude knows zero, cache, cache-private, user, free, but not 'fre'/],
    [['--exclude', ''], /--exclude needs a value/],
    [['-d', '1', '--exclude', 'zero'], /say the same thing: give one of them/],
    [['--keep-layout'], /--keep-layout says how pages are left out: give --dump-level or --exclude too/],
    [['--keep-device-memory'], /--keep-device-memory says how pages are left out: give --dump-level/],
    [['-d', '1', '--keep-device-memory'], /--keep-device-memory goes with kdump/],
    [['--exclude-fallback', 'keep'], /--exclude-fallback says how pages are left out/],
    [['-d', '1', '--keep-layout', '-f', 'kdump-lzo'], /--keep-layout goes with elf/],
    [['-d', '1', '-f', 'win-dmp'], /win-dmp has no way to leave pages out/],
  ];
  for (const [options, message] of cases) {
    const result = await runCli(['dump', 'demo:', '-o', 'vmcore', ...options], { cwd: folder });
    checkFailure(t, result, 2, message, options.join(' '));
  }
  t.throws(() => statSync(join(folder, 'vmcore')), { code: 'ENOENT' });
});

t.test('a guest that does not say enough of itself is refused, and nothing is written', async (t) => {
  const folder = t.testdir({ ram: Buffer.alloc(1 << 20) });
  const without = await runCli(['dump', 'raw:ram', '-d', '16', '-o', 'vmcore'], { cwd: folder });
  t.match(without.stderr, /VMCOREINFO/);
  t.not(without.code, 0);
  const demo = await runCli(['dump', 'demo:', '-d', '16', '-o', 'vmcore'], { cwd: folder });
  checkFailure(t, demo, 1, /VMCOREINFO of the guest has no \S+/, 'the first thing that is missing has a name');
  t.throws(() => statSync(join(folder, 'vmcore')), { code: 'ENOENT' });
});

t.test('device memory above RAM: left out at a level, else said to be there', async (t) => {
  const kernel = new SyntheticKernel();
  const memory = [
    { base: 0, length: kernel.bytes.length, file: 'ram' },
    { base: 0xfffc0000, length: 0x40000 },
  ];
  const description = JSON.stringify({ version: 1, arch: 'x86_64', memory, vmcoreinfo: 'note' });
  const folder = t.testdir({ ram: kernel.bytes, note: kernel.note.raw, 'guest.json': description });
  const dump = async (...options: readonly string[]) => {
    const args = ['dump', 'guest.json', '-f', 'kdump-raw-lzo', '-o', 'vmcore', '--force', ...options];
    return (await runCli(args, { cwd: folder })).stdout.toString();
  };
  const kept =
    /^64 of them are device memory above RAM, .* with vmcore dump -d of this file, and not with makedumpfile$/m;
  const left = /^8192 pages: .*; 64 more are device memory above RAM, and left out$/m;
  t.match(await dump(), kept);
  t.match(await dump('-d', '31', '--keep-device-memory'), kept);
  t.match(await dump('-d', '31'), left);
  t.match(await dump('-d', '1'), left);
  t.notMatch(await dump('-d', '1'), kept);
  const { pages } = JSON.parse(await dump('-d', '1', '--json')) as DumpSummary;
  t.match(pages, { total: 8192, deviceLeftOut: 64, deviceKept: undefined });
});

t.test('zeros alone need to know nothing of the guest', async (t) => {
  const folder = t.testdir({});
  for (const options of [['-d', '1'], ['--exclude', 'zero'], []]) {
    const args = ['dump', 'demo:64M', '-f', 'kdump-raw-snappy', '-o', 'vmcore', '--force', '--json', ...options];
    const { code, stdout } = await runCli(args, { cwd: folder });
    t.equal(code, 0);
    const { pages, warnings } = JSON.parse(stdout.toString()) as DumpSummary;
    t.equal(pages.data + pages.zero, pages.total);
    t.equal(pages.excluded, options.length > 0 ? 0 : undefined);
    t.same(warnings, []);
  }
});
