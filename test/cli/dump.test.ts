/** `vmcore dump` as a user meets it: options, exit codes, what is on stdout and stderr, what is left of a failure. */

import { execFileSync, spawnSync } from 'node:child_process';
import {
  closeSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { shortFolder } from '../short-folder.js';
import { makeCore, smallCore } from '../sources/elf-fixtures.js';
import { needsTools, skipUnless } from '../tools.js';
import { CLI, checkFailure, eachOf, hasPartial, runCli, runShell, startCli, until } from './run-cli.js';

/** The smallest demo guest. */
const DEMO = 'demo:64M';

/** A guest description of one page, and what it needs. */
function describedGuest(extra: object = {}): Record<string, string> {
  return {
    'guest.json': JSON.stringify({
      version: 1,
      arch: 'x86_64',
      memory: [{ base: 0, length: 8192, file: 'guest.ram' }],
      cpus: [{ rip: '0x1234', cr0: 0 }],
      ...extra,
    }),
    'guest.ram': 'A'.repeat(8192),
  };
}

/** What `info registers -a` prints of a CPU in 32-bit code, as far as it is needed. */
const REGISTERS = [
  'CPU#0',
  ...['AX', 'BX', 'CX', 'DX', 'SI', 'DI', 'BP', 'SP'].map((name) => `E${name}=00000000`),
  'EIP=00001234 EFL=00000002 CPL=0 II=0 A20=1 SMM=0 HLT=1',
  ...['ES', 'CS', 'SS', 'DS', 'FS', 'GS', 'LDT', 'TR'].map(
    (name) => `${name.padEnd(3)}=0008 00000000 ffffffff 00cf9a00`,
  ),
  'GDT=     00000000 0000007f',
  'IDT=     00000000 00000fff',
  'CR0=00000011 CR2=00000000 CR3=00000000 CR4=00000000',
  'EFER=0000000000000000',
  '',
].join('\n');

/** A folder with the small core, a guest description, raw memory and registers. */
function sources(t: Test): string {
  const folder = t.testdir({ ...describedGuest(), 'regs.txt': REGISTERS, out: {} });
  writeFileSync(join(folder, 'core'), smallCore());
  return folder;
}

async function dumpDemo(t: Test, ...options: string[]): Promise<Buffer> {
  const folder = t.testdir({});
  const { code, stderr } = await runCli(['dump', DEMO, '-o', 'vmcore', ...options], { cwd: folder });
  t.equal(code, 0, stderr);
  return readFileSync(join(folder, 'vmcore'));
}

t.test('help has examples; the version is the package’s', async (t) => {
  for (const args of [['--help'], ['-h'], ['dump', '--help'], ['inspect', '--help']]) {
    const { code, stdout, stderr } = await runCli(args);
    t.equal(code, 0, args.join(' '));
    t.equal(stderr, '');
    t.match(stdout.toString(), /Examples:\n +vmcore (dump|inspect) /, args.join(' '));
  }
  const { stdout } = await runCli(['dump', '--help']);
  const options = ['--format', '--output', '--fd', '--force', '--paging', '--begin', '--length', '--threads', '--json'];
  for (const option of [...options, '-f,', '-o,', '--progress', '--below-4g', '--registers', '--vmcoreinfo'])
    t.ok(stdout.includes(option), option);
  const version = await runCli(['--version']);
  const { version: expected } = JSON.parse(readFileSync('package.json', 'utf8')) as { version: string };
  t.equal(version.stdout.toString(), `${expected}\n`);
  t.equal(version.code, 0);
});

t.test('wrong usage: exit code 2, one line, nothing made', async (t) => {
  const folder = t.testdir({ 'guest.ram': 'A'.repeat(8192) });
  const wrong: [args: string[], message: RegExp][] = [
    [[], /say what to do: dump, inspect, /],
    [['bogus'], /bogus/],
    [['dump'], /Not enough/],
    [['dump', DEMO], /one of -o FILE, -o - \(stdout\) and --fd N/],
    [['dump', DEMO, '-o', 'x', '--fd', '1'], /one of -o FILE/],
    [['dump', DEMO, 'more', '-o', 'x'], /Unknown argument: more/],
    [['dump', DEMO, '-o', 'x', '--bogus'], /Unknown argument: bogus/],
    [['dump', DEMO, '-o', 'x', '-f', 'zip'], /Invalid values: Argument: format, Given: "zip", Choices: "elf"/],
    [['dump', DEMO, '-o'], /Not enough arguments following: o/],
    [['dump', DEMO, '-o', '--force'], /Not enough arguments following: o/],
    [['dump', DEMO, '-o', ''], /--output needs a value/],
    [['dump', DEMO, '--no-output'], /--output needs a value/],
    [['dump', DEMO, '--fd'], /Not enough arguments following: fd/],
    [['dump', DEMO, '--fd', 'x'], /--fd takes a whole number/],
    [['dump', DEMO, '--fd', '1.5'], /--fd takes a whole number/],
    [['dump', DEMO, '--fd', '-1'], /--fd takes a whole number from 0 on, not "-1"/],
    [['dump', DEMO, '--no-fd'], /--fd takes a whole number/],
    [['dump', DEMO, '--fd', '7', '--fd', ''], /--fd takes a whole number/],
    [['dump', DEMO, '-o', 'x', '--pid', 'foo'], /--pid takes a whole number/],
    [['capture', 'qmp:none', '-o', 'x', '--pid', 'foo'], /--pid takes a whole number from 1 on, not "foo"/],
    [['qmp', DEMO, '--listen', 'stdio', '--max-mappings', '0'], /--max-mappings takes a whole number from 1/],
    [['dump', DEMO, '-o', 'x', '--threads', '0'], /--threads takes a whole number from 1/],
    [['dump', DEMO, '-o', 'x', '--threads', 'many'], /--threads takes a whole number/],
    [['dump', DEMO, '-o', 'x', '--max-mappings', '-5'], /--max-mappings takes a whole number/],
    [['dump', DEMO, '-o', 'x', '--max-page-tables', '1.5'], /--max-page-tables takes a whole number/],
    [['dump', DEMO, '-o', 'x', '--begin', '0'], /--begin needs --length too/],
    [['dump', DEMO, '-o', 'x', '--length', '1M'], /--length needs --begin too/],
    [['dump', DEMO, '-o', 'x', '--begin', '0', '--length', '0'], /--length must be above 0/],
    [['dump', 'demo:1M', '-o', 'x'], /the demo guest has from 64 MiB/],
    [['dump', 'demo:x', '-o', 'x'], /demo:SIZE: "x" is not a size/],
    [['dump', 'raw:guest.ram', '-o', 'x', '--below-4g', '5G'], /5G cannot be the memory below 4 GiB/],
    [
      ['dump', 'raw:guest.ram', '-o', 'x', '--paging'],
      /--paging needs the CPU registers of guest.ram: give --registers/,
    ],
    [['dump', DEMO, '-o', 'x', '--registers', 'r'], /describe a raw memory file/],
    [['dump', DEMO, '-o', 'x', '--force-raw'], /describe a raw memory file/],
    [['dump', DEMO, '-o', 'x', '--find-vmcoreinfo', '--vmcoreinfo', 'v'], /both say which VMCOREINFO to take/],
    [['dump', '', '-o', 'x'], /the source is empty; say a path, .* or - for stdin/],
    [['dump', '-o', 'x', '--', ''], /the source is empty/],
    [['inspect', ''], /the source is empty/],
    [['capture', '', '-o', 'x'], /the source is empty/],
    [['qmp', '', '--listen', 'stdio'], /the source is empty/],
    [['dump', 'raw:', '-o', 'x'], /raw: lacks the memory file: raw:FILE/],
    [['dump', 'qmp:', '-o', 'x'], /qmp: takes the path of a socket/],
    [['inspect'], /Not enough/],
    [['inspect', DEMO, '--bogus'], /Unknown argument: bogus/],
  ];
  const sizes = ['', 'x', '-1', '1.5', '1KB', '0x', '0xg', '1e3', '64 K', '9007199254740993', '8192P', 'K', '٣'];
  for (const size of sizes)
    wrong.push(
      [['dump', DEMO, '-o', 'x', '--begin', size, '--length', '1M'], /--begin/],
      [['dump', 'raw:guest.ram', '-o', 'x', `--below-4g=${size}`], /below-4g/],
    );
  await eachOf(wrong, async ([args, message]) =>
    checkFailure(t, await runCli(args, { cwd: folder }), 2, message, args.join(' ') || 'nothing'),
  );
  t.same(readdirSync(folder), ['guest.ram']);
});

t.test('short options have their values in the same word, and what follows -- is the source', async (t) => {
  const folder = t.testdir({ ...describedGuest(), 'raw.ram': 'A'.repeat(8192) });
  writeFileSync(join(folder, '-w.json'), describedGuest()['guest.json']!);
  writeFileSync(join(folder, '0x10'), smallCore());
  const working: [args: string[], file: string, format: string][] = [
    [['-fkdump-raw-lzo', DEMO, '-oa'], 'a', 'kdump-raw-lzo'],
    [['-f=kdump-raw-lzo', DEMO, '-o./b=c', '-d1'], 'b=c', 'kdump-raw-lzo'],
    [[DEMO, '-felf', '-od.e', '--json'], 'd.e', 'elf'],
    [['-o', 'f', '--', '-w.json'], 'f', 'elf'],
    [['-og', '--', DEMO], 'g', 'elf'],
    [['0x10', '-o', 'h'], 'h', 'elf'],
  ];
  await eachOf(working, async ([args, file, format]) => {
    const { code, stderr, stdout } = await runCli(['dump', ...args], { cwd: folder });
    t.equal(code, 0, `${args.join(' ')}: ${stderr}`);
    t.match(stdout.toString(), format, args.join(' '));
    t.ok(statSync(join(folder, file)).size > 0, file);
  });
  const stdout = await runCli(['dump', DEMO, '-o-', '-fkdump-lzo'], { cwd: folder });
  t.equal(stdout.stdout.toString('latin1', 0, 12), 'makedumpfile', stdout.stderr);
  t.equal((await runShell('$vmcore inspect -- -w.json && $vmcore inspect -- - < 0x10', folder)).code, 0);
  const wrong: [args: string[], message: RegExp][] = [
    [['dump', DEMO, '-x31'], /Unknown argument: x;/],
    [['dump', DEMO, '-fzip', '-o', 'none'], /Given: "zip"/],
    [['dump', DEMO, '-o', '--', 'none'], /Not enough arguments following: o/],
    [['dump', '-o', 'none', '--', DEMO, '--force'], /Unknown argument: \.\/--force/],
    [['dump', '-o', 'none', '--'], /Not enough non-option arguments/],
  ];
  await eachOf(wrong, async ([args, message]) =>
    checkFailure(t, await runCli(args, { cwd: folder }), 2, message, args.join(' ')),
  );
});

t.test('of a number that is given twice the last one counts', async (t) => {
  const folder = t.testdir({});
  const { code, stdout, stderr } = await runCli(['dump', DEMO, '--fd', '1', '--fd', '1'], { cwd: folder });
  t.equal(code, 0, stderr);
  t.equal(stdout.toString('latin1', 1, 4), 'ELF');

  const twice = await runCli(['dump', DEMO, '-o', 'x', '-d31', '-d', '1', '--json', '--threads=3', '--threads=0x1'], {
    cwd: folder,
  });
  t.equal(twice.code, 0, twice.stderr);
  t.match(JSON.parse(twice.stdout.toString()), { pages: { excluded: 0 } });
});

t.test('what cannot be done: exit code 1, one line, nothing made', async (t) => {
  const folder = t.testdir({ text: 'hello\n', empty: '', 'odd.ram': 'A'.repeat(5000), sub: {}, vmcore: 'old' });
  const gzip = Buffer.from([0x1f, 0x8b, 8, 0]);
  writeFileSync(join(folder, 'gz'), gzip);
  const before = readdirSync(folder);
  const failing: [args: string[], message: RegExp][] = [
    [['dump', 'nosuch', '-o', 'x'], /cannot read nosuch: no such file/],
    [['dump', 'text', '-o', 'x'], /text is neither .* for raw memory say raw:text/],
    [['dump', 'empty', '-o', 'x'], /empty/],
    [['dump', 'gz', '-o', 'x'], /gzip-compressed/],
    [['dump', 'sub', '-o', 'x'], /sub: is a directory/],
    [['dump', 'raw:nosuch', '-o', 'x'], /cannot open nosuch: no such file/],
    [['dump', 'raw:sub', '-o', 'x'], /cannot open sub: is a directory/],
    [['dump', 'raw:empty', '-o', 'x'], /empty is empty/],
    [['dump', 'raw:odd.ram', '-o', 'x'], /not a whole number of pages/],
    [['dump', 'raw:/dev/zero', '-o', 'x'], /not a regular file/],
    [['dump', '/dev/zero', '-o', 'x'], /\/dev\/zero/],
    [['dump', '/dev/null', '-o', 'x'], /\/dev\/null/],
    [['dump', '-', '-o', 'x'], /stdin/],
    [['dump', DEMO, '-o', 'sub'], /sub: is a directory/],
    [['dump', DEMO, '-o', 'nosuch/x'], /cannot create nosuch\/x: no such file or directory/],
    [['dump', DEMO, '-o', 'text/x'], /text\/x/],
    [['dump', DEMO, '-o', 'x'.repeat(300)], /xxx/],
    [['dump', DEMO, '-o', 'vmcore'], /vmcore exists; give --force/],
    [['dump', DEMO, '--fd', '77'], /fd 77 is not open: open it for vmcore, for example 77> vmcore/],
    [['dump', DEMO, '-o', '/dev/full'], /cannot write \/dev\/full: no space left/],
    [['dump', DEMO, '-o', 'x', '--begin', '1P', '--length', '1'], /no guest memory to dump/],
    [['dump', DEMO, '-o', 'x', '--paging', '--max-page-tables', '1'], /--max-page-tables/],
    [['inspect', 'nosuch'], /cannot read nosuch: no such file/],
    [['inspect', 'text'], /text is neither/],
  ];
  await eachOf(failing, async ([args, message]) =>
    checkFailure(t, await runCli(args, { cwd: folder }), 1, message, args.join(' ').slice(0, 80)),
  );
  t.same(readdirSync(folder), before);
  t.equal(readFileSync(join(folder, 'vmcore'), 'utf8'), 'old');
});

t.test('sources are told by their content', async (t) => {
  const folder = sources(t);
  const run = async (source: string, options: string[] = [], stdin = 'ignore' as number | 'ignore') => {
    const stdio = [stdin, 'pipe' as const, 'pipe' as const];
    const args = ['dump', source, '-o', 'out/vmcore', '--force', '--json', ...options];
    const { code, stdout, stderr } = await runCli(args, { cwd: folder, stdio });
    t.equal(code, 0, `${source}: ${stderr}`);
    const summary = JSON.parse(stdout.toString()) as { pages: { total: number } };
    return { summary, stderr, bytes: readFileSync(join(folder, 'out/vmcore')) };
  };

  const core = await run('core');
  t.equal(core.summary.pages.total, 1);
  const descriptor = openSync(join(folder, 'core'), 'r');
  t.same((await run('-', [], descriptor)).bytes, core.bytes, 'the same from a file as stdin');
  closeSync(descriptor);

  t.equal((await run('guest.json')).summary.pages.total, 2, 'a guest description');
  const raw = await run('raw:guest.ram', ['--registers', 'regs.txt']);
  t.equal(raw.summary.pages.total, 2, 'raw memory');
  t.equal(raw.stderr, '', 'with registers there is nothing to warn of');

  const misnamed = 'guest.ram.elf.json';
  writeFileSync(join(folder, misnamed), smallCore());
  t.same((await run(misnamed)).bytes, core.bytes, 'the name does not matter');
});

t.test('a stream: stdin as a pipe or socket, a FIFO by its path', async (t) => {
  const folder = sources(t);
  execFileSync('mkfifo', [join(folder, 'fifo')]);
  const want = await runShell('$vmcore dump core -o - --begin 0 --length 2M', folder);
  t.equal(want.code, 0);
  const ways = {
    pipe: 'cat core | $vmcore dump - -o -',
    'slow pipe': '{ head -c 100 core; sleep 0.2; tail -c +101 core; } | $vmcore dump - -o -',
    'a FIFO as stdin': 'cat core > fifo & $vmcore dump - -o - < fifo',
    'a FIFO by its path': 'cat core > fifo & $vmcore dump fifo -o -',
    'a FIFO whose writer comes later': '{ sleep 0.5; cat core > fifo; } & $vmcore dump fifo -o -',
    'process substitution': '$vmcore dump <(cat core) -o -',
  };
  for (const [way, script] of Object.entries(ways)) {
    const { code, stdout, stderr } = await runShell(script, folder);
    t.equal(code, 0, `${way}: ${stderr}`);
    t.ok(stdout.equals(want.stdout), `${way}: the same bytes`);
  }
  const { child, ended } = startCli(['dump', '-', '-o', '-'], { cwd: folder, stdio: ['pipe', 'pipe', 'pipe'] });
  child.stdin!.end(smallCore());
  t.ok((await ended).stdout.equals(want.stdout), 'socket: the same bytes');
});

t.test('sizes: all ways of writing one mean the same', async (t) => {
  const want = await dumpDemo(t, '--begin', '1048576', '--length', '65536');
  for (const [begin, length] of [
    ['0x100000', '0x10000'],
    ['1M', '64K'],
    ['1024k', '64KiB'],
    ['1MiB', '0X10000'],
  ])
    t.ok((await dumpDemo(t, '--begin', begin!, '--length', length!)).equals(want), `${begin} ${length}`);
  t.equal(want.length % 4096, 0);
  t.ok((await dumpDemo(t, '--begin', '0', '--length', '4P')).length > 48 << 20, 'past the end');
});

t.test('an option given twice: the last one counts', async (t) => {
  const folder = t.testdir({});
  const { code } = await runCli(['dump', DEMO, '-o', 'a', '-o', 'b'], { cwd: folder });
  t.equal(code, 0);
  t.same(readdirSync(folder), ['b']);
});

t.test('targets: a file', async (t) => {
  const folder = t.testdir({});
  const run = (...args: string[]) => runCli(['dump', DEMO, ...args], { cwd: folder });
  const first = await run('-o', 'vmcore');
  t.equal(first.code, 0);
  t.equal(first.stderr, '', 'silent where nobody looks');
  t.match(first.stdout.toString(), /^vmcore: elf, x86_64, 63.6 MiB\n\d+ pages: .*\nread .*\n$/);
  const path = join(folder, 'vmcore');
  t.equal(statSync(path).mode & 0o777, 0o600, 'for its owner only');
  t.ok(statSync(path).blocks * 512 < statSync(path).size / 2, 'sparse');

  checkFailure(t, await run('-o', 'vmcore'), 1, /vmcore exists; give --force to replace it/, 'it exists');
  writeFileSync(path, 'old');
  t.equal((await run('-o', 'vmcore', '--force')).code, 0);
  t.ok(statSync(path).size > 1e6, '--force replaces it');

  t.equal((await run('-o', 'dense', '--no-sparse', '--sync')).code, 0);
  t.ok(statSync(join(folder, 'dense')).blocks * 512 >= statSync(join(folder, 'dense')).size, '--no-sparse');
  t.ok(readFileSync(join(folder, 'dense')).equals(readFileSync(path)), 'with the same bytes');

  symlinkSync('vmcore', join(folder, 'link'));
  checkFailure(t, await run('-o', 'link'), 1, /link exists/, 'a link to an existing file');
  t.same(readdirSync(folder).sort(), ['dense', 'link', 'vmcore'], 'nothing is left beside');
});

t.test('targets: the source itself, by --force', async (t) => {
  const folder = sources(t);
  const first = await runCli(['dump', 'core', '-o', 'out/first'], { cwd: folder });
  t.equal(first.code, 0);
  t.equal((await runCli(['dump', 'core', '-o', 'core', '--force'], { cwd: folder })).code, 0);
  t.same(readFileSync(join(folder, 'core')), readFileSync(join(folder, 'out/first')));
});

t.test('targets: stdout, descriptors, FIFOs and devices get the same bytes, and no others', async (t) => {
  const folder = t.testdir({});
  const want = await dumpDemo(t);
  execFileSync('mkfifo', [join(folder, 'fifo')]);
  const ways = {
    '-o - into a pipe': `$vmcore dump ${DEMO} -o - | cat`,
    '-o - into a file': `$vmcore dump ${DEMO} -o - > file; cat file`,
    '--fd 1': `$vmcore dump ${DEMO} --fd 1 | cat`,
    '--fd 3, a file': `$vmcore dump ${DEMO} --fd 3 3> three > summary; cat three`,
    '--fd 3, a pipe': `{ $vmcore dump ${DEMO} --fd 3 3>&1 >&2; } | cat`,
    '--fd 20, a pipe': `{ $vmcore dump ${DEMO} --fd 20 20>&1 >&2; } | cat`,
    '--fd 3, process substitution': `$vmcore dump ${DEMO} --fd 3 3> >(cat) > summary; wait $!`,
    '--fd 3, both ends of a pipe passed': `$vmcore dump ${DEMO} --fd 3 3> >(cat) 4< /dev/fd/3 > summary; wait $!`,
    '--fd 40, the same': `$vmcore dump ${DEMO} --fd 40 40> >(cat) 41< /dev/fd/40 > summary; wait $!`,
    '--fd 3 that is stdout': `$vmcore dump ${DEMO} --fd 3 3>&1 | cat`,
    '-o /dev/stdout': `$vmcore dump ${DEMO} -o /dev/stdout | cat`,
    '-o FIFO': `cat fifo & $vmcore dump ${DEMO} -o fifo > summary; wait`,
    'a FIFO that is read slowly': `{ sleep 0.3; cat fifo; } & $vmcore dump ${DEMO} -o fifo > summary; wait`,
  };
  for (const [way, script] of Object.entries(ways)) {
    const { stdout, stderr } = await runShell(script, folder);
    t.ok(stdout.equals(want), `${way} ${stderr}`);
  }
  const toNull = await runCli(['dump', DEMO, '-o', '/dev/null', '--json'], { cwd: folder });
  t.equal(toNull.code, 0);
  t.equal((JSON.parse(toNull.stdout.toString()) as { output: string }).output, '/dev/null');
  t.ok(statSync('/dev/null').isCharacterDevice());
});

t.test('a descriptor that nobody passed: one of Node’s own is none, whatever it is', async (t) => {
  const folder = t.testdir({ file: 'old' });
  const numbers = Array.from({ length: 20 }, (_, i) => i + 3);
  // Without what the test's own process has open.
  const only = `for fd in {3..255}; do eval "exec $fd>&-"; done`;
  await eachOf(numbers, async (fd) => {
    const result = await runShell(`${only}; timeout 30 $vmcore dump ${DEMO} --fd ${fd} < /dev/null`, folder);
    checkFailure(
      t,
      result,
      1,
      new RegExp(`fd ${fd} is not open: open it for vmcore|fd ${fd} is open for reading`),
      `${fd}`,
    );
  });
  const qmp = await runShell(`${only}; $vmcore qmp ${DEMO} --listen stdio --add-fd dump=4 < /dev/null`, folder);
  checkFailure(t, qmp, 1, /fd 4 is not open/, 'for a monitor');
  const reading = {
    'a file': `$vmcore dump ${DEMO} --fd 3 3< file`,
    'a folder': `$vmcore dump ${DEMO} --fd 3 3< .`,
    'a pipe': `sleep 1 | $vmcore dump ${DEMO} --fd 0`,
  };
  for (const [way, script] of Object.entries(reading))
    checkFailure(t, await runShell(script, folder), 1, /fd \d is open for reading only/, way);
});

t.test('targets: a socket', async (t) => {
  const path = join(shortFolder(t), 's');
  const want = await dumpDemo(t);
  const parts: Buffer[] = [];
  const server = createServer((socket) => socket.on('data', (data) => parts.push(data)));
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const client = connect(path);
  await new Promise((resolve) => client.on('connect', resolve));
  const { code } = await runCli(['dump', DEMO, '--fd', '3'], { stdio: ['ignore', 'pipe', 'pipe', client] });
  client.end();
  await new Promise((resolve) => server.close(resolve));
  t.equal(code, 0);
  t.ok(Buffer.concat(parts).equals(want));
});

t.test('a socket by its path is refused, and stays', async (t) => {
  const folder = shortFolder(t);
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(join(folder, 'socket'), resolve));
  for (const force of [[], ['--force']]) {
    const refused = await runCli(['dump', DEMO, '-o', 'socket', ...force], { cwd: folder });
    checkFailure(t, refused, 1, /cannot write socket: is a socket; [^\n]*--fd/, `socket ${force}`);
  }
  t.ok(statSync(join(folder, 'socket')).isSocket());
  await new Promise((resolve) => server.close(resolve));
});

