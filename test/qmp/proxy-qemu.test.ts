/** The proxy before a real QEMU: dumps in formats that it lacks, what else it is asked meanwhile, and how things end. */

import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  closeSync,
  constants,
  createWriteStream,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { type AddressInfo, createServer, Socket } from 'node:net';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import t, { type Test } from 'tap';
import { type Guest, openGuest } from '../../lib/index.js';
import { Qemu } from '../guests/qemu.js';
import { hasPartial } from '../cli/run-cli.js';
import { makeShortFolder } from '../short-folder.js';
import { needsTools, needsTracing } from '../tools.js';
import { errorText, eventually, type Message, noKoffi, TestServer, Wire, withoutKoffi } from './qmp-fixture.js';

const MIB = 1 << 20;
const MEMORY = 192 * MIB;

/** Memory that no compressor can shrink: more than what can be on its way to a pipe that nobody reads. */
const NOISE = 96 * MIB;
const NOISE_AT = 0x1000000;

const skip = noKoffi || needsTools('qemu-system-x86_64', 'mkfifo');
const noWay = (way: string) => way === 'proc' && needsTracing();

interface Setup {
  /** spoken to over a monitor of its own */
  readonly qemu: Qemu;
  /** `vmcore qmp` before QEMU's other monitor */
  readonly proxy: TestServer;
  readonly wire: Wire;
  /** for targets */
  readonly folder: string;
}

async function setup(t: Test, ...args: string[]): Promise<Setup> {
  const folder = makeShortFolder();
  const noise = join(folder, 'noise');
  writeFileSync(noise, randomBytes(NOISE));
  const monitor = join(folder, 'monitor');
  const loader = ['-device', `loader,file=${noise},addr=${NOISE_AT},force-raw=on`];
  const qmp = ['-qmp', `unix:${monitor},server=on,wait=off`];
  const qemu = await Qemu.launch({ machine: 'pc', memory: MEMORY, args: [...loader, ...qmp] });
  const proxy = await TestServer.start({ source: `qmp:${monitor}`, args });
  const wire = await proxy.connect();
  t.teardown(async () => {
    wire.close();
    await proxy.stop();
    await qemu.quit();
    rmSync(folder, { recursive: true, force: true });
  });
  return { qemu, proxy, wire, folder };
}

const dumpTo = (wire: Wire, protocol: string, more: Message = {}) =>
  wire.execute('dump-guest-memory', { paging: false, protocol, ...more });

const isCompleted = (message: Message) => message['event'] === 'DUMP_COMPLETED';

async function isRunning(qemu: Qemu): Promise<boolean> {
  return (await qemu.execute<{ running: boolean }>('query-status')).running;
}

/** Passes the end of a pipe as `fd:NAME`; gives the other one. */
async function passPipe(wire: Wire, folder: string, name: string): Promise<number> {
  const fifo = join(folder, `${name}.fifo`);
  execFileSync('mkfifo', [fifo]);
  const reader = openSync(fifo, constants.O_RDONLY | constants.O_NONBLOCK);
  const writer = openSync(fifo, 'w');
  const answer = await wire.execute('getfd', { fdname: name }, [writer]);
  closeSync(writer);
  if ('error' in answer) throw new Error(errorText(answer));
  return reader;
}

/** Reads a pipe to its end, into a file. */
function drain(reader: number, file: string): Promise<void> {
  return pipeline(new Socket({ fd: reader, readable: true, writable: false }), createWriteStream(file));
}

function sameMemory(a: Guest, b: Guest): boolean {
  const [one, other] = [Buffer.alloc(MIB), Buffer.alloc(MIB)];
  return a.blocks.every(({ base, length }) => {
    for (let at = base; at < base + length; at += MIB) {
      const size = Math.min(MIB, base + length - at);
      const parts = [one.subarray(0, size), other.subarray(0, size)] as const;
      if (!a.memory!.read(at, parts[0]) || !b.memory!.read(at, parts[1]) || !parts[0].equals(parts[1])) return false;
    }
    return true;
  });
}

