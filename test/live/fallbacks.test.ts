/** What the live source does when QEMU does not do as it should, against a QEMU that is none. */

import { closeSync, ftruncateSync, mkdtempSync, openSync, readdirSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { dump } from '../../lib/dump.js';
import type { Guest } from '../../lib/model/guest.js';
import { demoGuest } from '../../lib/sources/demo/demo.js';
import { openElfCore } from '../../lib/sources/elf/elf-core.js';
import { openQemu } from '../../lib/live/qemu/qemu-guest.js';
import type { OpenQemuOptions } from '../../lib/live/qemu/options.js';
import { nonZeroRuns } from '../../lib/model/zeros.js';
import { until } from '../cli/run-cli.js';
import { makeShortFolder } from '../short-folder.js';
import { hasTool, skipUnless } from '../tools.js';
import { sameMemory } from '../oracle/compare-kdump.js';
import { FakeQemu, refusal } from './fake-qemu.js';

const skip = skipUnless(process.platform === 'linux' && hasTool('mkfifo') ? [] : ['mkfifo']);

/** Opens, dumps and checks what came of it. */
async function dumped(t: Test, qemu: FakeQemu, options: OpenQemuOptions = {}): Promise<Guest> {
  const guest = await openQemu(qemu, options);
  t.equal(qemu.status, 'paused', 'it stands still meanwhile');
  const folder = mkdtempSync(join(tmpdir(), 'vmcore-fallbacks-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const file = join(folder, 'vmcore');
  await dump(guest, {}, { file }).finished;
  await guest.live!.release();
  const ours = await openElfCore(file);
  await sameMemory(t, demoGuest(), ours);
  t.same(
    ours.cpus.map(({ rip }) => rip),
    qemu.guest.cpus.map(({ rip }) => rip),
  );
  ours.close();
  guest.close();
  return guest;
}

/** All of the built-in guest's memory in one region, in a file of our choice. */
function inFile(path: string): ConstructorParameters<typeof FakeQemu>[0] {
  return {
    'query-memdev': () => [{ id: 'ram', share: true }],
    'qom-get': ({ property }) => {
      if (property === 'mem-path') return path;
      throw refusal('qom-get', 'no such property');
    },
    info: () => 'FlatView #0\n AS "memory", root: system\n  0000000000000000-0000ffffffffffff (prio 0, ram): ram KVM\n',
  };
}

/** A memory file of the built-in guest; `change` makes it one of another machine. */
function memoryFile(t: Test, change: (byte: number) => number = (byte) => byte): string {
  const { blocks, memory } = demoGuest();
  const path = join(t.testdir({}), 'ram');
  const fd = openSync(path, 'w');
  for (const { base, length } of blocks) {
    const bytes = Buffer.alloc(length);
    memory!.read(base, bytes);
    for (const { start, end } of nonZeroRuns(bytes, 0))
      writeSync(fd, bytes.subarray(start, end).map(change), 0, end - start, base + start);
    ftruncateSync(fd, base + length);
  }
  closeSync(fd);
  return path;
}

/** Of our own: what else runs on this machine makes FIFOs, too. */
const temporary = makeShortFolder();
process.env['TMPDIR'] = temporary;
t.teardown(() => rmSync(temporary, { recursive: true, force: true }));
const fifosLeft = () => readdirSync(temporary).filter((name) => name.startsWith('vmcore-fifo-'));

t.test('the live source', { skip }, async (t) => {
  t.test("nothing but QEMU's own dump", async (t) => {
    const warnings: string[] = [];
    const qemu = new FakeQemu();
    const guest = await dumped(t, qemu, { onWarning: (text) => warnings.push(text) });
    t.equal(guest.live!.report.memoryPath, 'stream');
    t.match(warnings, [/QEMU's own dump, which is slower: 191 MiB at 0x100000: it is in no shared file; .*gpa2hva/]);
    t.equal(qemu.status, 'running');
  });

  t.test('the file', async (t) => {
    const qemu = new FakeQemu(inFile(memoryFile(t)));
    const guest = await dumped(t, qemu);
    t.match(guest.live!.report, { memoryPath: 'file', warnings: [] });
  });

  t.test("another machine's file", async (t) => {
    const path = memoryFile(t, (byte) => byte ^ 1);
    const qemu = new FakeQemu(inFile(path));
    const guest = await dumped(t, qemu);
    t.equal(guest.live!.report.memoryPath, 'stream');
    const { warnings } = guest.live!.report;
    t.equal(warnings.length, 3, 'one for each block, and one for what follows from it');
    t.match(warnings[0], /has other bytes at 0x\w+\+0x1000 of the guest's memory than QEMU/);
    t.match(warnings[2], /slower/);
    await t.rejects(openQemu(new FakeQemu(inFile(path)), { memoryPath: 'file' }), {
      code: 'READ',
      message: /^--memory-path file cannot be had: .* has other bytes/,
    });
  });

  t.test('a file without any data, which is not the one', async (t) => {
    const path = memoryFile(t, () => 0);
    const guest = await dumped(t, new FakeQemu(inFile(path)));
    t.equal(guest.live!.report.memoryPath, 'stream');
    t.match(guest.live!.report.warnings, [/has no data, and so cannot be told from another file/]);
  });

  t.test('a file that is too small, and one that is not there', async (t) => {
    const folder = t.testdir({ small: 'x' });
    for (const [name, message] of [
      ['small', /is smaller than the memory/],
      ['none', /gpa2hva|no file/],
    ] as const) {
      const qemu = new FakeQemu(inFile(join(folder, name)));
      await t.rejects(openQemu(qemu, { memoryPath: 'file' }), { code: 'READ', message });
      t.equal(qemu.status, 'running', 'it runs again');
    }
  });

  t.test('no gpa2hva, no such process, and an address that is none', async (t) => {
    const old = new FakeQemu();
    await t.rejects(openQemu(old, { memoryPath: 'proc' }), { message: /gpa2hva: unknown command/ });
    t.equal(old.status, 'running');
    // Where no process has memory: above its half of the addresses.
    const address = { gpa2hva: () => 'Host virtual address for 0x0 (ram) is 0x800000000000\r\n' };
    const elsewhere = new FakeQemu(address);
    await t.rejects(openQemu(elsewhere, { memoryPath: 'proc', pid: 2 ** 30 }), { message: /no such file/ });
    await t.rejects(openQemu(elsewhere, { memoryPath: 'proc' }), { message: /does not have the guest's memory/ });
    await t.rejects(openQemu(elsewhere, { memoryPath: 'proc', pid: process.pid }), { message: /--pid takes QEMU's/ });
    elsewhere.peerPid = null;
    await t.rejects(openQemu(elsewhere, { memoryPath: 'proc' }), { message: /--pid/ });
    t.equal(elsewhere.status, 'running');
  });

  t.test('QEMU refuses to dump', async (t) => {
    const refuse = () => {
      throw refusal('dump-guest-memory', 'Dump not allowed during incoming migration.');
    };
    for (const memoryPath of ['auto', 'stream'] as const) {
      const qemu = new FakeQemu({ 'dump-guest-memory': refuse });
      await t.rejects(openQemu(qemu, { memoryPath }), { message: /incoming migration/ });
      t.equal(qemu.status, 'running');
    }
  });

  t.test('a QEMU that cannot detach', async (t) => {
    const qemu = new FakeQemu({
      'dump-guest-memory': ({ detach }) => {
        if (detach) throw refusal('dump-guest-memory', "Parameter 'detach' is unexpected");
        return undefined;
      },
    });
    await dumped(t, qemu, { memoryPath: 'stream' });
    t.equal(qemu.status, 'running');
  });

  t.test('it cannot be stopped, and cannot be resumed', async (t) => {
    const stuck = new FakeQemu({
      stop: () => {
        throw refusal('stop', 'no');
      },
    });
    await t.rejects(openQemu(stuck), { message: 'QEMU refuses stop: no' });
    const asleep = new FakeQemu({
      cont: () => {
        throw refusal('cont', 'Resetting the Virtual Machine is required');
      },
    });
    const guest = await openQemu(asleep);
    await t.rejects(guest.live!.release(), { code: 'READ', message: /could not be resumed: .*Resetting/ });
    guest.close();
  });

  t.test('somebody else does something to it', async (t) => {
    for (const [event, message] of [
      ['RESUME', /^the guest was resumed by somebody else while it was read: .* take it again$/],
      ['WAKEUP', /^the guest was woken up while it was read: .* take it again$/],
      ['RESET', /^the guest was reset while it was read: .* take it again$/],
      ['POWERDOWN', null],
      ['constructor', null],
    ] as const) {
      const qemu = new FakeQemu();
      const guest = await openQemu(qemu);
      const { length } = guest.live!.report.warnings;
      qemu.emit(event);
      await guest.live!.release();
      t.match(guest.live!.report.warnings.slice(length), message ? [message] : [], event);
      t.equal(guest.live!.report.warnings.length, length + (message ? 1 : 0));
      t.equal(qemu.status, 'running');
      t.throws(() => guest.chunks(), { code: 'UNSUPPORTED' }, 'and its memory is not what it was');
      guest.close();
    }
  });

  t.test('a guest that sleeps', async (t) => {
    const qemu: FakeQemu = new FakeQemu({
      cont: () => {
        qemu.status = 'suspended';
        return {};
      },
    });
    qemu.status = 'suspended';
    const guest = await openQemu(qemu);
    t.equal(qemu.status, 'paused', 'it cannot be woken up');
    await guest.live!.release();
    t.equal(qemu.status, 'suspended');
    t.match(guest.live!.report, { wasRunning: false, statusBefore: 'suspended', statusAfter: 'suspended' });
    guest.close();
  });

  t.test('a guest that sleeps, and is woken up because QEMU does not stop it', async (t) => {
    const qemu = new FakeQemu({ stop: () => ({}) });
    qemu.status = 'suspended';
    const guest = await openQemu(qemu);
    const { length } = guest.live!.report.warnings;
    qemu.status = 'running';
    qemu.emit('WAKEUP');
    await guest.live!.release();
    t.notOk(qemu.executed.includes('cont'));
    t.match(guest.live!.report, { statusBefore: 'suspended', statusAfter: 'running' });
    t.match(guest.live!.report.warnings.slice(length), [/woken up/]);
    guest.close();
  });

  t.test('it was reset when it was stopped', async (t) => {
    for (const before of ['running', 'suspended']) {
      const qemu = new FakeQemu();
      qemu.status = before;
      const guest = await openQemu(qemu);
      qemu.status = 'prelaunch';
      qemu.emit('RESET');
      await guest.live!.release();
      t.equal(qemu.status, 'running', 'it boots');
      t.match(guest.live!.report, { statusBefore: before, statusAfter: 'running' });
      guest.close();
    }
  });

  t.test('it is no longer as we left it', async (t) => {
    for (const status of ['postmigrate', 'finish-migrate', 'guest-panicked', 'shutdown']) {
      const qemu = new FakeQemu();
      const guest = await openQemu(qemu);
      qemu.status = status;
      await guest.live!.release();
      t.equal(qemu.status, status, `${status}: it is left alone`);
      const { warnings, statusBefore, statusAfter } = guest.live!.report;
      t.match(warnings.at(-1), `no longer paused, but in QEMU's state '${status}': it was left so`);
      t.match({ statusBefore, statusAfter }, { statusBefore: 'running', statusAfter: status });
      guest.close();
    }
  });

  t.test("another monitor's dump is in the way of cont", async (t) => {
    const end = () => qemu.emit('DUMP_COMPLETED', { result: { status: 'completed' } });
    let refusals = 0;
    const qemu: FakeQemu = new FakeQemu({
      cont: () => {
        if (++refusals > 2) return undefined;
        // The first one ends as QEMU refuses.
        if (refusals === 1) end();
        throw refusal('cont', 'There is a dump in process, please wait.');
      },
    });
    const guest = await openQemu(qemu);
    const { length } = guest.live!.report.warnings;
    const released = guest.live!.release();
    await until(() => refusals === 2);
    t.equal(qemu.status, 'paused');
    end();
    await released;
    t.equal(qemu.status, 'running');
    t.match(guest.live!.report.warnings.slice(length), [/another monitor/], 'it is told once');
    guest.close();
  });

  t.test("QEMU is gone before another monitor's dump has ended", async (t) => {
    const qemu: FakeQemu = new FakeQemu({
      cont: () => {
        qemu.close();
        throw refusal('cont', 'There is a dump in process, please wait.');
      },
    });
    const guest = await openQemu(qemu);
    await t.rejects(guest.live!.release(), { code: 'READ', message: /could not be resumed: closed/ });
  });

  t.test('a machine that never ran', async (t) => {
    const qemu = new FakeQemu();
    qemu.status = 'prelaunch';
    const guest = await openQemu(qemu);
    await guest.live!.release();
    t.notOk(qemu.executed.includes('cont'));
    t.match(guest.live!.report, { wasRunning: false, statusBefore: 'prelaunch', statusAfter: 'prelaunch' });
    guest.close();
  });

  t.test('copied first', async (t) => {
    const qemu = new FakeQemu(inFile(memoryFile(t)));
    const guest = await openQemu(qemu, { pauseOnlyForCopy: true });
    t.equal(qemu.status, 'running', 'it runs already');
    t.ok(guest.live!.report.copiedBytes! > 0);
    await sameMemory(t, demoGuest(), guest);
    guest.close();
    const small = new FakeQemu();
    await t.rejects(openQemu(small, { pauseOnlyForCopy: true, copyLimit: 4096 }), { code: 'LIMIT' });
    t.equal(small.status, 'running');
  });

  t.test('given up while it is opened', async (t) => {
    const abort = new AbortController();
    const qemu = new FakeQemu({
      'query-memdev': () => {
        abort.abort();
        return undefined;
      },
    });
    await t.rejects(openQemu(qemu, { signal: abort.signal }), { code: 'ABORTED' });
    t.equal(qemu.status, 'running');
  });

  t.test('no FIFO is left', async (t) => t.same(fifosLeft(), []));
});