t.test('--json: one object at the end', async (t) => {
  const folder = t.testdir({});
  const { stdout, stderr } = await runCli(['dump', DEMO, '-o', 'vmcore', '--json', '--paging'], { cwd: folder });
  t.equal(stderr, '');
  t.match(stdout.toString(), /^\{[^\n]*\}\n$/, 'one line');
  const summary = JSON.parse(stdout.toString()) as Record<string, unknown> & {
    pages: Record<'total' | 'data' | 'zero', number>;
  };
  const { size, blocks } = statSync(join(folder, 'vmcore'));
  t.match(summary, { format: 'elf', architecture: 'x86_64', output: 'vmcore', size, warnings: [] });
  t.equal(summary.pages.data + summary.pages.zero, summary.pages.total);
  t.equal(summary.pages.total, ((64 << 20) - 0x60000) / 4096, 'all memory but the VGA hole');
  for (const name of ['bytesRead', 'bytesWritten', 'seconds', 'mappings']) t.type(summary[name], 'number', name);
  t.ok((summary['bytesWritten'] as number) <= blocks * 512, 'what was written takes room');

  const piped = await runShell(`$vmcore dump ${DEMO} -o - --json > bytes`, folder);
  t.equal(piped.stdout.length, 0);
  t.match(JSON.parse(piped.stderr), { output: 'stdout', size }, 'on stderr when the dump is on stdout');
  t.equal(statSync(join(folder, 'bytes')).size, size);

  checkFailure(t, await runCli(['dump', 'nosuch', '-o', 'x', '--json'], { cwd: folder }), 1, /nosuch/, 'a failure');
});