const shape = ({ blocks, cpus, notes }: Guest) => ({
  blocks: blocks.map(({ base, length }) => [base, length]),
  rip: cpus.map(({ rip }) => rip),
  notes: notes.map(({ name, desc }) => [name, Buffer.from(desc).toString('hex')]),
});

for (const way of ['file', 'proc', 'stream'])
  t.test(`formats that QEMU lacks, memory read by ${way}`, { skip: skip || noWay(way) }, async (t) => {
    const { qemu, wire, folder } = await setup(t, '--memory-path', way);
    t.same(await wire.execute('stop'), { return: {} });
    const formats = ['kdump-lzo', 'kdump-raw-snappy', 'elf'];
    for (const format of formats)
      t.same(await dumpTo(wire, `file:${folder}/${format}`, { format }), { return: {} }, format);
    const theirs = join(folder, 'theirs');
    await qemu.dump({ paging: false, file: theirs });
    const expected = await openGuest(theirs);
    for (const format of formats) {
      const guest = await openGuest(join(folder, format));
      t.same(shape(guest).blocks, shape(expected).blocks, `${format}: the same blocks`);
      t.same(shape(guest).rip, shape(expected).rip, `${format}: the same instant`);
      t.same(shape(guest).notes, shape(expected).notes, `${format}: the same notes`);
      t.ok(sameMemory(guest, expected), `${format}: the same memory`);
      guest.close();
    }
    const noise = Buffer.alloc(MIB);
    expected.memory!.read(NOISE_AT, noise);
    t.ok(noise.equals(readFileSync(join(folder, 'noise')).subarray(0, MIB)), 'and it is not nothing');
    expected.close();
    t.notOk(await isRunning(qemu), 'a paused guest stays paused');
  });

t.test('what a client sees of a dump', { skip }, async (t) => {
  const { qemu, wire, folder } = await setup(t);
  const seen = async (expected: number, begin: () => Promise<unknown>): Promise<string[]> => {
    const names: string[] = [];
    const hear = ({ event }: { event: string }) => names.push(event);
    qemu.events.on('event', hear);
    await begin();
    await eventually(() => names.length >= expected);
    qemu.events.off('event', hear);
    return names;
  };
  const theirs = await seen(3, () => qemu.dump({ paging: false, file: join(folder, 'theirs') }));
  t.same(theirs, ['STOP', 'DUMP_COMPLETED', 'RESUME'], 'of QEMU itself');
  for (const event of theirs) t.match(await wire.message(), { event }, 'another monitor’s dump is seen as well');

  t.same(await eventsOfDump(wire, `file:${folder}/ours`), OUR_EVENTS, 'no end of a dump that was not asked for');
  t.same(await wire.execute('query-status'), await queryStatus(qemu), 'QEMU is asked');
  t.ok(await isRunning(qemu));

  t.match(errorText(await dumpTo(wire, 'file:/dev/full')), /^dump: failed to write elf header: No space left/);
  t.ok(await isRunning(qemu), 'it runs again after a failure');
  const nothing = { begin: 2 ** 40, length: 4096 };
  t.equal(errorText(await dumpTo(wire, `file:${folder}/x`, nothing)), 'dump: no guest memory to dump');
  t.ok(await isRunning(qemu), 'and after a refusal');
});

/** In another order than QEMU: when a dump is completed the guest runs, if it ran, and can be told to do something. */
const OUR_EVENTS = ['STOP', 'RESUME', 'DUMP_COMPLETED', 'return'];

/** What comes from a dump's begin to its answer. */
async function eventsOfDump(wire: Wire, protocol: string): Promise<unknown[]> {
  const seen: unknown[] = [];
  wire.send(JSON.stringify({ execute: 'dump-guest-memory', arguments: { paging: false, protocol } }));
  for (let message: Message = {}; !('return' in message); seen.push(message['event'] ?? 'return'))
    message = await wire.message();
  return seen;
}

