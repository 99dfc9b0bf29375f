/** Where dumps go: descriptors of every kind, files, sets; what they may not do; what is left when they end early. */

import { execFileSync, spawn, spawnSync } from 'node:child_process';
import {
  closeSync,
  constants,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { dump, openGuest } from '../../lib/index.js';
import { hasPython, needsTools, PYTHON } from '../tools.js';
import { errorText, eventually, type Message, noKoffi, TestServer, type Wire } from './qmp-fixture.js';

const SOURCE = 'demo:64M';
const TOTAL = (64 << 20) - 0x60000;

const dumpTo = (wire: Wire, protocol: string, more: Message = {}) =>
  wire.execute('dump-guest-memory', { paging: false, protocol, ...more });

const completed = (message: Message) => message['event'] === 'DUMP_COMPLETED';

/** Passes a descriptor under a name; ours is closed. */
async function pass(wire: Wire, name: string, fd: number): Promise<void> {
  const answer = await wire.execute('getfd', { fdname: name }, [fd]);
  closeSync(fd);
  if ('error' in answer) throw new Error(errorText(answer));
}

async function server(t: Tap, ...args: string[]): Promise<{ server: TestServer; wire: Wire }> {
  const server = await TestServer.start({ source: SOURCE, args });
  t.teardown(() => server.stop());
  return { server, wire: await server.connect() };
}
type Tap = { teardown(work: () => Promise<void>): void };

/** The dump as the library makes it: what every target has to get. */
async function reference(folder: string): Promise<Buffer> {
  const guest = await openGuest(SOURCE);
  const file = join(folder, 'reference');
  await dump(guest, {}, { file, sparse: false }).finished;
  guest.close();
  const bytes = readFileSync(file);
  rmSync(file);
  return bytes;
}

t.test('fd: to a file, a pipe with a slow reader, a socket', { skip: noKoffi }, async (t) => {
  const { server: one, wire } = await server(t);
  const expected = await reference(one.folder);

  const file = join(one.folder, 'file');
  await pass(wire, 'file', openSync(file, 'w'));
  t.same(await dumpTo(wire, 'fd:file'), { return: {} });
  t.ok(readFileSync(file).equals(expected), 'the file has the dump');

  const fifo = join(one.folder, 'fifo');
  execFileSync('mkfifo', [fifo]);
  const slow = spawn('sh', ['-c', `(sleep 0.5; dd bs=64k count=64; sleep 0.5; cat) < ${fifo} > ${one.folder}/slow`]);
  await pass(wire, 'pipe', openSync(fifo, 'w'));
  t.same(await dumpTo(wire, 'fd:pipe', { detach: true }), { return: {} });
  const steps = new Set<number>();
  for (let active = true; active; await sleep(10)) {
    const status = (await wire.execute('query-dump'))['return'] as { status: string; completed: number; total: number };
    if (status.total !== TOTAL) t.fail('total is known from the start');
    if (steps.size > 0 && status.completed < Math.max(...steps)) t.fail('progress goes backwards');
    steps.add(status.completed);
    active = status.status === 'active';
  }
  t.ok(steps.size > 2, `a slow reader slows it: ${steps.size} steps seen`);
  t.equal(Math.max(...steps), TOTAL);
  t.ok(await eventually(() => slow.exitCode !== null), 'the pipe is closed at the end');
  t.ok(readFileSync(join(one.folder, 'slow')).equals(expected), 'the pipe has the dump');

  const chunks: Buffer[] = [];
  const path = join(one.folder, 'socket');
  const listener = createServer((socket) => socket.on('data', (data) => chunks.push(data)));
  await new Promise<void>((resolve) => listener.listen(path, resolve));
  const sender = openSocket(path);
  await pass(wire, 'socket', await sender);
  t.same(await dumpTo(wire, 'fd:socket'), { return: {} });
  t.ok(await eventually(() => chunks.reduce((sum, { length }) => sum + length, 0) >= expected.length));
  t.ok(Buffer.concat(chunks).equals(expected), 'the socket has the dump');
  listener.close();
  wire.close();
});

/** A connected socket as a bare descriptor that is ours to close. */
async function openSocket(path: string): Promise<number> {
  const { connect } = await import('node:net');
  const socket = connect(path);
  await new Promise<void>((resolve) => socket.once('connect', resolve));
  socket.pause();
  const { fd } = (socket as unknown as { _handle: { fd: number } })._handle;
  const { createRequire } = await import('node:module');
  const koffi = createRequire(import.meta.url)('koffi') as {
    load(name: null): { func(prototype: string): (fd: number) => number };
  };
  const copy = koffi.load(null).func('int dup(int fd)')(fd);
  socket.destroy();
  return copy;
}

t.test('kdump-raw goes to files only', { skip: noKoffi || needsTools('mkfifo') }, async (t) => {
  const { server: one, wire } = await server(t);
  const fifo = join(one.folder, 'fifo');
  execFileSync('mkfifo', [fifo]);
  const pipe = () => openSync(fifo, constants.O_RDWR);
  for (const format of ['kdump-raw-zlib', 'kdump-raw-lzo', 'kdump-raw-snappy']) {
    await pass(wire, 'pipe', pipe());
    t.equal(errorText(await dumpTo(wire, 'fd:pipe', { format })), 'kdump-raw formats require a seekable file', format);
    t.match(errorText(await dumpTo(wire, 'fd:pipe')), /has not been found/, 'the descriptor is used up');
  }
  await pass(wire, 'append', openSync(join(one.folder, 'append'), 'a'));
  t.equal(
    errorText(await dumpTo(wire, 'fd:append', { format: 'kdump-raw-lzo' })),
    'kdump-raw formats require a seekable file',
  );
  wire.close();
});

t.test('files: mode, replacement, folder', async (t) => {
  const { server: one, wire } = await server(t);
  const file = join(one.folder, 'vmcore');
  writeFileSync(file, 'the old one', { mode: 0o644 });
  linkSync(file, join(one.folder, 'held'));
  t.same(await dumpTo(wire, `file:${file}`), { return: {} });
  t.equal(statSync(file).mode & 0o777, 0o600, 'mode 0600');
  t.equal(readFileSync(join(one.folder, 'held'), 'utf8'), 'the old one', 'who held the old one has it');
  t.ok(statSync(file).size > TOTAL, 'the new one is there');
  const before = statSync(file).ino;
  t.match(errorText(await dumpTo(wire, `file:${file}`, { begin: 2 ** 40, length: 4096 })), /no guest memory/);
  t.equal(statSync(file).ino, before, 'a refusal changes nothing');
  t.same(one.files().sort(), ['held', 'vmcore'], 'nothing else is there');
  wire.close();
});

t.test('--directory confines', async (t) => {
  const { server: one } = await server(t);
  const inside = join(one.folder, 'inside');
  mkdirSync(inside);
  mkdirSync(join(one.folder, 'inside-not'));
  const { wire } = await server(t, '--directory', inside);
  t.same(await dumpTo(wire, 'file:relative'), { return: {} });
  t.same(await dumpTo(wire, `file:${inside}/absolute`), { return: {} });
  t.ok(existsSync(join(inside, 'relative')) && existsSync(join(inside, 'absolute')));
  symlinkSync(one.folder, join(inside, 'out'));
  symlinkSync(join(one.folder, 'new'), join(inside, 'dangling'));
  symlinkSync(join(one.folder, 'qmp'), join(inside, 'link'));
  const refused = ['../x', `${one.folder}/x`, 'out/x', 'dangling', 'link', '/dev/null', `${inside}-not/x`, '.', '/'];
  for (const path of refused)
    t.match(errorText(await dumpTo(wire, `file:${path}`)), /confined to|Is a directory/, path);
  t.match(errorText(await dumpTo(wire, 'file:no/such')), /No such file or directory/);
  t.match(errorText(await dumpTo(wire, 'file:')), /Could not create '': No such file or directory/);
  t.same(one.files().sort(), ['inside', 'inside-not'], 'nothing came into being outside');
  wire.close();
});

t.test('descriptor sets', { skip: noKoffi }, async (t) => {
  const { server: one, wire } = await server(t);
  const expected = await reference(one.folder);
  const add = async (flags: string, args: Message = {}) => {
    const fd = openSync(join(one.folder, 'set'), flags);
    const answer = await wire.execute('add-fd', args, [fd]);
    closeSync(fd);
    return answer;
  };
  t.match(await add('a+'), { return: { 'fdset-id': 0, fd: Number } });
  t.equal(
    errorText(await dumpTo(wire, 'file:/dev/fdset/0')),
    'Failed to find file descriptor with matching flags=0x241',
  );
  const added = await add('w', { 'fdset-id': 0, opaque: 'mine' });
  t.same(await dumpTo(wire, 'file:/dev/fdset/0'), { return: {} });
  t.same(await dumpTo(wire, 'file:/dev/fdset/0'), { return: {} }, 'a set can be used again');
  t.ok(readFileSync(join(one.folder, 'set')).equals(expected), 'the file has the dump');
  t.match(await wire.execute('query-fdsets'), {
    return: [{ 'fdset-id': 0, fds: [{ fd: Number }, { opaque: 'mine' }] }],
  });
  t.equal(errorText(await add('w', { 'fdset-id': -1 })), "Parameter 'fdset-id' expects a non-negative value");
  const { fd } = added['return'] as { fd: number };
  t.same(await wire.execute('remove-fd', { 'fdset-id': 0, fd }), { return: {} });
  t.equal(
    errorText(await wire.execute('remove-fd', { 'fdset-id': 0, fd })),
    `File descriptor named 'fdset-id:0, fd:${fd}' not found`,
  );
  t.same(await wire.execute('remove-fd', { 'fdset-id': 0 }), { return: {} });
  t.same(await wire.execute('query-fdsets'), { return: [] });
  t.equal(errorText(await dumpTo(wire, 'file:/dev/fdset/0')), 'Failed to find fdset /dev/fdset/0');
  t.equal(errorText(await dumpTo(wire, 'file:/dev/fdset/x')), 'Could not parse fdset /dev/fdset/x');
  wire.close();
});
/** Options of Node's with which close(2) of a file of this name fails: the server of its file system has gone. */
function closeFails(t: Tap, name: string): string[] {
  const folder = mkdtempSync(join(tmpdir(), 'vmcore-qmp-'));
  t.teardown(async () => rmSync(folder, { recursive: true, force: true }));
  const hook = join(folder, 'hook.cjs');
  writeFileSync(
    hook,
    `const fs = require('node:fs'); const { close, closeSync } = fs;
     const link = (fd) => { try { return fs.readlinkSync('/proc/self/fd/' + fd); } catch { return ''; } };
     const fails = (fd) => link(fd).endsWith('/${name}') && Object.assign(new Error('EIO'), { code: 'EIO' });
     fs.close = (fd, done) => { const error = fails(fd); close(fd, (other) => done(error || other)); };
     fs.closeSync = (fd) => { const error = fails(fd); closeSync(fd); if (error) throw error; };`,
  );
  return ['--require', hook];
}

t.test('a close(2) that fails: the dump has failed, and the next one may begin', { skip: noKoffi }, async (t) => {
  const server = await TestServer.start({ source: SOURCE, node: closeFails(t, 'unlucky') });
  t.teardown(() => server.stop());
  const wire = await server.connect();
  const unlucky = join(server.folder, 'unlucky');
  const error = 'dump: failed to save memory: Input/output error';

  await pass(wire, 'one', openSync(unlucky, 'w'));
  t.equal(errorText(await dumpTo(wire, 'fd:one')), error);
  t.match(await wire.execute('query-dump'), { return: { status: 'failed', total: TOTAL, completed: TOTAL } });

  await pass(wire, 'two', openSync(unlucky, 'w'));
  t.same(await dumpTo(wire, 'fd:two', { detach: true }), { return: {} });
  t.match(await wire.until(completed), { data: { error, result: { status: 'failed' } } });
  const warnings = ['one', 'two'].map((name) => `vmcore: warning: cannot close fd:${name}: input/output error\n`);
  t.equal(server.stderr, warnings.join(''));

  await pass(wire, 'three', openSync(unlucky, 'w'));
  await pass(wire, 'three', openSync(join(server.folder, 'lucky'), 'w'));
  t.same(await dumpTo(wire, 'fd:three'), { return: {} }, 'one that is replaced hurts nobody');
  await pass(wire, 'pipe', openSync(unlucky, 'w'));
  t.match(errorText(await dumpTo(wire, 'fd:pipe', { begin: 2 ** 50, length: 1 })), /no guest memory/, 'nor one unused');
  t.same(await dumpTo(wire, `file:${join(server.folder, 'lucky')}`), { return: {} });
});

t.test('no descriptor leaks: hundreds of rounds of every path', { skip: noKoffi }, async (t) => {
  const { server: one, wire } = await server(t);
  const open = () => openSync(join(one.folder, 'leak'), 'w');
  const small = { begin: 0, length: 4096 };
  const round = async () => {
    const wire = await one.connect();
    await pass(wire, 'a', open());
    await pass(wire, 'a', open());
    await wire.execute('closefd', { fdname: 'a' });
    await pass(wire, 'b', open());
    await dumpTo(wire, 'fd:b', small);
    await pass(wire, 'c', open());
    await dumpTo(wire, 'fd:c', { begin: 2 ** 40, length: 1 });
    await pass(wire, 'd', openSync('/dev/full', 'w'));
    await dumpTo(wire, 'fd:d', small);
    await dumpTo(wire, `file:${one.folder}/leak`, small);
    await dumpTo(wire, 'file:/dev/full', small);
    await dumpTo(wire, 'file:/no/such/folder', small);
    const fds = [open(), open(), open()];
    await wire.execute('getfd', { fdname: '1' }, fds);
    await wire.execute('getfd', { fdname: 3 }, fds);
    await wire.execute('add-fd', { 'fdset-id': 7 }, fds);
    await dumpTo(wire, 'file:/dev/fdset/7', small);
    await wire.execute('remove-fd', { 'fdset-id': 7 });
    await wire.execute('query-status', {}, fds);
    fds.forEach(closeSync);
    wire.close();
  };
  for (let i = 0; i < 5; i++) await round();
  const before = one.descriptors;
  for (let i = 0; i < 200; i++) await round();
  t.ok(await eventually(() => one.descriptors <= before, 5000), `${before} before, ${one.descriptors} after`);
  wire.close();
});

t.test('SIGTERM ends a dump and leaves nothing partial', async (t) => {
  for (const format of ['elf', 'kdump-zlib']) {
    const one = await TestServer.start({ source: 'demo:64G' });
    t.teardown(() => one.stop());
    const wire = await one.connect();
    const file = join(one.folder, 'vmcore');
    writeFileSync(file, 'the old one');
    t.same(await dumpTo(wire, `file:${file}`, { detach: true, format }), { return: {} });
    t.ok(await eventually(() => one.files().some((name) => name.endsWith('.partial'))), `${format}: it has begun`);
    one.child.kill('SIGTERM');
    t.equal(await one.exited, 128 + 15, 'exit code');
    t.same(one.files(), ['vmcore'], 'nothing partial');
    t.equal(readFileSync(file, 'utf8'), 'the old one', 'the old file is untouched');
    t.notOk(existsSync(one.path), 'the socket is gone');
    wire.close();
  }
});

t.test('quit ends a dump too', async (t) => {
  const one = await TestServer.start({ source: 'demo:64G' });
  t.teardown(() => one.stop());
  const wire = await one.connect();
  await dumpTo(wire, `file:${one.folder}/vmcore`, { detach: true });
  t.same(await wire.execute('quit'), { return: {} });
  t.match(await wire.until((message) => message['event'] === 'SHUTDOWN'), { data: { reason: 'host-qmp-quit' } });
  t.equal(await one.exited, 0);
  t.same(one.files(), [], 'nothing partial');
});

t.test('a client that disconnects does not stop its dump', async (t) => {
  const one = await TestServer.start({ source: 'demo:1G' });
  t.teardown(() => one.stop());
  const [first, second] = [await one.connect(), await one.connect()];
  first.send(`{"execute":"dump-guest-memory","arguments":{"paging":false,"protocol":"file:${one.folder}/vmcore"}}\n`);
  t.ok(await eventually(() => one.files().length > 0), 'it has begun');
  first.close();
  t.match(await second.until(completed), { data: { result: { status: 'completed' } } });
  t.same(one.files(), ['vmcore']);
  second.close();
});

t.test('all formats open in their readers', { skip: noKoffi }, async (t) => {
  const { server: one, wire } = await server(t);
  const { return: capability } = (await wire.execute('query-dump-guest-memory-capability')) as {
    return: { formats: string[] };
  };
  t.equal(capability.formats.length, 8);
  for (const format of capability.formats) {
    const file = join(one.folder, format);
    await pass(wire, 'dump', openSync(file, 'w'));
    const answer = await dumpTo(wire, 'fd:dump', { format });
    if (format === 'win-dmp') {
      t.equal(errorText(answer), 'win-dump: invalid vmcoreinfo note size', 'the demo guest is no Windows');
      continue;
    }
    t.same(answer, { return: {} }, format);
    const guest = await openGuest(file);
    t.equal(guest.blocks.reduce((sum, { length }) => sum + length, 0) > 0, true, `${format}: we read it`);
    guest.close();
    checkReader(t, format, file);
  }
  wire.close();
});

/** Asks the reader of others, where the machine has one. */
function checkReader(t: Test, format: string, file: string): void {
  if (format === 'elf') {
    if (!needsTools('readelf')) t.equal(spawnSync('readelf', ['-ln', file]).status, 0, 'readelf reads it');
  } else if (format.startsWith('kdump-raw-')) {
    if (!hasPython('kdumpfile')) return;
    const script = `import kdumpfile; c = kdumpfile.kdumpfile(${JSON.stringify(file)}); print(c.attr["arch.name"])`;
    const { stdout, stderr } = spawnSync(PYTHON, ['-c', script], { encoding: 'utf8' });
    t.match(stdout, 'x86_64', `libkdumpfile reads ${format} ${stderr}`);
  } else if (!needsTools('makedumpfile')) {
    const { status } = spawnSync('sh', ['-c', `makedumpfile -R -f ${file}.assembled < ${file}`]);
    t.equal(status, 0, `makedumpfile reads ${format}`);
  }
}