t.test('progress: on a terminal', { skip: needsTools('script') }, async (t) => {
  const folder = t.testdir({});
  const script = (command: string) => runShell(`script -qec "${command}" /dev/null`, folder);
  const shown = await script(`$vmcore dump ${DEMO} -o vmcore`);
  t.equal(shown.code, 0);
  t.match(shown.stdout.toString(), /100% {2}63\.6 MiB of 63\.6 MiB {2}.*\/s {2}0s left/);
  const silent = await script(`$vmcore dump ${DEMO} -o vmcore --force --no-progress`);
  t.notMatch(silent.stdout.toString(), /%/, '--no-progress');
  const failed = await script('head -c 30000000 vmcore | $vmcore dump - -o part');
  t.equal(failed.code, 1);
  t.match(
    failed.stdout.toString(),
    /left[^\n]*\r\nvmcore: stdin ends at [^\n]*\r\n$/,
    'an error has a line of its own',
  );
  const terminal = await script(`$vmcore dump ${DEMO} -o -`);
  t.equal(terminal.code, 2, 'a vmcore is not written to a terminal');
  t.match(terminal.stdout.toString(), /^vmcore: a vmcore on a terminal helps nobody[^\n]*\n$/);
  t.same(readdirSync(folder), ['vmcore']);
});

