/**
 * Input that lies, and a world that fails: each ends with one clear line, exit code 1 or 2, and nothing left behind;
 * or with the dump, where it can be had.
 */

import { execFileSync, spawnSync } from 'node:child_process';
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { dump, type Guest, openGuest } from '../lib/index.js';
import { CLI, type CliResult, checkFailure, eachOf, quoted, runCli, runShell } from './cli/run-cli.js';
import { GUEST_NAMES, missingTools, ORACLE_GUESTS, oracleGuest } from './guests/oracle.js';
import { makeCore, pattern, type Segment, smallCore } from './sources/elf-fixtures.js';
import { needsMount, skipUnless } from './tools.js';

const MIB = 1 << 20;

/** One clear line and an exit code of failure; nothing of a dump in the folder `out`. */
function checkRefused(t: Test, result: CliResult, folder: string, title: string): void {
  t.ok(result.code === 1 || result.code === 2, `${title}: exit code ${result.code}`);
  t.match(result.stderr, /^vmcore: [^\n]+\n$/, `${title}: one line`);
  t.notMatch(result.stderr, /TypeError|RangeError|undefined|NaN|BigInt|\bat .*:\d+/, `${title}: fit for a user`);
  t.same(readdirSync(join(folder, 'out')), [], `${title}: nothing left`);
}

/** A folder of its own for one of many that run at a time: what one is writing is nothing that another has left. */
function folderFor(folder: string, name: string): string {
  const own = join(folder, name);
  mkdirSync(join(own, 'out'), { recursive: true });
  return own;
}

t.test('page tables of hostile guests', async (t) => {
  for (const name of GUEST_NAMES.filter((name) => ORACLE_GUESTS[name].hostile)) {
    const missing = [...missingTools(name), ...(spawnSync('time', ['-V']).error ? ['time'] : [])];
    t.test(name, { skip: skipUnless(missing) }, async (t) => {
      const guest = await oracleGuest(name);
      const folder = t.testdir({ out: {} });
      const run = (source: string, ...options: string[]) =>
        runShell(
          `command time -f %M -o rss $vmcore dump ${quoted(source)} --paging -o out/vmcore --json ${options.join(' ')}`,
          folder,
        );
      for (const source of ['guest.json', 'qemu.elf']) {
        const result = await run(guest.path(source));
        const rss = Number(/^\d+$/m.exec(readFileSync(join(folder, 'rss'), 'utf8'))?.[0]);
        t.ok(rss > 0 && rss < 256 * 1024, `${source}: ${rss} KiB are at most 256 MiB`);
        if (result.code === 0) {
          t.match(result.stderr, /^(vmcore: warning: [^\n]*--max-(mappings|page-tables)[^\n]*\n)?$/, 'a line or none');
          const { mappings, warnings } = JSON.parse(result.stdout.toString()) as {
            mappings: number;
            warnings: string[];
          };
          t.ok(mappings > 0, `${source}: ${mappings} mappings`);
          t.equal(warnings.length > 0, result.stderr !== '', 'the object has the warnings, too');
          t.equal(spawnSync(process.execPath, [CLI, 'inspect', join(folder, 'out/vmcore')]).status, 0);
        } else checkRefused(t, result, folder, source);
        execFileSync('rm', ['-rf', join(folder, 'out/vmcore')]);
      }
      const strict = await run(guest.path('guest.json'), '--max-page-tables', '1');
      checkRefused(t, strict, folder, 'a bound of one table');
      t.match(strict.stderr, /--max-page-tables\b/, 'names the option that raises it');
    });
  }
});

t.test('ELF cores that are cut, at every header boundary and in their memory', async (t) => {
  const all = t.testdir({});
  const core = Buffer.from(smallCore());
  const headers = [0, 1, 4, 15, 16, 63, 64, 64 + 56 - 1, 64 + 56, 64 + 2 * 56, 64 + 3 * 56 - 1, 64 + 3 * 56];
  const lengths = [...headers, core.length - 0x280, core.length - 0x100, core.length - 1];
  await eachOf(lengths, async (length) => {
    const folder = folderFor(all, `${length}`);
    writeFileSync(join(folder, 'cut'), core.subarray(0, length));
    const file = await runCli(['dump', 'cut', '-o', 'out/file'], { cwd: folder });
    checkRefused(t, file, folder, `${length} bytes`);
    const stream = await runShell(`cat cut | $vmcore dump - -o out/stream`, folder);
    checkRefused(t, stream, folder, `${length} bytes as a stream`);
  });
});

