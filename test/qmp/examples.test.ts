/** The examples of the adapter, run as a reader would. */

import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import t from 'tap';
import { openGuest } from '../../lib/index.js';
import { makeShortFolder } from '../short-folder.js';
import { REPOSITORY } from '../guests/places.js';

const folder = makeShortFolder();
t.teardown(() => rmSync(folder, { recursive: true, force: true }));

const example = (name: string) => join(REPOSITORY, 'dist', 'examples', `${name}.js`);
const { NODE_OPTIONS: _, ...env } = process.env;

t.test('qmp-parent', async (t) => {
  const file = join(folder, 'parent');
  const { stdout, stderr, status } = spawnSync(process.execPath, [example('qmp-parent'), file], {
    encoding: 'utf8',
    env,
  });
  t.equal(status, 0, stderr);
  t.match(stdout, /^(active: \d+%\n)*completed: 100%\nDUMP_COMPLETED: completed, \d+ bytes of memory \n$/);
  const guest = await openGuest(file);
  t.equal(guest.blocks.length > 0, true, 'the target is a vmcore');
  guest.close();
});

t.test('qmp-own-source', async (t) => {
  const source = readFileSync(join(REPOSITORY, 'examples', 'qmp-own-source.ts'), 'utf8');
  const code = source.slice(source.indexOf('*/') + 2).trim();
  t.ok(code.split('\n').length < 40, `${code.split('\n').length} lines`);
  const file = join(folder, 'own');
  const child = spawn(process.execPath, [example('qmp-own-source'), 'stdio'], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env,
  });
  const output = text(child.stdout!);
  child.stdin!.end(`{'execute': 'qmp_capabilities'}
    {'execute': 'dump-guest-memory', 'arguments': {'paging': false, 'protocol': 'file:${file}', 'format': 'kdump-raw-lzo'}}
    {'execute': 'query-dump'}`);
  const [[exitCode], lines] = await Promise.all([once(child, 'exit'), output]);
  t.equal(exitCode, 0);
  t.match(
    lines.trim().split('\r\n').at(-1),
    /"return": \{"total": 16777216, "status": "completed", "completed": 16777216\}/,
  );
  const guest = await openGuest(file);
  const word = Buffer.alloc(8);
  guest.memory!.read(0x123458, word);
  t.equal(word.readBigUInt64LE(), 0x123458n, 'the vmcore has the memory');
  guest.close();
});
