/** Each example runs as its first lines say, and makes what it says. */

import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import t, { type Test } from 'tap';
import { demoGuest, dump, openGuest } from '../lib/index.js';
import { hasTool, needsTools } from './tools.js';

const EXAMPLES = fileURLToPath(new URL('../examples', import.meta.url));
const MIB = 1 << 20;

/** Runs an example; its stdout. */
function run(t: Test, folder: string, name: string, ...args: string[]): Buffer {
  const { status, stdout, stderr } = spawnSync(
    'env',
    ['-u', 'NODE_OPTIONS', process.execPath, join(EXAMPLES, `${name}.js`), ...args],
    { cwd: folder, maxBuffer: 1 << 30 },
  );
  t.equal(status, 0, `${name}: ${stderr}`);
  t.equal(stderr.toString(), '', `${name} is silent on stderr`);
  return stdout;
}

/** readelf reads it and has nothing to complain of. */
function checkReadelf(t: Test, path: string): void {
  if (!hasTool('readelf')) {
    t.pass(`readelf -a ${basename(path)}`, { skip: needsTools('readelf') });
    return;
  }
  const { status, stdout, stderr } = spawnSync('readelf', ['-a', '-W', path], { encoding: 'utf8' });
  t.equal(status, 0);
  t.equal(stderr, '');
  t.match(stdout, /Type: +CORE/);
  t.notMatch(stdout, /warning/i);
}

async function demoBytes(t: Test, memory: number): Promise<Buffer> {
  const file = join(t.testdir({}), 'reference');
  await dump(demoGuest({ memory }), {}, { file, force: true }).finished;
  return readFileSync(file);
}

t.test('there is a test for each', async (t) => {
  // Those of the monitor are tested beside it, in test/qmp/examples.test.ts.
  const names = readdirSync(EXAMPLES).filter((name) => name.endsWith('.js') && !name.startsWith('qmp-'));
  t.same(names.sort(), ['compose-kdump.js', 'compose.js', 'demo.js', 'parent.js', 'pipe.js']);
});

t.test('compose: a part of the guest, stage by stage', async (t) => {
  const folder = t.testdir({});
  const stdout = run(t, folder, 'compose', 'out.vmcore').toString();
  t.match(stdout, /^out\.vmcore: \d+ PT_LOADs?, 16777216 bytes of memory\n$/);
  checkReadelf(t, join(folder, 'out.vmcore'));
  const guest = await openGuest(join(folder, 'out.vmcore'));
  t.match(guest.blocks, [{ base: MIB, length: 16 * MIB }]);
  t.equal(guest.cpus.length, 2);
  guest.close();
  run(t, folder, 'compose');
  t.same(readdirSync(folder).sort(), ['out.vmcore', 'part.vmcore'], 'a name is not needed');
});

t.test('compose-kdump: a vmcore becomes a kdump', async (t) => {
  const folder = t.testdir({});
  await dump(demoGuest({ memory: 64 * MIB }), {}, { file: join(folder, 'elf') }).finished;
  const stdout = run(t, folder, 'compose-kdump', 'elf', 'kdump').toString();
  t.match(stdout, /^kdump: \d+ pages of zeros, \d+ stored, \d+ compressed\n$/);
  await dump(demoGuest({ memory: 64 * MIB }), { format: 'kdump-raw-lzo', level: 2 }, { file: join(folder, 'want') })
    .finished;
  const [made, want] = ['kdump', 'want'].map((name) => readFileSync(join(folder, name)));
  t.ok(made!.equals(want!), 'the same bytes as of dump()');
});

t.test('pipe: gzip on the way', async (t) => {
  const want = await demoBytes(t, 64 * MIB);
  const bytes = gunzipSync(run(t, t.testdir({}), 'pipe'));
  t.ok(bytes.equals(want), 'what gunzip makes of it is a dump of the same guest');
});

t.test('parent: a descriptor is handed over', async (t) => {
  const want = await demoBytes(t, 64 * MIB);
  const folder = t.testdir({});
  const stdout = run(t, folder, 'parent', 'out.vmcore').toString();
  const [, written, size] = /^the child wrote (\d+) bytes in [\d.]+ s; the file has (\d+)\n$/.exec(stdout) ?? [];
  t.equal(Number(written), want.length);
  t.equal(Number(size), want.length);
  t.ok(readFileSync(join(folder, 'out.vmcore')).equals(want));
  t.equal(statSync(join(folder, 'out.vmcore')).mode & 0o777, 0o600);
  checkReadelf(t, join(folder, 'out.vmcore'));
});

t.test('demo: npm start', async (t) => {
  const folder = t.testdir({});
  const stdout = run(t, folder, 'demo').toString();
  t.match(stdout, /demo\.vmcore is an ELF vmcore of a synthesised x86-64 guest with 2 CPUs:/);
  t.match(stdout, /npx vmcore inspect demo\.vmcore/);
  checkReadelf(t, join(folder, 'demo.vmcore'));
  run(t, folder, 'demo');
  t.same(readdirSync(folder), ['demo.vmcore'], 'it can be run again');

  const gdb = /^ {2}(gdb .*)$/m.exec(stdout)?.[1];
  t.ok(gdb, 'says how gdb looks at it');
  if (!hasTool('gdb')) t.pass('gdb', { skip: needsTools('gdb') });
  else {
    const { status, stdout: shown } = spawnSync('sh', ['-c', gdb!], { cwd: folder, encoding: 'utf8' });
    t.equal(status, 0);
    t.match(shown, /=> 0xffffffff81001006:/);
  }
});