t.test('progress: forced where there is no terminal', async (t) => {
  const { code, stderr } = await runCli(['dump', DEMO, '-o', join(t.testdir({}), 'vmcore'), '--progress']);
  t.equal(code, 0);
  t.match(stderr, /100% {2}63\.6 MiB of 63\.6 MiB/);
});

t.test('a guest without registers is dumped with a warning of one line', async (t) => {
  const folder = t.testdir(describedGuest({ cpus: [] }));
  const raw = await runCli(['dump', 'raw:guest.ram', '-o', 'raw'], { cwd: folder });
  t.equal(raw.code, 0);
  t.match(raw.stderr, /^vmcore: warning: guest\.ram comes without CPU registers[^\n]*give --registers FILE\n$/);
  const described = await runCli(['dump', 'guest.json', '-o', 'described'], { cwd: folder });
  t.equal(described.code, 0);
  t.match(described.stderr, /^vmcore: warning: guest\.json comes without CPU registers[^\n]*\n$/);
  const paging = await runCli(['dump', 'guest.json', '-o', 'x', '--paging'], { cwd: folder });
  checkFailure(t, paging, 1, /no CPU registers, so page tables cannot be found/, 'paging');
});

t.test(
  'raw memory that machines lay out in different ways: what is assumed is told, and again in a refusal',
  async (t) => {
    const folder = t.testdir({ ram: '' });
    truncateSync(join(folder, 'ram'), 3 * 2 ** 30);
    const assumed =
      /ram was taken for the memory of QEMU's machine pc, which has 3 GiB of it below 4 GiB; for a q35 say --below-4g 2G$/m;
    const guessed = await runCli(['dump', 'raw:ram', '-o', 'guessed'], { cwd: folder });
    t.equal(guessed.code, 0);
    t.match(guessed.stderr, assumed);
    const told = await runCli(['dump', 'raw:ram', '-o', 'told', '--below-4g', '2G'], { cwd: folder });
    t.notMatch(told.stderr, assumed);
    const refused = await runCli(['dump', 'raw:ram', '-o', 'x', '-d', '31'], { cwd: folder });
    t.equal(refused.code, 1);
    t.match(refused.stderr, /^vmcore: ram: [^\n]*without VMCOREINFO[^\n]*for a q35 say --below-4g 2G\n$/m);
  },
);

