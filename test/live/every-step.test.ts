/** A dump of a live guest that ends at any step: the guest runs again, and the vmcore is whole or not there. */

import { spawnSync } from 'node:child_process';
import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { CLI, hasPartial, runCli, until } from '../cli/run-cli.js';
import { needsTools } from '../tools.js';
import { launchLive, type LiveGuest, liveQemus, MIB } from './live-qemu.js';
import { Relay } from './relay.js';

const [qemu] = await liveQemus();
const { skip } = qemu!;

async function running(t: Test): Promise<LiveGuest> {
  const live = await launchLive(t, qemu!, { memory: 64 * MIB });
  await live.qemu.cont();
  return live;
}

const dumpOf = (source: string, output: string) => ['dump', source, '-f', 'kdump-raw-lzo', '-o', output];

/** What is there is whole. */
async function checkOutput(t: Test, output: string, title: string): Promise<void> {
  if (!existsSync(output)) return;
  const { code, stderr } = await runCli(['inspect', output]);
  t.equal(code, 0, `${title}: ${stderr}`);
  rmSync(output);
}

for (const [way, step] of [
  ['file', 5],
  ['stream', 3],
] as const)
  t.test(`the connection is cut after any message, memory read by ${way}`, { skip }, async (t) => {
    const live = await running(t);
    const output = join(live.folder, 'vmcore');
    for (let cutAfter = 1, wasCut = true; wasCut; cutAfter += step) {
      const relay = await Relay.start(join(live.folder, `relay-${cutAfter}`), live.socket, { cutAfter });
      const title = `after ${cutAfter} messages`;
      const { code, stderr } = await runCli([...dumpOf(relay.source, output), '--memory-path', way]);
      const lines = stderr.split('\n').filter((line) => line !== '' && !line.startsWith('vmcore: warning: '));
      t.equal(lines.length, code === 0 ? 0 : 1, `${title}: ${code}, ${stderr}`);
      t.equal(await live.status(), 'running', title);
      t.equal(existsSync(output) || /is written and whole/.test(stderr), code === 0, title);
      t.notOk(hasPartial(live.folder), title);
      await checkOutput(t, output, title);
      ({ wasCut } = relay);
      relay.close();
    }
  });

/** Calls that a dump makes in the pause, and every how many of them it is killed. */
const CALLS = { sendmsg: 1, pipe2: 2, pread64: 12, write: 6 } as const;

t.test('we are killed at any system call', { skip: skip || needsTools('strace') }, async (t) => {
  const live = await running(t);
  const output = join(live.folder, 'vmcore');
  for (const [call, step] of Object.entries(CALLS))
    for (let when = 1, wasKilled = true; wasKilled; when += step) {
      const inject = ['-e', `trace=${call}`, '-e', `inject=${call}:signal=SIGKILL:when=${when}`];
      const strace = ['-f', '-qq', '-o', '/dev/null', ...inject, process.execPath, CLI];
      const { NODE_OPTIONS: _, ...env } = process.env;
      const { status } = spawnSync('strace', [...strace, ...dumpOf(live.source, output), '--memory-path', 'proc'], {
        env,
      });
      await until(async () => (await live.status()) === 'running');
      await checkOutput(t, output, `${call} ${when}`);
      wasKilled = status !== 0;
    }
  t.equal(await live.status(), 'running');
});
