/** QEMU does not answer, or the connection to it is lost: nobody waits for ever, and the guest runs again. */

import { readdirSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { connectQmp, type QmpClient } from '../../lib/qmp/protocol/client.js';
import { demoGuest } from '../../lib/sources/demo/demo.js';
import { openQemu } from '../../lib/live/qemu/qemu-guest.js';
import { checkFailure, startCli, until } from '../cli/run-cli.js';
import { sameMemory } from '../oracle/compare-kdump.js';
import { hasTool, skipUnless } from '../tools.js';
import { FakeQemu, refusal } from './fake-qemu.js';
import { launchLive, type LiveGuest, liveQemus } from './live-qemu.js';
import { Relay } from './relay.js';
import { StuckFifo } from './stuck-fifo.js';

const never = () => new Promise<never>(() => {});
const skipFake = skipUnless(process.platform === 'linux' && hasTool('mkfifo') ? [] : ['mkfifo']);

t.test('given up while QEMU does not answer', { skip: skipFake }, async (t) => {
  for (const command of ['query-status', 'stop', 'query-memdev', 'dump-guest-memory']) {
    const abort = new AbortController();
    const qemu = new FakeQemu({
      [command]: () => {
        abort.abort();
        return never();
      },
    });
    await t.rejects(openQemu(qemu, { signal: abort.signal }), { code: 'ABORTED' }, command);
    if (command !== 'query-status') await until(() => qemu.status === 'running');
  }
});

t.test('the answer to stop comes when it was given up', { skip: skipFake }, async (t) => {
  const abort = new AbortController();
  const qemu: FakeQemu = new FakeQemu({
    stop: async () => {
      abort.abort();
      await sleep(3000);
      return undefined;
    },
    // Commands are carried out one after the other.
    'query-status': async () => {
      if (qemu.executed.includes('stop')) await until(() => qemu.status === 'paused');
      return undefined;
    },
  });
  await t.rejects(openQemu(qemu, { signal: abort.signal }), { code: 'ABORTED' });
  await until(() => qemu.executed.includes('cont'));
  await until(() => qemu.status === 'running');
});

t.test('it cannot be resumed when it has been copied', { skip: skipFake }, async (t) => {
  const folder = t.testdir({});
  const qemu = new FakeQemu({
    cont: () => {
      throw refusal('cont', 'Resetting the Virtual Machine is required');
    },
  });
  const before = readdirSync('/proc/self/fd').length;
  const guest = await openQemu(qemu, { pauseOnlyForCopy: true, copyLimit: 4096, copySpool: folder });
  await sameMemory(t, demoGuest(), guest);
  await t.rejects(guest.live!.release(), { message: /could not be resumed: .*Resetting/ }, 'which is not hidden');
  guest.close();
  t.equal(readdirSync('/proc/self/fd').length, before, 'no descriptor is left');
});

const [qemu] = await liveQemus();
const { skip } = qemu!;

/** A connection over which a machine is not resumed. */
async function withoutCont({ socket }: LiveGuest): Promise<QmpClient> {
  const client = await connectQmp(socket);
  const execute = client.execute.bind(client);
  client.execute = async (command, ...rest) => {
    if (command === 'cont') throw refusal('cont', 'not now');
    return execute(command, ...rest);
  };
  return client;
}

async function running(t: Test): Promise<LiveGuest> {
  const live = await launchLive(t, qemu!);
  await live.qemu.cont();
  return live;
}

t.test('the watchdog goes on trying when we have failed', { skip }, async (t) => {
  const live = await running(t);
  const client = await withoutCont(live);
  const guest = await openQemu(client);
  await t.rejects(guest.live!.release(), { message: /could not be resumed: .*not now/ });
  t.equal(await live.status(), 'paused');
  guest.close();
  await until(async () => (await live.status()) === 'running');
});

t.test('the watchdog leaves a guest alone that somebody has resumed', { skip }, async (t) => {
  const live = await running(t);
  const client = await withoutCont(live);
  const guest = await openQemu(client);
  await t.rejects(guest.live!.release());
  const resumed = new Promise<void>((resolve) => client.onEvent(({ event }) => event === 'RESUME' && resolve()));
  await live.qemu.cont();
  await resumed;
  await live.qemu.stop();
  guest.close();
  // QEMU greets when nobody else has the connection.
  (await connectQmp(live.socket)).close();
  t.equal(await live.status(), 'paused');
});

t.test('the connection is cut in the middle', { skip }, async (t) => {
  const live = await running(t);
  // By file all would have been read at once.
  for (const way of ['proc', 'stream']) {
    const relay = await Relay.start(join(live.folder, `${way}.relay`), live.socket);
    const fifo = new StuckFifo(live.folder);
    const pid = ['--pid', `${live.qemu.pid}`];
    const { ended } = startCli(['dump', relay.source, '--memory-path', way, ...pid, '-o', fifo.path, '--no-sparse']);
    await fifo.begun(ended);
    relay.cut();
    await fifo.drain();
    const { code, stderr } = await ended;
    t.equal(await live.status(), 'running', `${way}: it runs again, over another connection`);
    t.match(stderr, /^vmcore: warning: QEMU at \S+ is gone: [^\n]+; the guest was resumed over another connection, /m);
    t.equal(code, way === 'stream' ? 1 : 0, stderr);
    relay.close();
  }
});

t.test('the connection is cut, and there is no other one', { skip }, async (t) => {
  const live = await running(t);
  const relay = await Relay.start(join(live.folder, 'relay'), live.socket);
  const fifo = new StuckFifo(live.folder);
  const pid = ['--pid', `${live.qemu.pid}`];
  const dump = ['dump', relay.source, '--memory-path', 'proc', ...pid, '-o', fifo.path, '--no-sparse'];
  const { ended } = startCli(dump);
  await fifo.begun(ended);
  relay.close();
  await fifo.drain();
  checkFailure(
    t,
    await ended,
    1,
    /is written and whole, but the guest could not be resumed: QEMU at \S+ is gone/,
    'said',
  );
});

t.test('QEMU stands still', { skip }, async (t) => {
  const live = await running(t);
  const { pid } = live.qemu;
  for (const way of ['proc', 'stream']) {
    const fifo = new StuckFifo(live.folder);
    const { child, ended } = startCli(['dump', live.source, '--memory-path', way, '-o', fifo.path, '--no-sparse']);
    await fifo.begun(ended);
    process.kill(pid, 'SIGSTOP');
    child.kill('SIGINT');
    const { code } = await ended;
    t.equal(code, 130, `${way}: Ctrl-C ends it`);
    process.kill(pid, 'SIGCONT');
    await until(async () => (await live.status()) === 'running');
    t.pass('and the guest runs when QEMU does');
  }
});

t.test('we are killed, and what QEMU says comes in pieces', { skip }, async (t) => {
  const live = await running(t);
  const relay = await Relay.start(join(live.folder, 'relay'), live.socket, { piece: 40 });
  const fifo = new StuckFifo(live.folder);
  const dump = ['dump', relay.source, '--memory-path', 'stream', '-o', fifo.path, '--no-sparse'];
  const { child, ended } = startCli(dump);
  await fifo.begun(ended);
  child.kill('SIGKILL');
  await ended;
  await until(async () => (await live.status()) === 'running');
  relay.close();
});