t.test('paging of a stream is refused', async (t) => {
  const folder = t.testdir({});
  const { stdout, stderr } = await runShell(`$vmcore dump ${DEMO} -o - 2>&- | $vmcore dump - --paging -o x`, folder);
  t.equal(stdout.length, 0);
  t.match(stderr, /^vmcore: stdin: page tables cannot be read from a stream[^\n]*\n$/);
  t.same(readdirSync(folder), []);
});

t.test('stdout or stderr that cannot be written', async (t) => {
  const folder = t.testdir({});
  const run = (script: string) => runShell(script, folder);
  const gone = await run(`$vmcore dump ${DEMO} -o - | head -c 1; echo "\${PIPESTATUS[0]}" >&2`);
  t.equal(gone.stdout.length, 1);
  t.match(gone.stderr, /^vmcore: cannot write stdout: the reader has gone away[^\n]*\n1\n$/);
  t.equal(
    (await run(`$vmcore dump ${DEMO} -o a | true; exit "\${PIPESTATUS[0]}"`)).code,
    0,
    'nobody reads the summary',
  );
  const full = await run(`$vmcore dump ${DEMO} -o b > /dev/full`);
  checkFailure(t, full, 1, /cannot write stdout: no space left/, 'no room for the summary');
  t.equal((await run(`$vmcore dump ${DEMO} -o c --progress 2> /dev/full`)).code, 0, 'no room for progress');
  t.equal((await run('$vmcore dump nosuch -o d 2> /dev/full')).code, 1, 'no room for the error');
  t.equal((await run(`$vmcore dump ${DEMO} -o d --progress 2> >(true)`)).code, 0, 'nobody reads the progress');
  t.equal((await run(`$vmcore dump ${DEMO} -o e >&- 2>&- <&-`)).code, 0, 'all closed');
  t.same(readdirSync(folder), ['a', 'b', 'c', 'd', 'e']);
});