t.test('what a client sees of a dump that QEMU makes for us', { skip }, async (t) => {
  const { wire, folder } = await setup(t, '--memory-path', 'stream');
  t.same(await eventsOfDump(wire, `file:${folder}/one`), OUR_EVENTS);
  t.same(await eventsOfDump(wire, `file:${folder}/two`), OUR_EVENTS);
  await wire.execute('stop');
  t.same(await eventsOfDump(wire, `file:${folder}/three`), ['DUMP_COMPLETED', 'return'], 'of a paused guest');
});

async function queryStatus(qemu: Qemu): Promise<Message> {
  return { return: await qemu.execute('query-status') };
}

t.test('meanwhile', { skip }, async (t) => {
  const { qemu, proxy, wire, folder } = await setup(t);
  const reader = await passPipe(wire, folder, 'slow');
  t.same(await dumpTo(wire, 'fd:slow', { detach: true, format: 'kdump-lzo' }), { return: {} });
  t.match(await wire.execute('query-status'), { return: { status: 'paused', running: false } }, 'QEMU answers');
  const status = (await wire.execute('query-dump'))['return'] as { status: string; completed: number; total: number };
  t.equal(status.status, 'active');
  t.ok(status.completed < NOISE && status.total > MEMORY, `${status.completed} of ${status.total}`);

  const busy = 'There is a dump in process, please wait.';
  t.equal(errorText(await dumpTo(wire, `file:${folder}/second`)), busy);
  for (const command of ['stop', 'cont', 'system_reset', 'system_wakeup', 'inject-nmi'])
    t.equal(errorText(await wire.execute(command)), busy, command);
  const load = { 'job-id': 'load', tag: 'x', vmstate: 'x', devices: [] };
  t.equal(errorText(await wire.execute('snapshot-load', load)), busy, 'another machine in its place');
  t.equal(errorText(await wire.execute('migrate-incoming', { uri: 'exec:true' })), busy);
  t.match(errorText(await wire.execute('migrate', { uri: 'exec:true' })), /^Live migration disabled/);
  for (const line of ['cont', ' c/x', 'loadvm x', 'dump-guest-memory /dev/null', 'o /h 0x604 0x2400'])
    t.same(
      await wire.execute('human-monitor-command', { 'command-line': line }),
      { return: `Error: ${busy}\r\n` },
      line,
    );
  t.match(await wire.execute('human-monitor-command', { 'command-line': 'info status' }), { return: /paused/ });
  await qemu.execute('system_powerdown');
  t.match(await wire.message(), { event: 'POWERDOWN' }, 'an event of QEMU’s own');

  wire.close();
  const next = await proxy.connect();
  t.match(await next.execute('query-dump'), { return: { status: 'active' } }, 'the dump outlives its client');
  const drained = drain(reader, join(folder, 'out'));
  const completed = await next.until(isCompleted);
  t.match(completed, { data: { result: { status: 'completed', completed: status.total, total: status.total } } });
  t.match(await next.execute('query-dump'), { return: { status: 'completed', completed: status.total } });
  await drained;
  t.ok(await isRunning(qemu), 'the guest runs again');
  const guest = await openGuest(join(folder, 'out'));
  const noise = Buffer.alloc(MIB);
  guest.memory!.read(NOISE_AT, noise);
  t.ok(noise.equals(readFileSync(join(folder, 'noise')).subarray(0, MIB)), 'what came through the pipe is the memory');
  guest.close();
  next.close();
});