t.test('ELF cores that lie', async (t) => {
  const all = t.testdir({});
  const bytes = pattern(8192);
  const load = (segment: Segment): Segment => ({ offset: 4096, filesz: 4096, paddr: 0, ...segment });
  const core = (spec: object) => makeCore({ parts: [[4096, bytes]], segments: [load({})], ...spec });
  const refused: Record<string, Uint8Array> = {
    'more program headers than there are': core({ phnum: 60_000 }),
    'PN_XNUM without a section header': core({ phnum: 0xffff }),
    'PN_XNUM with a lie in the section header': core({ phnum: 0xffff, shoff: 4096, shnum: 1 }),
    'no program headers': core({ phnum: 0 }),
    'program headers beyond the end': core({ phoff: 2n ** 40n }),
    'program headers beyond 2^64': core({ phoff: 2n ** 64n - 8n }),
    'program headers of no size': core({ phentsize: 0 }),
    'a huge p_filesz': core({ segments: [load({ filesz: 2n ** 62n })] }),
    'a p_filesz of 2^64 - 1': core({ segments: [load({ filesz: 2n ** 64n - 1n })] }),
    'a p_offset of 2^63': core({ segments: [load({ offset: 2n ** 63n })] }),
    'an address above 52 bits': core({ segments: [load({ paddr: 2n ** 60n })] }),
    'a note that reaches out of the file': core({ segments: [{ type: 4, offset: 8000, filesz: 2n ** 33n }, load({})] }),
    'notes of terabytes': core({ segments: [{ type: 4, offset: 0, filesz: 2n ** 41n }, load({})] }),
    'another machine': core({ machine: 183 }),
    'big-endian': core({ data: 2 }),
    'an executable': core({ type: 2 }),
    'no memory': core({ segments: [{ type: 4 }] }),
  };
  await eachOf(Object.entries(refused), async ([title, lie]) => {
    const folder = folderFor(all, title.replace(/\W+/g, '-'));
    const name = 'lie.elf';
    writeFileSync(join(folder, name), lie);
    checkRefused(t, await runCli(['dump', name, '-o', 'out/file'], { cwd: folder }), folder, title);
    checkRefused(t, await runShell(`cat ${name} | $vmcore dump - -o out/stream`, folder), folder, `${title}, a stream`);
    t.not((await runCli(['inspect', name], { cwd: folder })).code, 0, `${title}: nor inspected`);
  });

  const overlapping = core({
    segments: [load({ filesz: 8192 }), load({ offset: 8192, paddr: 4096 }), load({ offset: 4096, paddr: 0 })],
  });
  const folder = folderFor(all, 'overlapping');
  writeFileSync(join(folder, 'overlapping'), overlapping);
  const result = await runCli(['dump', 'overlapping', '-o', 'out/vmcore'], { cwd: folder });
  t.equal(result.code, 0, `segments that overlap and agree: ${result.stderr}`);
});