const SIGNALS = [
  ['SIGINT', 130],
  ['SIGTERM', 143],
  ['SIGHUP', 129],
] as const;

t.test('a signal in the middle of a file: nothing is left', async (t) => {
  for (const [signal, code] of SIGNALS)
    for (const options of [[], ['--paging']]) {
      const folder = t.testdir({});
      const { child, ended } = startCli(['dump', 'demo:256G', '-o', 'vmcore', ...options], { cwd: folder });
      await until(() => hasPartial(folder));
      child.kill(signal);
      const result = await ended;
      t.equal(result.code, code, `${signal} ${options}`);
      t.equal(result.stdout.length + result.stderr.length, 0, 'without a word');
      t.same(readdirSync(folder), []);
    }
});

t.test('a signal in the middle of a stream that says no more: nothing is left', async (t) => {
  for (const [signal, code] of SIGNALS) {
    const folder = t.testdir({});
    const stdio = ['pipe', 'pipe', 'pipe'] as const;
    const { child, ended } = startCli(['dump', '-', '-o', 'vmcore'], { cwd: folder, stdio: [...stdio] });
    const core = makeCore({ segments: [{ offset: 4096, filesz: 1 << 20 }], parts: [[4096, new Uint8Array(1 << 20)]] });
    child.stdin!.write(core.subarray(0, 300_000));
    await until(() => hasPartial(folder));
    child.kill(signal);
    t.equal((await ended).code, code, signal);
    t.same(readdirSync(folder), []);
  }
});