t.test('a client that vanishes while it waits for its dump', { skip }, async (t) => {
  const { qemu, proxy, wire, folder } = await setup(t);
  const reader = await passPipe(wire, folder, 'slow');
  wire.send(JSON.stringify({ execute: 'dump-guest-memory', arguments: { paging: false, protocol: 'fd:slow' } }));
  t.ok(await eventually(async () => !(await isRunning(qemu))));
  wire.close();
  const next = await Wire.connect(proxy.path);
  await t.rejects(next.line(300), /no line/, 'as with QEMU, the next one waits for the end of the dump');
  const drained = drain(reader, join(folder, 'out'));
  t.match(await next.message(), { QMP: {} }, 'then it is served');
  t.same(await next.execute('qmp_capabilities'), { return: {} });
  t.match(await next.execute('query-dump'), { return: { status: 'completed' } }, 'the dump was carried out');
  await drained;
  (await openGuest(join(folder, 'out'))).close();
  t.ok(await isRunning(qemu), 'the guest runs again');

  const gone = await passPipe(next, folder, 'gone');
  next.send(JSON.stringify({ execute: 'dump-guest-memory', arguments: { paging: false, protocol: 'fd:gone' } }));
  t.ok(await eventually(async () => !(await isRunning(qemu))));
  next.close();
  closeSync(gone);
  const last = await proxy.connect();
  t.match(
    await last.execute('query-dump'),
    { return: { status: 'failed' } },
    'nor does one whose reader went with it last',
  );
  t.ok(await isRunning(qemu), 'the guest runs again');
  last.close();
});

for (const [way, ends] of [
  ['file', 'completed'],
  ['proc', 'failed'],
  ['stream', 'failed'],
] as const)
  t.test(`QEMU quits in mid-dump, memory read by ${way}`, { skip: skip || noWay(way) }, async (t) => {
    const { qemu, proxy, wire, folder } = await setup(t, '--memory-path', way);
    const reader = await passPipe(wire, folder, 'slow');
    t.same(await dumpTo(wire, 'fd:slow', { detach: true }), { return: {} });
    t.same(await wire.execute('quit'), { return: {} });
    await qemu.exited;
    const drained = drain(reader, join(folder, 'out'));
    // The file behind the memory is open, and stays what it is.
    t.match(await wire.until(isCompleted), { data: { result: { status: ends } } });
    t.equal(await wire.line(), null, 'then the connection ends');
    await drained;
    if (ends === 'completed') (await openGuest(join(folder, 'out'))).close();
    else
      await t.rejects(
        openGuest(join(folder, 'out')).then((guest) => guest.close()),
        { code: 'TRUNCATED' },
      );
    t.equal(await proxy.exited, 0);
  });

t.test('QEMU quits in mid-dump, to a file', { skip }, async (t) => {
  const { qemu, proxy, wire, folder } = await setup(t, '--memory-path', 'stream');
  const file = join(folder, 'whole-or-not-there');
  const dumping = dumpTo(wire, `file:${file}`, { format: 'kdump-raw-zlib' });
  t.ok(await eventually(() => hasPartial(folder)));
  await qemu.quit();
  t.match(errorText(await dumping), /^dump: /);
  t.equal(await wire.line(), null, 'then the connection ends');
  t.equal(await proxy.exited, 0);
  t.notOk(existsSync(file) || hasPartial(folder), 'nothing is left');
});

for (const [command, error] of [
  ['cont', 'the guest was resumed by somebody else while it was read'],
  ['system_reset', 'the guest was reset while it was read'],
] as const)
  t.test(`${command} over another monitor while the guest is read`, { skip }, async (t) => {
    const { qemu, wire, folder } = await setup(t);
    await qemu.execute('set-action', { reboot: 'reset' });
    const reader = await passPipe(wire, folder, 'slow');
    t.same(await dumpTo(wire, 'fd:slow', { detach: true }), { return: {} });
    await qemu.execute(command);
    const completed = await wire.until(isCompleted);
    t.match(completed, { data: { result: { status: 'failed' }, error: `dump: ${error}; dump it again` } });
    t.ok(await isRunning(qemu));
    closeSync(reader);
  });

