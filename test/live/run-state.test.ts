/** A guest that ran runs again after a dump, and a paused one stays paused, however the dump went. */

import { execFileSync, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, cpSync, mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { basename, dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import { checkFailure, CLI, type CliResult, hasPartial, runCli, runShell, startCli, until } from '../cli/run-cli.js';
import type { LiveReport } from '../../lib/model/guest.js';
import { connectQmp } from '../../lib/qmp/protocol/client.js';
import { needsMount, needsRoot, needsTools, needsTracing } from '../tools.js';
import { bootLive, launchLive, type LiveGuest, type LiveQemu, liveQemus, MIB } from './live-qemu.js';
import { StuckFifo } from './stuck-fifo.js';

const WAYS = ['file', 'proc', 'stream'] as const;

/** What a guest does before a dump; it must do the same after it. */
const STATES = ['running', 'paused'] as const;

async function setState(live: LiveGuest, state: (typeof STATES)[number]): Promise<void> {
  await live.qemu.execute(state === 'running' ? 'cont' : 'stop');
}

/**
 * Copies the command line to where everybody may read it: the checkout can be in a folder that is its owner's alone.
 * @returns the program
 */
function copyForAnybody(folder: string): string {
  const copy = join(folder, 'package');
  cpSync(dirname(CLI), join(copy, 'dist/cli'), { recursive: true });
  cpSync(join(dirname(CLI), '../../package.json'), join(copy, 'package.json'));
  execFileSync('chmod', ['-R', 'a+rX', copy]);
  return join(copy, 'dist/cli', basename(CLI));
}

type Failure = (live: LiveGuest, way: string) => Promise<CliResult>;

/** Ways for a dump to go wrong, and what is said. */
const FAILURES: Readonly<Record<string, { run: Failure; code: number | null; message: RegExp | null }>> = {
  'a full disk': {
    run: ({ source }, way) => runCli(['dump', source, '--memory-path', way, '-o', '/dev/full', '--no-progress']),
    code: 1,
    message: /no space left on device/,
  },
  'a reader that goes away': {
    run: ({ source, folder }, way) =>
      runShell(
        `set -o pipefail; $vmcore dump ${source} --memory-path ${way} -f kdump-zlib -o - | head -c 99999 >/dev/null`,
        folder,
      ),
    code: 1,
    message: /broken pipe/,
  },
  'a copy that does not fit': {
    run: ({ source }, way) =>
      runCli(['dump', source, '--memory-path', way, '--pause-only-for-copy', '--copy-limit', '1M', '-o', '/dev/null']),
    code: 1,
    message: /does not fit into 1 MiB .*--copy-limit/,
  },
  'a folder for the copy that is not there': {
    run: ({ source, folder }) =>
      runCli(['dump', source, '--pause-only-for-copy', '--copy-spool', join(folder, 'none'), '-o', '/dev/null']),
    code: 1,
    message: /cannot create a temporary file in [^\n]*none: no such file/,
  },
  'Ctrl-C': {
    async run(live, way) {
      const fifo = new StuckFifo(live.folder);
      const { child, ended } = startCli(['dump', live.source, '--memory-path', way, '-o', fifo.path]);
      await fifo.begun(ended);
      child.kill('SIGINT');
      return ended;
    },
    code: 130,
    message: null,
  },
};

/** The fourth field of /proc/PID/stat; the second, in parentheses, may have anything in it. Null for what is no process. */
function parentOf(name: string): number | null {
  try {
    const [, ppid] = /^.*\) \S (\d+)/s.exec(readFileSync(`/proc/${name}/stat`, 'latin1')) ?? [];
    return Number(ppid);
  } catch {
    return null;
  }
}

/** Processes that a process has started. */
function childrenOf(pid: number): number[] {
  return readdirSync('/proc')
    .filter((name) => parentOf(name) === pid)
    .map(Number);
}

/** Has the machine run elsewhere from here on, as QEMU sees it. */
async function migrateAway({ qemu, status }: LiveGuest): Promise<void> {
  await qemu.execute('migrate', { uri: 'exec:cat > /dev/null' });
  await until(async () => (await status()) === 'postmigrate');
}

/** A machine in S3: what a sleeping operating system writes to PM1a_CNT of the PIIX4, in the place of one. */
async function launchAsleep(t: Test, qemu: LiveQemu): Promise<LiveGuest> {
  const live = await launchLive(t, qemu);
  // When it wakes up, its firmware has nothing to go back to, and reboots.
  await live.qemu.execute('set-action', { reboot: 'reset' });
  // Before the firmware has given the port its address, nothing happens.
  await until(async () => {
    if ((await live.status()) === 'suspended') return true;
    await live.qemu.hmp('o /h 0x604 0x2400');
    return false;
  });
  return live;
}

/** Has QEMU begin a dump, for the monitor that the test has; it gets stuck. */
async function dumpByQemu(live: LiveGuest): Promise<StuckFifo> {
  const fifo = new StuckFifo(live.folder);
  const ended = new Promise<never>(() => {});
  await live.qemu.execute('dump-guest-memory', { paging: false, protocol: `file:${fifo.path}`, detach: true });
  await fifo.begun(ended);
  return fifo;
}

async function checkRunState(t: Test, live: LiveGuest, state: (typeof STATES)[number] | 'suspended'): Promise<void> {
  t.equal(await live.status(), state, `the guest is ${state}`);
  t.notOk(hasPartial(live.folder), 'nothing half-written is left');
}

for (const qemu of await liveQemus())
  t.test(qemu.name, { skip: qemu.skip || needsTracing() }, async (t) => {
    const live = await bootLive(t, qemu);
    for (const state of STATES)
      for (const way of WAYS)
        await t.test(`${state}, by ${way}`, async (t) => {
          await setState(live, state);
          const output = join(live.folder, 'vmcore');
          const dump = ['dump', live.source, '--memory-path', way, '-o', output, '--force', '--json'];
          const copy = ['--pause-only-for-copy'];
          for (const more of [[], copy, [...copy, '--copy-limit', '1M', '--copy-spool', live.folder]]) {
            const { code, stdout, stderr } = await runCli([...dump, '-f', 'kdump-raw-lzo', ...more]);
            t.equal(stderr, '');
            t.equal(code, 0);
            const summary = JSON.parse(stdout.toString()) as {
              live: Pick<LiveReport, 'memoryPath' | 'wasRunning' | 'copiedBytes' | 'spooledBytes'>;
            };
            t.match(summary.live, { memoryPath: way, wasRunning: state === 'running', pausedSeconds: Number });
            const { copiedBytes, spooledBytes } = summary.live;
            t.equal(copiedBytes !== undefined, more.length > 0);
            t.equal(spooledBytes, more.length > 1 ? copiedBytes! - MIB : more.length > 0 ? 0 : undefined);
            await checkRunState(t, live, state);
          }
          for (const [title, { run, code, message }] of Object.entries(FAILURES))
            await t.test(title, async (t) => {
              const result = await run(live, way);
              if (message) checkFailure(t, result, code!, message, title);
              else t.equal(result.code, code, result.stderr);
              await checkRunState(t, live, state);
            });
        });

    await t.test('without the right to read the process', { skip: needsRoot() || needsTools('setpriv') }, async (t) => {
      await setState(live, 'running');
      chmodSync(live.folder, 0o777);
      chmodSync(live.socket, 0o777);
      const cli = copyForAnybody(live.folder);
      // tap has processes load a module that writes where nobody may not.
      const identity = ['--reuid', '65534', '--regid', '65534', '--clear-groups'];
      const nobody = [...identity, 'env', '-u', 'NODE_OPTIONS', process.execPath, cli];
      const run = (...args: string[]) =>
        spawnSync('setpriv', [...nobody, 'dump', live.source, '--force', ...args], {
          encoding: 'utf8',
          env: { PATH: process.env['PATH'] },
        });
      const output = join(live.folder, 'vmcore-of-nobody');
      const auto = run('-o', output, '--json');
      t.equal(auto.status, 0, auto.stderr);
      t.match(auto.stderr, /^vmcore: warning: [^\n]*QEMU's own dump, which is slower: [^\n]+\n$/, 'why it is slow');
      t.equal((JSON.parse(auto.stdout) as { live: { memoryPath: string } }).live.memoryPath, 'stream');
      for (const way of ['file', 'proc']) {
        const { status, stderr } = run('-o', output, '--memory-path', way);
        t.equal(status, 1);
        t.match(stderr, /^vmcore: --memory-path [^\n]+ cannot be had: [^\n]+\n$/);
        t.equal(await live.status(), 'running');
      }
    });

    await t.test('no room for the copy on the disk', { skip: needsMount() }, async (t) => {
      const disk = join(live.folder, 'disk');
      mkdirSync(disk);
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', disk]);
      try {
        await setState(live, 'running');
        const copy = ['--pause-only-for-copy', '--copy-limit', '1M', '--copy-spool', disk];
        const result = await runCli(['dump', live.source, ...copy, '-o', join(live.folder, 'unfit')]);
        checkFailure(t, result, 1, /cannot write a temporary file in [^\n]*disk: no space left/, 'a full disk');
        await checkRunState(t, live, 'running');
      } finally {
        execFileSync('umount', [disk]);
      }
    });

    await t.test('a socket that another client holds', async (t) => {
      await setState(live, 'running');
      const fifo = new StuckFifo(live.folder);
      const first = startCli(['dump', live.source, '-o', fifo.path]);
      await fifo.begun(first.ended);
      const second = await runCli(['dump', live.source, '-o', join(live.folder, 'second')]);
      checkFailure(t, second, 1, /does not greet .* another client/, 'the second');
      first.child.kill('SIGTERM');
      await first.ended;
      t.equal(await live.status(), 'running');
    });

    await t.test('somebody else has the guest run in the middle', async (t) => {
      await setState(live, 'running');
      const fifo = new StuckFifo(live.folder);
      const { ended } = startCli(['dump', live.source, '-o', fifo.path, '--memory-path', 'file']);
      await fifo.begun(ended);
      await live.qemu.execute('cont');
      await fifo.drain();
      const { code, stderr } = await ended;
      t.equal(code, 0);
      t.match(stderr, /warning: the guest was resumed by somebody else while it was read: /);
    });

    await t.test('it is migrated away in the middle', async (t) => {
      await setState(live, 'running');
      const fifo = new StuckFifo(live.folder);
      const { ended } = startCli(['dump', live.source, '-o', fifo.path]);
      await fifo.begun(ended);
      await migrateAway(live);
      await fifo.drain();
      const { code, stdout, stderr } = await ended;
      t.equal(code, 0);
      t.match(stderr, /warning: the guest is no longer paused, but in QEMU's state 'postmigrate': it was left so/);
      t.match(stdout.toString(), /the guest was running, and is postmigrate now/);
      t.equal(await live.status(), 'postmigrate');
    });

    await t.test('it is migrated away, and we are killed', async (t) => {
      await setState(live, 'running');
      const fifo = new StuckFifo(live.folder);
      const { child, ended } = startCli(['dump', live.source, '-o', fifo.path]);
      await fifo.begun(ended);
      await migrateAway(live);
      child.kill('SIGKILL');
      await ended;
      // QEMU greets when the watchdog is done: it has our connection.
      (await connectQmp(live.socket)).close();
      t.equal(await live.status(), 'postmigrate');
    });

    await t.test("another monitor's dump is under way when the guest is to run on", async (t) => {
      await setState(live, 'running');
      const fifo = new StuckFifo(live.folder);
      const { child, ended } = startCli(['dump', live.source, '-o', fifo.path]);
      await fifo.begun(ended);
      const other = await dumpByQemu(live);
      const told = once(child.stderr!, 'data');
      await fifo.drain();
      await told;
      t.equal(childrenOf(child.pid!).length, 1, 'the watchdog watches');
      t.equal(await live.status(), 'paused');
      await other.drain();
      const { code, stderr } = await ended;
      t.equal(code, 0);
      t.match(stderr, /^vmcore: warning: QEMU dumps the guest for another monitor: [^\n]+\n$/, 'once');
      await checkRunState(t, live, 'running');
    });

    for (const signal of ['SIGINT', 'SIGKILL'] as const)
      await t.test(`another monitor's dump is under way, and ${signal} ends us`, async (t) => {
        await setState(live, 'running');
        const fifo = new StuckFifo(live.folder);
        const { child, ended } = startCli(['dump', live.source, '-o', fifo.path]);
        await fifo.begun(ended);
        const other = await dumpByQemu(live);
        child.kill(signal);
        t.equal((await ended).code, 128 + constants.signals[signal]);
        t.equal(await live.status(), 'paused');
        await other.drain();
        await until(async () => (await live.status()) === 'running');
        await checkRunState(t, live, 'running');
      });

    await t.test('our watchdog is killed in the middle', async (t) => {
      await setState(live, 'running');
      const fifo = new StuckFifo(live.folder);
      const { child, ended } = startCli(['dump', live.source, '-o', fifo.path]);
      await fifo.begun(ended);
      const helpers = childrenOf(child.pid!);
      t.equal(helpers.length, 1);
      for (const pid of helpers) process.kill(pid, 'SIGKILL');
      await fifo.drain();
      const { code, stderr } = await ended;
      t.equal(code, 0, stderr);
      await checkRunState(t, live, 'running');
    });

    for (const [state, way] of [['paused', 'file'], ...WAYS.map((way) => ['running', way] as const)] as const)
      await t.test(`we are killed in the middle, ${state}, ${way}`, async (t) => {
        await setState(live, state);
        const fifo = new StuckFifo(live.folder);
        const { child, ended } = startCli(['dump', live.source, '--memory-path', way, '-o', fifo.path], {
          detached: true,
        });
        await fifo.begun(ended);
        t.equal(await live.status(), 'paused');
        // With all that is in its process group, where a terminal's Ctrl-C goes.
        process.kill(-child.pid!, 'SIGKILL');
        t.equal((await ended).code, 128 + 9);
        await until(async () => (await live.status()) === state);
        await checkRunState(t, live, state);
      });

    for (const way of WAYS)
      await t.test(`Ctrl-C twice, ${way}`, async (t) => {
        await setState(live, 'running');
        const fifo = new StuckFifo(live.folder);
        const { child, ended } = startCli(['dump', live.source, '--memory-path', way, '-o', fifo.path], {
          detached: true,
        });
        await fifo.begun(ended);
        // The second one ends it at once, wherever giving up has got to.
        for (let i = 0; i < 2; i++) process.kill(-child.pid!, 'SIGINT');
        t.equal((await ended).code, 130);
        await until(async () => (await live.status()) === 'running');
        await checkRunState(t, live, 'running');
      });

    await t.test('then the monitor is free again', async (t) => {
      const { code, stderr } = await runCli(['dump', live.source, '-o', join(live.folder, 'next')]);
      t.equal(code, 0, stderr);
      await checkRunState(t, live, 'running');
    });

    await t.test('a guest that sleeps', async (t) => {
      const sleeper = await launchAsleep(t, qemu);
      const { source, folder } = sleeper;
      const { code, stdout, stderr } = await runCli(['dump', source, '-o', join(folder, 'vmcore')]);
      t.equal(code, 0, stderr);
      t.match(stdout.toString(), /the guest was suspended, and still is/);
      await checkRunState(t, sleeper, 'suspended');
    });

    await t.test('a guest that sleeps, and is to be woken up in the middle', async (t) => {
      const sleeper = await launchAsleep(t, qemu);
      const fifo = new StuckFifo(sleeper.folder);
      const { ended } = startCli(['dump', sleeper.source, '-o', fifo.path, '--memory-path', 'proc']);
      await fifo.begun(ended);
      const isStopped = (await sleeper.status()) === 'paused';
      const waking = sleeper.qemu.execute('system_wakeup');
      // QEMU 9 and later do not wake up what is stopped; those before do not stop what sleeps.
      if (isStopped) await t.rejects(waking, /not in suspended state/);
      else {
        await waking;
        await until(async () => (await sleeper.status()) === 'running');
      }
      await fifo.drain();
      const { code, stdout, stderr } = await ended;
      t.equal(code, 0);
      if (!isStopped) t.match(stderr, /warning: the guest was woken up while it was read: /);
      const now = isStopped ? /the guest was suspended, and still is/ : /the guest was suspended, and is running now/;
      t.match(stdout.toString(), now);
      t.equal(await sleeper.status(), isStopped ? 'suspended' : 'running');
    });

    await t.test('a guest that sleeps, and we are killed in the middle', async (t) => {
      const sleeper = await launchAsleep(t, qemu);
      const fifo = new StuckFifo(sleeper.folder);
      const { child, ended } = startCli(['dump', sleeper.source, '-o', fifo.path, '--memory-path', 'proc']);
      await fifo.begun(ended);
      child.kill('SIGKILL');
      await ended;
      await until(async () => (await sleeper.status()) === 'suspended');
      // QEMU greets when the watchdog is done: it has our connection.
      (await connectQmp(sleeper.socket)).close();
      await checkRunState(t, sleeper, 'suspended');
    });

    await t.test('it is reset in the middle', async (t) => {
      const victim = await launchLive(t, qemu);
      await setState(victim, 'running');
      await victim.qemu.execute('set-action', { reboot: 'reset' });
      const fifo = new StuckFifo(victim.folder);
      const { ended } = startCli(['dump', victim.source, '-o', fifo.path, '--memory-path', 'proc']);
      await fifo.begun(ended);
      await victim.qemu.execute('system_reset');
      await until(async () => (await victim.status()) === 'prelaunch');
      await fifo.drain();
      const { code, stderr } = await ended;
      t.equal(code, 0);
      t.match(stderr, /warning: the guest was reset while it was read: /);
      await checkRunState(t, victim, 'running');
    });

    for (const way of WAYS)
      await t.test(`QEMU is killed in the middle, ${way}`, async (t) => {
        // Of a machine that has nothing in its memory file everything has been read at once.
        const victim = await (way === 'file' ? bootLive : launchLive)(t, qemu);
        await setState(victim, 'running');
        const fifo = new StuckFifo(victim.folder);
        const { ended } = startCli(['dump', victim.source, '-o', fifo.path, '--memory-path', way]);
        await fifo.begun(ended);
        await victim.qemu.kill();
        await fifo.drain();
        const result = await ended;
        t.equal(result.code, 1);
        t.match(result.stderr, /^vmcore: [^\n]+\n$/, 'one line');
        t.notMatch(result.stderr, /could not be resumed.*could not be resumed/, 'and nothing twice');
        t.match(result.stderr, way === 'file' ? /is written and whole, but .* is gone/ : /is gone|has ended/);
      });
  });