t.test('guest descriptions that lie', async (t) => {
  const folder = t.testdir({ 'guest.ram': 'A'.repeat(8192), 'short.ram': 'A'.repeat(100), dir: {}, out: {} });
  const guest = { version: 1, arch: 'x86_64', memory: [{ base: 0, length: 8192, file: 'guest.ram' }] };
  const block = (fields: object) => ({ ...guest, memory: [{ ...guest.memory[0], ...fields }] });
  const refused: Record<string, [description: unknown, message: RegExp]> = {
    'a missing file': [block({ file: 'nosuch' }), /nosuch: no such file/],
    'a directory': [block({ file: 'dir' }), /dir: is a directory/],
    'a file that is too short': [block({ file: 'short.ram' }), /has only 100 bytes/],
    'an offset behind the end': [block({ offset: 8192 }), /has only 8192 bytes/],
    'a huge offset': [block({ offset: 2 ** 53 - 8192 }), /has only 8192 bytes/],
    'missing registers': [{ ...guest, registers: 'nosuch' }, /nosuch: no such file/],
    'registers that are none': [{ ...guest, registers: 'guest.ram' }, /guest\.ram/],
    'missing VMCOREINFO': [{ ...guest, vmcoreinfo: 'nosuch' }, /nosuch: no such file/],
    'overlapping blocks': [
      { ...guest, memory: [...guest.memory, { base: 4096, length: 4096 }] },
      /0x0\+0x2000 and 0x1000\+0x1000 overlap/,
    ],
    'the same block twice': [{ ...guest, memory: [...guest.memory, ...guest.memory] }, /overlap/],
    'a negative base': [block({ base: -4096 }), /memory\[0\]\.base.*-4096/],
    'a negative length': [block({ length: '-0x1000' }), /memory\[0\]\.length/],
    'a length of zero': [block({ length: 0 }), /memory\[0\]\.length/],
    'a fraction': [block({ length: 4096.5 }), /memory\[0\]\.length/],
    'a base above 2^53': [block({ base: 1e300 }), /memory\[0\]\.base/],
    'a base above 2^52': [block({ base: '0x10000000000000', file: undefined }), /52 bits/],
    'a base of 2^64': [block({ base: '0x10000000000000000' }), /memory\[0\]\.base/],
    'a block that ends above 2^52': [block({ base: '0xffffffffff000', length: '0x2000' }), /52 bits/],
    'a register of 65 bits': [{ ...guest, cpus: [{ rax: '0x1ffffffffffffffff' }] }, /cpus\[0\]\.rax/],
    'a negative register': [{ ...guest, cpus: [{ rax: -1 }] }, /cpus\[0\]\.rax/],
    'a number that JSON makes infinite': ['{"version":1,"arch":"i386","memory":[{"base":1e999,"length":1}]}', /base/],
    'an unknown member': [{ ...guest, memroy: [] }, /unknown member "memroy"/],
    'an unknown member of a block': [block({ size: 1 }), /memory\[0\]: unknown member "size"/],
    'an unknown register': [{ ...guest, cpus: [{ r16: 0 }] }, /cpus\[0\]: unknown member "r16"/],
    'another version': [{ ...guest, version: 2 }, /version: must be 1/],
    'another architecture': [{ ...guest, arch: 'arm64' }, /arch: must be "x86_64" or "i386"/],
    'no memory': [{ ...guest, memory: [] }, /memory: must have a block/],
    'memory that is no list': [{ ...guest, memory: {} }, /memory: must be a list/],
    'nothing at all': [{}, /is missing/],
    'half of it': [JSON.stringify(guest).slice(0, 50), /is not JSON/],
    'lines of junk': ['{\n\n"a":\n\n}', /is not JSON/],
    __proto__: ['{"__proto__":{"version":1}}', /unknown member|is missing/],
    'a deep hole': [`{"version":${'['.repeat(100_000)}`, /JSON/],
  };
  await eachOf(Object.entries(refused), async ([title, [description, message]]) => {
    const name = `${title.replace(/\W+/g, '-')}.json`;
    writeFileSync(join(folder, name), typeof description === 'string' ? description : JSON.stringify(description));
    const result = await runCli(['dump', name, '-o', 'out/vmcore'], { cwd: folder });
    checkRefused(t, result, folder, title);
    t.match(result.stderr, message, title);
  });
});

t.test('a description that claims 64 TiB of nothing ends, whole or not', async (t) => {
  const folder = t.testdir({
    'guest.json': JSON.stringify({ version: 1, arch: 'x86_64', memory: [{ base: 0, length: 2 ** 46 }], cpus: [{}] }),
    out: {},
  });
  const result = await runCli(['dump', 'guest.json', '-o', 'out/vmcore'], { cwd: folder });
  // By the largest file that the file system takes.
  if (result.code === 0) t.ok(statSync(join(folder, 'out/vmcore')).blocks < 2048);
  else checkRefused(t, result, folder, 'a file too large');
});

const DEMO = 'demo:64M';

t.test('a full disk: /dev/full', async (t) => {
  const folder = t.testdir({});
  checkFailure(
    t,
    await runShell(`$vmcore dump ${DEMO} -o - > /dev/full`, folder),
    1,
    /cannot write stdout: no space/,
    '-',
  );
  const byPath = await runCli(['dump', DEMO, '-o', '/dev/full'], { cwd: folder });
  checkFailure(t, byPath, 1, /cannot write \/dev\/full: no space left on device/, 'by its path');
  t.ok(statSync('/dev/full').isCharacterDevice(), 'still there');
});

t.test('a full disk: a small tmpfs', { skip: needsMount() }, async (t) => {
  const folder = t.testdir({ tmpfs: {} });
  const disk = join(folder, 'tmpfs');
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', disk]);
  // Not by t.teardown: the folder is removed before that.
  try {
    await fillDisk(t, folder, disk);
  } finally {
    execFileSync('umount', [disk]);
  }
});

async function fillDisk(t: Test, folder: string, disk: string): Promise<void> {
  for (const options of [[], ['--no-sparse'], ['--paging'], ['--sync']]) {
    const result = await runCli(['dump', DEMO, '-o', 'tmpfs/vmcore', ...options], { cwd: folder });
    checkFailure(t, result, 1, /cannot write tmpfs\/vmcore: no space left on device/, options.join(' '));
    t.same(readdirSync(disk), [], 'empty again');
  }
  writeFileSync(join(disk, 'vmcore'), 'old');
  const forced = await runCli(['dump', DEMO, '-o', 'tmpfs/vmcore', '--force'], { cwd: folder });
  checkFailure(t, forced, 1, /no space left on device/, '--force');
  t.equal(readFileSync(join(disk, 'vmcore'), 'utf8'), 'old', 'the old file is kept');
  t.same(readdirSync(disk), ['vmcore']);
  const byDescriptor = await runShell(`$vmcore dump ${DEMO} --fd 3 3> tmpfs/three`, folder);
  checkFailure(t, byDescriptor, 1, /cannot write fd 3: no space left on device/, '--fd');
}