t.test('a descriptor for a command of QEMU’s', { skip }, async (t) => {
  const { wire, folder } = await setup(t);
  const reader = await passPipe(wire, folder, 'stream');
  const drained = drain(reader, join(folder, 'migrated'));
  t.same(await wire.execute('migrate', { uri: 'fd:stream' }), { return: {} });
  // To the end of the pipe: so nobody else holds it.
  await drained;
  t.equal(readFileSync(join(folder, 'migrated')).toString('latin1', 0, 4), 'QEVM', 'QEMU’s own stream');
  t.match(errorText(await dumpTo(wire, 'fd:stream')), /'stream' has not been found/, 'it is used up');
});

t.test('no descriptor leaks, here or at QEMU', { skip }, async (t) => {
  const { qemu, proxy, wire, folder } = await setup(t);
  wire.close();
  const small = { begin: 0, length: 4096 };
  const round = async () => {
    const wire = await proxy.connect();
    const fd = openSync(join(folder, 'out'), 'w');
    for (const name of ['used', 'twice', 'twice', 'closed', 'full'])
      await wire.execute('getfd', { fdname: name }, [fd]);
    await wire.execute('getfd', { fdname: '1' }, [fd, fd]);
    await wire.execute('add-fd', { 'fdset-id': 7 }, [fd, fd]);
    closeSync(fd);
    await dumpTo(wire, 'fd:used', small);
    await dumpTo(wire, 'fd:twice', { begin: 2 ** 40, length: 1 });
    await dumpTo(wire, 'fd:full', { ...small, format: 'kdump-lzo' });
    await dumpTo(wire, 'file:/dev/full', small);
    await dumpTo(wire, 'file:/dev/fdset/7', small);
    await wire.execute('closefd', { fdname: 'closed' });
    await wire.execute('closefd', { fdname: 'full' });
    await wire.execute('remove-fd', { 'fdset-id': 7 });
    wire.close();
  };
  const open = () => [proxy.descriptors, readdirSync(`/proc/${qemu.pid}/fd`).length];
  await round();
  await round();
  await wireClosed(proxy);
  const before = open();
  for (let i = 0; i < 10; i++) await round();
  await wireClosed(proxy);
  t.ok(
    await eventually(() => open().every((count, i) => count <= before[i]!), 5000),
    `${before} before, ${open()} after`,
  );
});

/** Once a client is served, the one before it is gone. */
async function wireClosed(proxy: TestServer): Promise<void> {
  (await proxy.connect()).close();
}

t.test('a descriptor set', { skip }, async (t) => {
  const { wire, folder } = await setup(t);
  const fd = openSync(join(folder, 'out'), 'w');
  const added = await wire.execute('add-fd', { opaque: 'mine' }, [fd]);
  closeSync(fd);
  const { 'fdset-id': id } = added['return'] as { 'fdset-id': number };
  t.match(await wire.execute('query-fdsets'), { return: [{ 'fdset-id': id, fds: [{ opaque: 'mine' }] }] }, 'at QEMU');
  t.same(await dumpTo(wire, `file:/dev/fdset/${id}`, { format: 'kdump-snappy' }), { return: {} });
  (await openGuest(join(folder, 'out'))).close();
  t.same(await wire.execute('remove-fd', { 'fdset-id': id }), { return: {} });
  t.match(errorText(await dumpTo(wire, `file:/dev/fdset/${id}`)), /^Failed to find fdset/);
});