t.test('a signal while the reader does not read', async (t) => {
  const folder = t.testdir({});
  for (const [signal, code] of SIGNALS)
    for (const args of [
      ['-o', '-'],
      ['-o', 'fifo'],
      ['--fd', '3'],
    ]) {
      execFileSync('mkfifo', [join(folder, 'fifo')]);
      const fifo = openSync(join(folder, 'fifo'), 'r+');
      const stdio = ['ignore' as const, args[1] === '-' ? fifo : ('pipe' as const), 'pipe' as const, fifo];
      const { child, ended } = startCli(['dump', DEMO, ...args], { cwd: folder, stdio });
      // Blocks until the dump has begun.
      readSync(fifo, Buffer.alloc(4096));
      child.kill(signal);
      t.equal((await ended).code, code, `${signal} ${args.join(' ')}`);
      closeSync(fifo);
      rmSync(join(folder, 'fifo'));
    }
  t.same(readdirSync(folder), []);
});

/** A mount of our own, which nobody else sees. */
const bindMount = spawnSync('unshare', ['-rm', 'mount', '--bind', CLI, CLI]);
const noMounts = skipUnless(bindMount.status === 0 ? [] : ['mounts of its own']);

t.test('targets: a file that something was mounted on', { skip: noMounts }, async (t) => {
  const folder = t.testdir({ host: 'old', vmcore: '' });
  const mounted = (options: string) =>
    runShell(`unshare -rm sh -c "mount --bind host vmcore && exec $vmcore dump ${DEMO} ${options}"`, folder);
  const refused = await mounted('-o vmcore --force');
  checkFailure(t, refused, 1, /cannot write vmcore: is a mount point, which cannot be replaced; /, 'refused');
  t.same(readdirSync(folder).sort(), ['host', 'vmcore']);
  const fd = await mounted('--fd 3 3> vmcore');
  t.equal(fd.code, 0, fd.stderr);
  t.ok(statSync(join(folder, 'host')).size > 1000, 'by its descriptor it can be written');
});

