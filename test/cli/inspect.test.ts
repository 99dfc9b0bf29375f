/** `vmcore inspect` as a user meets it. */

import { execFileSync } from 'node:child_process';
import { chmodSync, closeSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { Inspection } from '../../lib/inspect.js';
import { makeCore, pattern, smallCore } from '../sources/elf-fixtures.js';
import { asNobody, NOBODY } from '../tools.js';
import { checkFailure, runCli, runShell } from './run-cli.js';

const DEMO = 'demo:64M';

t.test('a vmcore, for people', async (t) => {
  const folder = t.testdir({});
  await runCli(['dump', DEMO, '-o', 'vmcore', '--paging'], { cwd: folder });
  const { code, stdout, stderr } = await runCli(['inspect', 'vmcore'], { cwd: folder });
  const text = stdout.toString();
  t.equal(code, 0);
  t.equal(stderr, '');
  t.match(text, /^vmcore: ELF64 core, EM_X86_64, x86_64\n/);
  t.match(text, /^CPU 0: rip 0xffffffff81001006, rsp 0xf+[0-9a-f]+, cr3 0x2800000, paging 4-level$/m);
  t.match(text, /^CPU 1: /m);
  t.match(text, /^memory: 63.6 MiB in 3 blocks\n {2}0x0 - 0x9ffff {2}640 KiB$/m);
  t.match(text, /^mappings: \d+\n {2}0x[0-9a-f]+ -> 0x[0-9a-f]+ {2}/m);
  t.match(text, /^notes: VMCOREINFO \(\d+ bytes\)$/m);
  t.match(text, /^VMCOREINFO:\n {2}osRelease: 6\.1\.0-vmcore-demo$/m);
});

t.test('a vmcore, for programs', async (t) => {
  const folder = t.testdir({});
  await runCli(['dump', DEMO, '-o', 'vmcore', '--paging'], { cwd: folder });
  const { stdout, stderr } = await runCli(['inspect', 'vmcore', '--json'], { cwd: folder });
  t.equal(stderr, '');
  t.match(stdout.toString(), /^\{[^\n]*\}\n$/, 'one object');
  const inspection = JSON.parse(stdout.toString()) as Inspection;
  t.match(inspection, {
    source: 'vmcore',
    format: 'ELF64 core, EM_X86_64',
    architecture: 'x86_64',
    cpus: [{ rip: '0xffffffff81001006', cr3: '0x2800000', paging: '4-level' }, { paging: '4-level' }],
    memory: { bytes: (64 << 20) - 0x60000, blocks: [{ base: '0x0', length: 0xa0000 }, {}, { base: '0x100000000' }] },
    vmcoreinfo: { osRelease: '6.1.0-vmcore-demo', pageSize: 4096 },
  });
  t.equal(inspection.cpus.length, 2);
  t.ok(inspection.mappings.every(({ length, stored }) => length === stored));
});

t.test('a kernel that was moved down: phys_base has its sign in front', async (t) => {
  const folder = t.testdir({ ram: 'A'.repeat(4096), info: `OSRELEASE=6.1.0\nNUMBER(phys_base)=${-0x23a0_0000}\n` });
  await runCli(['dump', 'raw:ram', '--vmcoreinfo', 'info', '-f', 'kdump-raw-zlib', '-o', 'vmcore'], { cwd: folder });
  const { stdout } = await runCli(['inspect', 'vmcore'], { cwd: folder });
  t.match(stdout.toString(), /^ {2}physBase: -0x23a00000$/m);
});

t.test('more mappings than fit a screen', async (t) => {
  const folder = t.testdir({});
  const segments = Array.from({ length: 20 }, (_, i) => ({
    offset: 0x1000 * (i + 1),
    vaddr: 0xffff888000000000n + BigInt(i) * 0x10000n,
    paddr: 0x2000 * i,
    filesz: 0x1000,
  }));
  writeFileSync(join(folder, 'core'), makeCore({ segments, parts: [[0x1000, pattern(20 * 0x1000)]] }));
  const people = await runCli(['inspect', 'core'], { cwd: folder });
  t.match(people.stdout.toString(), /^mappings: 20\n( {2}0x.*\n){12} {2}and 8 more \(--json has all\)$/m);
  const programs = await runCli(['inspect', 'core', '--json'], { cwd: folder });
  t.equal((JSON.parse(programs.stdout.toString()) as Inspection).mappings.length, 20);
});

t.test('without paging there are no mappings to list', async (t) => {
  const folder = t.testdir({});
  await runCli(['dump', DEMO, '-o', 'vmcore'], { cwd: folder });
  const { stdout } = await runCli(['inspect', 'vmcore'], { cwd: folder });
  t.notMatch(stdout.toString(), /mappings/);
});

t.test('every source that dump takes', async (t) => {
  const folder = t.testdir({
    'guest.ram': 'A'.repeat(4096),
    'guest.json': JSON.stringify({ version: 1, arch: 'i386', memory: [{ base: '0x1000', length: 4096 }] }),
  });
  writeFileSync(join(folder, 'core'), smallCore());
  execFileSync('mkfifo', [join(folder, 'fifo')]);
  const inspected = async (script: string) => {
    const { code, stdout, stderr } = await runShell(script, folder);
    t.equal(code, 0, `${script}: ${stderr}`);
    return stdout.toString();
  };
  t.match(await inspected(`$vmcore inspect ${DEMO}`), /^demo:64M: demo guest, x86_64\n/);
  t.match(await inspected('$vmcore inspect raw:guest.ram'), /^raw:guest\.ram: raw memory, x86_64\nCPUs: none\n/);
  t.match(await inspected('$vmcore inspect guest.json'), /^guest\.json: guest description, i386\nCPUs: none\n/);
  const ways = [
    '$vmcore inspect core',
    '$vmcore inspect - < core',
    'cat core | $vmcore inspect -',
    'cat core > fifo & $vmcore inspect fifo',
  ];
  for (const way of ways) {
    const text = await inspected(way);
    t.match(text, /^(core|-|fifo): ELF/, way);
    t.match(text, /\nCPU 0: rip 0xffffffff81000000, rsp 0x0\nmemory: .*\nVMCOREINFO:\n {2}osRelease: 6\.1\n/s, way);
  }
});

t.test('pages of what says nothing of its kernel: no advice that inspect does not take', async (t) => {
  const folder = t.testdir({ 'guest.ram': 'A'.repeat(4096) });
  writeFileSync(join(folder, 'core'), smallCore());
  const cases: [script: string, message: RegExp][] = [
    [
      '$vmcore inspect raw:guest.ram --pages',
      /not known without VMCOREINFO, which is neither in the notes nor in memory/,
    ],
    [
      'cat core | $vmcore inspect - --pages',
      /what the pages are used for cannot be told from a stream; save it to a file/,
    ],
  ];
  for (const [script, message] of cases) {
    const result = await runShell(script, folder);
    checkFailure(t, result, 1, message, script);
    t.notMatch(result.stderr, /--vmcoreinfo|level/, script);
  }
});

t.test('a reader that goes away, a disk that is full', async (t) => {
  const folder = t.testdir({});
  const run = (script: string) => runShell(script, folder);
  const gone = await run(`$vmcore inspect ${DEMO} --json | head -c 1; exit "\${PIPESTATUS[0]}"`);
  t.equal(gone.code, 0);
  t.equal(gone.stderr, '');
  checkFailure(t, await run(`$vmcore inspect ${DEMO} > /dev/full`), 1, /cannot write stdout: no space left/, 'full');
});

t.test('stdin is what is inspected, not a file of that name', async (t) => {
  const folder = t.testdir({ stdin: Buffer.from(makeCore({ segments: [{ vaddr: 0xffff888000000000n }] })) });
  writeFileSync(join(folder, 'core'), smallCore());
  const { code, stdout, stderr } = await runShell('cat core | $vmcore inspect - --json', folder);
  t.equal(code, 0, stderr);
  t.match(JSON.parse(stdout.toString()), { format: 'ELF core (stream)', mappings: [] });
});

t.test('what was handed over is read, although it may not be opened again', { skip: asNobody }, async (t) => {
  const folder = t.testdir({});
  const run = async (file: string) => {
    const path = join(folder, file);
    chmodSync(path, 0o600);
    const fd = openSync(path, 'r');
    const result = await runCli(['inspect', '-', '--json'], { stdio: [fd, 'pipe', 'pipe'], ...NOBODY });
    closeSync(fd);
    t.equal(result.code, 0, `${file}: ${result.stderr}`);
    return JSON.parse(result.stdout.toString()) as Inspection;
  };
  writeFileSync(join(folder, 'core'), smallCore());
  t.match(await run('core'), { format: 'ELF64 core, EM_X86_64' });
  await runCli(['dump', DEMO, '-f', 'kdump-zlib', '-o', 'kdump'], { cwd: folder });
  t.match(await run('kdump'), { format: 'flattened kdump, zlib' });
  writeFileSync(
    join(folder, 'guest.json'),
    JSON.stringify({ version: 1, arch: 'x86_64', memory: [{ base: 0, length: 4096 }] }),
  );
  t.match(await run('guest.json'), { format: 'guest description' });
});