t.test('QEMU behind TCP: descriptors are the proxy’s', { skip }, async (t) => {
  const port = await freePort();
  const args = ['-qmp', `tcp:127.0.0.1:${port},server=on,wait=off`];
  const qemu = await Qemu.launch({ machine: 'pc', memory: 32 * MIB, args });
  const proxy = await TestServer.start({ source: `qmp:tcp:127.0.0.1:${port}` });
  t.teardown(() => proxy.stop().then(() => qemu.quit()));
  const wire = await proxy.connect();
  const reader = await passPipe(wire, proxy.folder, 'pipe');
  const drained = drain(reader, join(proxy.folder, 'out'));
  t.same(await dumpTo(wire, 'fd:pipe', { format: 'kdump-zlib' }), { return: {} });
  await drained;
  (await openGuest(join(proxy.folder, 'out'))).close();
  const kept = await passPipe(wire, proxy.folder, 'kept');
  t.same(await wire.execute('closefd', { fdname: 'kept' }), { return: {} });
  await drain(kept, join(proxy.folder, 'nothing'));
  t.equal(proxy.size('nothing'), 0, 'closed');
  t.match(errorText(await wire.execute('closefd', { fdname: 'kept' })), /'kept' not found/);
  wire.close();
});

t.test('without koffi', { skip: needsTools('qemu-system-x86_64', 'mkfifo') }, async (t) => {
  const folder = makeShortFolder();
  const monitor = join(folder, 'monitor');
  const qmp = ['-qmp', `unix:${monitor},server=on,wait=off`];
  const qemu = await Qemu.launch({ machine: 'pc', memory: 32 * MIB, args: qmp });
  const proxy = await TestServer.start({ source: `qmp:${monitor}`, node: withoutKoffi(t) });
  t.teardown(async () => {
    await proxy.stop();
    await qemu.quit();
    rmSync(folder, { recursive: true, force: true });
  });
  const wire = await proxy.connect();
  t.match(errorText(await wire.execute('getfd', { fdname: 'x' })), /the optional package koffi is missing/);
  t.match(errorText(await wire.execute('add-fd')), /the optional package koffi is missing/);
  t.same(await dumpTo(wire, `file:${folder}/out`, { format: 'kdump-lzo' }), { return: {} }, 'dumps work all the same');
  wire.close();
});

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  return port;
}

t.test('QEMU is killed in mid-dump', { skip }, async (t) => {
  const { qemu, proxy, wire, folder } = await setup(t, '--memory-path', 'stream');
  const reader = await passPipe(wire, folder, 'slow');
  t.same(await dumpTo(wire, 'fd:slow', { detach: true }), { return: {} });
  await qemu.kill();
  const drained = drain(reader, join(folder, 'out'));
  t.match(await wire.until(isCompleted), { data: { result: { status: 'failed' }, error: /^dump: / } });
  t.equal(await wire.line(), null, 'then the connection ends');
  await drained;
  t.equal(await proxy.exited, 1);
  t.match(proxy.stderr, /^vmcore: QEMU at \S+ is gone: /m);
});

t.test('the proxy ends in mid-dump', { skip }, async (t) => {
  const { qemu, proxy, wire, folder } = await setup(t);
  const reader = await passPipe(wire, folder, 'slow');
  t.same(await dumpTo(wire, 'fd:slow', { detach: true }), { return: {} });
  t.notOk(await isRunning(qemu));
  proxy.child.kill('SIGTERM');
  t.equal(await proxy.exited, 128 + 15);
  t.ok(await isRunning(qemu), 'the guest runs again');
  closeSync(reader);
});

t.test('the proxy is killed in mid-dump', { skip }, async (t) => {
  const { qemu, proxy, wire, folder } = await setup(t);
  const reader = await passPipe(wire, folder, 'slow');
  t.same(await dumpTo(wire, 'fd:slow', { detach: true }), { return: {} });
  t.notOk(await isRunning(qemu));
  proxy.child.kill('SIGKILL');
  t.equal(await proxy.exited, 128 + 9);
  t.ok(await eventually(() => isRunning(qemu)), 'the guest runs again');
  closeSync(reader);
});

t.test('QEMU quits', { skip }, async (t) => {
  const { proxy, wire } = await setup(t);
  t.same(await wire.execute('quit'), { return: {} });
  t.equal(await wire.line(), null);
  t.equal(await proxy.exited, 0);
  t.equal(proxy.stderr, '');
});