t.test('a reader that goes away', async (t) => {
  const folder = t.testdir({});
  execFileSync('mkfifo', [join(folder, 'fifo')]);
  const ways = {
    'at once': `$vmcore dump ${DEMO} -o - | true`,
    'after a while': `$vmcore dump ${DEMO} -o - | head -c 3000000 > /dev/null`,
    'of a FIFO': `head -c 100000 fifo > /dev/null & $vmcore dump ${DEMO} -o fifo | cat`,
    'of fd 3': `$vmcore dump ${DEMO} --fd 3 3>&1 >&2 | head -c 5 > /dev/null`,
  };
  for (const [way, script] of Object.entries(ways)) {
    const result = await runShell(`${script}; echo "\${PIPESTATUS[0]}"`, folder);
    t.equal(result.stdout.toString(), '1\n', `${way}: exit code`);
    t.match(result.stderr, /^vmcore: cannot write \S+( 3)?: the reader has gone away[^\n]*\n$/, way);
  }
});

/** A raw memory file: data, or a hole between data. */
function writeRam(path: string, size: number, sparse: boolean): void {
  const fd = openSync(path, 'w');
  const data = pattern(MIB);
  ftruncateSync(fd, size);
  const step = sparse ? size - MIB : MIB;
  for (let at = 0; at < size; at += step) writeSync(fd, data, 0, MIB, at);
  closeSync(fd);
}

/** A folder with a guest whose memory is the file `ram`. */
function ramGuest(t: Test, size: number, sparse: boolean): string {
  const description = {
    version: 1,
    arch: 'x86_64',
    memory: [{ base: 0, length: size, file: 'ram' }],
    cpus: [{ rip: 1 }],
  };
  const folder = t.testdir({ 'guest.json': JSON.stringify(description), out: {} });
  writeRam(join(folder, 'ram'), size, sparse);
  return folder;
}

t.test('a file that shrinks while it is read', async (t) => {
  const folder = ramGuest(t, 64 * MIB, false);
  const reader = '{ head -c 65536; truncate -s 4M ram; cat; } > /dev/null';
  const result = await runShell(`$vmcore dump guest.json -o - | ${reader}; exit "\${PIPESTATUS[0]}"`, folder);
  checkRefused(t, result, folder, 'shrunk');
  t.match(result.stderr, /ram ends at byte 4194304, but \d+ more bytes of memory belong there; .* has shrunk$/m);
});

t.test('a file that shrinks before it is read, to the middle of a hole, too', async (t) => {
  for (const sparse of [false, true]) {
    const folder = ramGuest(t, 16 * MIB, sparse);
    const guest = await openGuest(join(folder, 'guest.json'));
    truncateSync(join(folder, 'ram'), 5 * MIB);
    const file = join(folder, 'out/vmcore');
    await t.rejects(
      dump(guest, {}, { file }).finished,
      { code: 'TRUNCATED', message: /ram ends at byte 5242880/ },
      sparse ? 'sparse' : 'dense',
    );
    guest.close();
    t.same(readdirSync(join(folder, 'out')), []);
  }
});

t.test('a file that grows while it is read is dumped as it was described', async (t) => {
  const folder = ramGuest(t, 4 * MIB, false);
  const guest: Guest = await openGuest(join(folder, 'guest.json'));
  truncateSync(join(folder, 'ram'), 8 * MIB);
  const { size } = await dump(guest, {}, { file: join(folder, 'out/vmcore') }).finished;
  guest.close();
  t.equal(statSync(join(folder, 'out/vmcore')).size, size);
});

t.test('sources that are no files', async (t) => {
  const folder = t.testdir({ dir: {}, out: {} });
  writeFileSync(join(folder, 'core'), smallCore());
  execFileSync('mkfifo', [join(folder, 'fifo')]);
  for (const source of ['dir', 'raw:dir', 'raw:fifo', 'raw:/dev/zero', '/dev/null', '/dev/zero', '/proc/self/mem'])
    checkRefused(t, await runCli(['dump', source, '-o', 'out/vmcore'], { cwd: folder }), folder, source);
  for (const count of [0, 3, 60, 100, 300, 900]) {
    const early = await runShell(`head -c ${count} core > fifo & $vmcore dump fifo -o out/vmcore`, folder);
    checkRefused(t, early, folder, `a FIFO whose writer closes after ${count} bytes`);
    t.match(early.stderr, /fifo/, 'says which');
  }
});
