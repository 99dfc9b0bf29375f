import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, constants, fstatSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { pipelinePromise, Readable } from 'streamx';
import t from 'tap';
import { libc } from '../../lib/io/libc.js';
import { openFlags } from '../../lib/io/open-flags.js';
import { FdSink } from '../../lib/sinks/fd-sink.js';
import type { Extent } from '../../lib/model/stage.js';
import { startCli, until } from '../cli/run-cli.js';
import { asNobody, needsTools, NOBODY, skipUnless } from '../tools.js';
import { shortFolder } from '../short-folder.js';

const MIB = 1 << 20;

function extents(count: number): Extent[] {
  return Array.from({ length: count }, (_, i) => ({
    offset: i * MIB,
    length: MIB,
    data: new Uint8Array(new SharedArrayBuffer(MIB)).fill(i + 1),
    memory: MIB,
  }));
}

t.test('a file: bytes in order, holes filled with zeros, the descriptor stays open', async (t) => {
  const path = join(t.testdir({}), 'out');
  const fd = openSync(path, 'w');
  const data = Uint8Array.of(1, 2, 3);
  const sink = new FdSink(fd);
  await pipelinePromise(
    Readable.from([
      { offset: 0, length: 3, data, memory: 0 },
      { offset: 5, length: 4, memory: 4 },
      { offset: 9, length: 3, data, memory: 3 },
    ]),
    sink,
  );
  t.same([...readFileSync(path)], [1, 2, 3, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
  t.same(sink.totals, { completed: 7, written: 12, skipped: 0, size: 12 });
  t.doesNotThrow(() => fstatSync(fd));
  closeSync(fd);
});

t.test('at offsets: holes are zeros, whatever the file had there; what is behind the end stays', async (t) => {
  const path = join(t.testdir({}), 'out');
  const store = async (old: Buffer, extents: Extent[]) => {
    writeFileSync(path, old);
    const fd = openSync(path, 'r+');
    const sink = new FdSink(fd, { close: true, seek: true });
    await pipelinePromise(Readable.from(extents), sink);
    return { bytes: readFileSync(path), totals: sink.totals };
  };
  const data = Buffer.from('data');
  const small: Extent[] = [
    { offset: 8, length: 4, data, memory: 0 },
    { offset: 6, length: 2, memory: 4 },
    { offset: 12, length: 100, memory: 100 },
    { offset: 0, length: 4, data, memory: 0 },
  ];
  const over = await store(Buffer.alloc(20, 'x'), small);
  t.equal(over.bytes.toString('latin1'), `data\0\0\0\0data${'\0'.repeat(8)}`, 'the file ends in a hole');
  t.same(over.totals, { completed: 104, written: 20, skipped: 92, size: 112 }, 'two bytes have no extent');
  t.same((await store(Buffer.alloc(0), small)).totals, { completed: 104, written: 8, skipped: 102, size: 112 }, 'new');

  const { bytes } = await store(Buffer.alloc(3 * MIB, 'x'), [{ offset: 10, length: 2 * MIB, memory: 0 }]);
  const want = Buffer.alloc(3 * MIB, 'x').fill(0, 0, 2 * MIB + 10);
  t.ok(bytes.equals(want), 'a hole larger than what is written at a time');
});

t.test('the descriptor is closed when asked, also on failure', async (t) => {
  const fd = openSync(join(t.testdir({}), 'out'), 'w');
  await t.rejects(
    pipelinePromise(
      Readable.from([
        { offset: 10, length: 1, data: new Uint8Array(1), memory: 0 },
        { offset: 0, length: 1, data: new Uint8Array(1), memory: 0 },
      ]),
      new FdSink(fd, { close: true }),
    ),
    { code: 'UNSUPPORTED', message: /offset 0 come after offset 11.*seekable/ },
  );
  t.throws(() => fstatSync(fd), { code: 'EBADF' });
});

t.test('a descriptor that is not open', async (t) => {
  await t.rejects(pipelinePromise(Readable.from(extents(1)), new FdSink(987)), {
    code: 'WRITE',
    message: 'cannot write fd 987: bad file descriptor',
  });
});

t.test('a pipe', async (t) => {
  const run = async (script: string, work: (fd: number) => Promise<void>) => {
    const path = join(t.testdir({}), 'fifo');
    execFileSync('mkfifo', [path]);
    const child = spawn('sh', ['-c', `{ ${script}; } < "$0"`, path], { stdio: ['ignore', 'pipe', 'inherit'] });
    let text = '';
    child.stdout.on('data', (data) => {
      text += data;
    });
    const closed = new Promise((resolve) => child.on('close', resolve));
    const fd = openSync(path, 'w');
    try {
      await work(fd);
    } finally {
      closeSync(fd);
      await closed;
    }
    return text.trim();
  };

  t.test('takes megabytes and delivers all of them', async (t) => {
    const output = await run('cksum', async (fd) => {
      await pipelinePromise(Readable.from(extents(8)), new FdSink(fd));
      t.doesNotThrow(() => fstatSync(fd), 'still open: it is not ours');
    });
    const expected = execFileSync('cksum', { input: Buffer.concat(extents(8).map(({ data }) => data!)) });
    t.equal(output, expected.toString().trim());
  });

  t.test('a reader that goes away', async (t) => {
    await run('head -c 100000 > /dev/null', async (fd) => {
      await t.rejects(pipelinePromise(Readable.from(extents(8)), new FdSink(fd)), {
        code: 'WRITE',
        message: /reader has gone away/,
      });
    });
  });

  t.test('a reader that does not read does not keep us from being aborted', async (t) => {
    await run('sleep 1', async (fd) => {
      const abort = new AbortController();
      const sink = new FdSink(fd, { signal: abort.signal });
      const done = pipelinePromise(Readable.from(extents(8)), sink);
      setTimeout(() => abort.abort(), 50);
      await t.rejects(done);
      t.ok(sink.totals.completed < 8 * MIB, 'progress is what the reader took');
    });
  });
});

t.test('a socket', async (t) => {
  const path = join(shortFolder(t), 's');
  let received = 0;
  const server = createServer((socket) =>
    socket.on('data', (data) => {
      received += data.length;
    }),
  );
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const client = connect(path);
  await new Promise((resolve) => client.on('connect', resolve));
  const fd = (client as unknown as { _handle: { fd: number } })._handle.fd;
  await pipelinePromise(Readable.from(extents(8)), new FdSink(fd));
  client.end();
  await new Promise((resolve) => server.close(resolve));
  t.equal(received, 8 * MIB);
});

t.test('/dev/full', async (t) => {
  const fd = openSync('/dev/full', 'w');
  await t.rejects(pipelinePromise(Readable.from(extents(1)), new FdSink(fd, { close: true, name: '/dev/full' })), {
    code: 'WRITE',
    message: 'cannot write /dev/full: no space left on device',
  });
});

t.test('a close(2) that fails fails the dump; a descriptor is closed once', async (t) => {
  const fd = openSync(join(t.testdir({}), 'out'), 'w');
  const sink = new FdSink(fd, { close: true });
  // Somebody else closes it when all is written: what close(2) says then, nobody could know before.
  sink.on('progress' as 'drain', () => closeSync(fd));
  await t.rejects(pipelinePromise(Readable.from(extents(1)), sink), {
    code: 'WRITE',
    message: `cannot close fd ${fd}: bad file descriptor`,
  });
});

/** fcntl(F_SETFL), and a socket's access mode: it blocks. */
const F_SETFL = 4;

t.test(
  'a socket whose reader does not read, and that blocks',
  { skip: skipUnless(libc() ? [] : ['koffi']) },
  async (t) => {
    // What Node calls a pipe to a child is a socket.
    const child = spawn('sleep', ['5'], { stdio: ['pipe', 'ignore', 'ignore'] });
    const gone = once(child, 'exit').then(() => 'the reader has gone');
    const { fd } = (child.stdin as unknown as { _handle: { fd: number } })._handle;
    libc()!.fcntl(fd, F_SETFL, constants.O_RDWR);
    const abort = new AbortController();
    const sink = new FdSink(fd, { signal: abort.signal });
    const closed = new Promise((resolve) => sink.once('close', () => resolve('closed')));
    const done = pipelinePromise(Readable.from(extents(8)), sink);
    setTimeout(() => abort.abort(), 50);
    await t.rejects(done);
    t.equal(await Promise.race([closed, gone]), 'closed', 'no thread waits for the reader');
    t.ok(sink.totals.completed < 8 * MIB, 'progress is what the reader took');
    t.equal(openFlags(fd) & constants.O_NONBLOCK, 0, 'it blocks again: others may share it');
    child.kill();
    await gone;
  },
);

t.test('a pipe that may not be opened again', { skip: asNobody || needsTools('mkfifo') }, async (t) => {
  const path = join(t.testdir({}), 'fifo');
  execFileSync('mkfifo', ['-m', '600', path]);
  const reader = spawn('sleep', ['20'], {
    stdio: [openSync(path, constants.O_RDONLY | constants.O_NONBLOCK), 'ignore', 'ignore'],
  });
  t.teardown(() => reader.kill());
  const fd = openSync(path, 'w');
  const { child, ended } = startCli(['dump', 'demo:64M', '-o', '-'], { stdio: ['ignore', fd, 'pipe'], ...NOBODY });
  const isFull = () => (openFlags(fd) & constants.O_NONBLOCK) !== 0;
  await until(isFull);
  child.kill('SIGINT');
  t.match(await ended, { code: 130, stderr: '' });
  t.notOk(isFull(), 'it blocks again');
  closeSync(fd);
});
