/** The bundled command line: what it starts from, and what it starts. */

import { cpSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { spawnSync } from 'node:child_process';
import t, { type Test } from 'tap';
import { CLI } from '../tools.js';

const { version } = JSON.parse(readFileSync('package.json', 'utf8')) as { version: string };

/** A copy of the bundle that can be spoiled, where it finds its package. */
function copyOf(t: Test): { readonly cli: string; readonly cache: string; readonly folder: string } {
  const root = t.testdir({ dist: {} });
  const folder = join(root, 'dist/cli');
  cpSync(dirname(CLI), folder, { recursive: true });
  cpSync('package.json', join(root, 'package.json'));
  return { cli: join(folder, 'cli.js'), cache: join(folder, 'command.cache'), folder: root };
}

/** Without what tap has node processes load. */
function run(cli: string, ...args: string[]) {
  const env = { ...process.env, NODE_OPTIONS: '' };
  return spawnSync(process.execPath, [cli, ...args], { encoding: 'utf8', env, cwd: '/' });
}

t.test("the version is the package's, wherever it is asked for", async (t) => {
  t.match(run(CLI, '--version'), { status: 0, stdout: `${version}\n`, stderr: '' });
});

t.test('kept code that is missing, cut or of another build is done without', async (t) => {
  const { cli, cache } = copyOf(t);
  const kept = readFileSync(cache);
  const spoiled = Buffer.from(kept);
  spoiled.fill(0xff, 0, 64);
  for (const [name, bytes] of [
    ['whole', kept],
    ['of another V8', spoiled],
    ['cut', kept.subarray(0, 1000)],
    ['empty', Buffer.alloc(0)],
    ['missing', null],
  ] as const) {
    if (bytes) writeFileSync(cache, bytes);
    else rmSync(cache);
    t.match(run(cli, '--version'), { status: 0, stdout: `${version}\n`, stderr: '' }, name);
  }
});

t.test('threads that are started ahead are used, or let go', async (t) => {
  const { cli, folder } = copyOf(t);
  const file = join(folder, 'vmcore');
  const dump = ['dump', 'demo:64M', '-f', 'kdump-raw-lzo'];
  t.match(run(cli, ...dump, '-o', file), { status: 0, stderr: '' });
  t.ok(statSync(file).size > 0);
  t.match(run(cli, ...dump, '-o', file), { status: 1, stderr: /exists/ }, 'a failure ends the process');
  t.match(run(cli, ...dump), { status: 2, stderr: /say where to/ }, 'wrong usage does, too');
  t.match(run(cli, ...dump, '--help'), { status: 0, stdout: /--format/ });
});