t.test('small files: a FIFO is read when it is written to, and can be interrupted until then', async (t) => {
  const folder = t.testdir({ 'guest.ram': 'A'.repeat(8192), 'regs.txt': REGISTERS });
  execFileSync('mkfifo', [join(folder, 'fifo')]);
  writeFileSync(
    join(folder, 'guest.json'),
    JSON.stringify({ version: 1, arch: 'x86_64', memory: [{ base: 0, length: 4096 }], registers: 'fifo' }),
  );
  const commands: readonly (readonly string[])[] = [
    ['raw:guest.ram', '--registers', 'fifo'],
    ['raw:guest.ram', '--vmcoreinfo', 'fifo'],
    ['guest.json'],
  ];
  for (const args of commands)
    for (const signal of ['SIGINT', 'SIGTERM'] as const) {
      const { child, ended } = startCli(['dump', ...args, '-o', 'x'], { cwd: folder });
      await until(() => opens(child.pid!, join(folder, 'fifo')));
      child.kill(signal);
      t.match(await ended, { code: signal === 'SIGINT' ? 130 : 143, stderr: '' }, `${args.join(' ')}: ${signal}`);
    }
  const script = '$vmcore dump raw:guest.ram --registers <(sleep 0.2; cat regs.txt) -o x';
  t.match(await runShell(script, folder), { code: 0, stderr: '' });
});

/** Whether a process has a file open. */
function opens(pid: number, path: string): boolean {
  const links = readdirSync(`/proc/${pid}/fd`).map((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`);
    } catch {
      return '';
    }
  });
  return links.includes(path);
}

t.test('a signal while there is nothing to do but wait', async (t) => {
  const folder = t.testdir({});
  execFileSync('mkfifo', [join(folder, 'fifo')]);
  const waiting = {
    'a silent stdin': ['dump', '-', '-o', 'vmcore'],
    'a FIFO that nobody writes': ['dump', 'fifo', '-o', 'vmcore'],
    'a FIFO that nobody reads': ['dump', DEMO, '-o', 'fifo'],
    'inspecting a FIFO that nobody writes': ['inspect', 'fifo'],
  };
  for (const [title, args] of Object.entries(waiting))
    for (const [signal, code] of SIGNALS) {
      const { child, ended } = startCli(args, { cwd: folder, stdio: ['pipe', 'pipe', 'pipe'] });
      await sleep(400);
      child.kill(signal);
      t.equal((await ended).code, code, `${title}: ${signal}`);
    }
  t.same(readdirSync(folder), ['fifo']);
});

t.test('an impatient second signal leaves nothing either', async (t) => {
  const folder = t.testdir({});
  const { child, ended } = startCli(['dump', 'demo:256G', '-o', 'vmcore'], { cwd: folder });
  await until(() => hasPartial(folder));
  child.kill('SIGINT');
  child.kill('SIGINT');
  t.equal((await ended).code, 130);
  t.same(readdirSync(folder), []);
});
