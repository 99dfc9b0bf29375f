/** A FIFO for QEMU's dump has no name any more when nobody reads it. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { createInterface } from 'node:readline';
import t from 'tap';
import { DumpFifo } from '../../lib/live/qemu/dump-fifo.js';
import { until } from '../cli/run-cli.js';
import { needsTools } from '../tools.js';

const skip = needsTools('mkfifo');
const MODULE = new URL('../../lib/live/qemu/dump-fifo.js', import.meta.url).href;

t.test('its name goes before its reader', { skip }, async (t) => {
  const fifo = await DumpFifo.make();
  t.ok(statSync(fifo.path).isFIFO());
  fifo.unname();
  t.notOk(existsSync(dirname(fifo.path)));
  fifo.unname();
  closeSync(fifo.fd);
});

t.test('also when the process is killed', { skip }, async (t) => {
  const script = `import { DumpFifo } from ${JSON.stringify(MODULE)}; console.log((await DumpFifo.make()).path); setInterval(() => {}, 1e9)`;
  const { NODE_OPTIONS: _, ...env } = process.env;
  const stdio = ['ignore', 'pipe', 'inherit'] as const;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], { env, stdio: [...stdio] });
  const [path] = (await once(createInterface(child.stdout!), 'line')) as [string];
  t.ok(existsSync(path));
  child.kill('SIGKILL');
  await until(() => !existsSync(dirname(path)));
});
