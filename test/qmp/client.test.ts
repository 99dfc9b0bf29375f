/** The client of QEMU's monitor, against servers that do what QEMU does, and what it does not. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { connectQmp, humanMonitor, QmpCommandError } from '../../lib/qmp/protocol/client.js';
import { makeShortFolder, shortFolder } from '../short-folder.js';
import { eventually, noKoffi, TestServer } from './qmp-fixture.js';

const GREETING = '{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}\r\n';

type Request = { readonly execute: string; readonly arguments?: unknown; readonly id: string };

/** A server that greets and answers as the test says. */
class FakeMonitor {
  readonly path: string;
  readonly requests: Request[] = [];
  socket: Socket | null = null;

  private constructor(
    private readonly server: Server,
    private readonly folder: string,
  ) {
    this.path = join(folder, 'qmp');
  }

  /** @param answer what is written for a request; null says nothing */
  static async start(
    t: Test,
    greeting: string,
    answer: (request: Request) => string | null = ({ id }) => `{"return": {}, "id": "${id}"}\r\n`,
  ): Promise<FakeMonitor> {
    const server = createServer();
    const monitor = new FakeMonitor(server, makeShortFolder());
    server.on('connection', (socket) => monitor.#serve(socket, greeting, answer));
    server.listen(monitor.path);
    await once(server, 'listening');
    t.teardown(() => monitor.stop());
    return monitor;
  }

  stop(): void {
    this.socket?.destroy();
    this.server.close();
    rmSync(this.folder, { recursive: true, force: true });
  }

  #serve(socket: Socket, greeting: string, answer: (request: Request) => string | null): void {
    this.socket = socket;
    let text = '';
    socket.on('error', () => {});
    socket.on('data', (data) => {
      const lines = (text + data.toString()).split('\n');
      text = lines.pop()!;
      for (const line of lines) {
        const request = JSON.parse(line) as Request;
        this.requests.push(request);
        const said = answer(request);
        if (said !== null) socket.write(said);
      }
    });
    socket.write(greeting);
  }
}

const ok = (id: string, value: unknown = {}) => `${JSON.stringify({ return: value, id })}\r\n`;

/** Answers to the negotiation as QEMU does, and to others as the test says. */
const afterGreeting = (answer: (request: Request) => string | null) => (request: Request) =>
  request.execute === 'qmp_capabilities' ? ok(request.id) : answer(request);

t.test('commands, answers in any order, and events', async (t) => {
  const waiting: Request[] = [];
  const monitor = await FakeMonitor.start(
    t,
    GREETING,
    afterGreeting((request) => {
      waiting.push(request);
      if (waiting.length < 3) return null;
      return waiting
        .map(({ id, execute }) => ok(id, execute))
        .reverse()
        .join('');
    }),
  );
  const client = await connectQmp(monitor.path);
  const answers = await Promise.all(['a', 'b', 'c'].map((name) => client.execute(name, { left: undefined, x: 1 })));
  t.same(answers, ['a', 'b', 'c']);
  t.same(monitor.requests[1]!.arguments, { x: 1 }, 'what is undefined is left out');
  const events: unknown[] = [];
  const forget = client.onEvent((event) => events.push(event));
  monitor.socket!.write(
    '{"event": "STOP", "timestamp": {"seconds": 1}}\r\n{"event": "X", "data": {"big": 18446744073709551615}}',
  );
  while (events.length < 2) await new Promise(setImmediate);
  t.same(events, [
    { event: 'STOP', data: {} },
    { event: 'X', data: { big: 18446744073709551615n } },
  ]);
  forget();
  client.close();
  t.match(await client.closed, { code: 'ABORTED' });
  await t.rejects(client.execute('d'), { code: 'ABORTED' });
});

t.test('a monitor that spreads its messages over lines (pretty=on)', async (t) => {
  const pretty = (text: string) => `${JSON.stringify(JSON.parse(text), null, 4)}\r\n`;
  const monitor = await FakeMonitor.start(t, pretty(GREETING), ({ id }) => pretty(ok(id, { text: 'a\r\nb\r\n' })));
  const client = await connectQmp(monitor.path);
  t.same(await client.execute('query'), { text: 'a\r\nb\r\n' });
  await t.rejects(humanMonitor(client, 'info'), { code: 'READ', message: /returned no text/ });
  client.close();
});

t.test('answers to the client before us, which QEMU gives to us', async (t) => {
  const theirs = ['vmcore-1', 'vmcore-2', 7].map((id) => ok(id as string, 'theirs')).join('');
  const greeting = `${GREETING}${theirs}{"return": "theirs"}\r\n`;
  const monitor = await FakeMonitor.start(t, greeting, ({ id }) => theirs + ok(id, 'ours'));
  const client = await connectQmp(monitor.path);
  t.equal(await client.execute('query'), 'ours');
  client.close();
  const other = await connectQmp(monitor.path);
  await other.execute('query');
  other.close();
  t.equal(new Set(monitor.requests.map(({ id }) => id)).size, 4, 'no two clients ask by the same name');
});

t.test("QEMU's refusals", async (t) => {
  const monitor = await FakeMonitor.start(
    t,
    GREETING,
    afterGreeting(({ id, execute }) => {
      const desc = execute === 'long' ? `a\n${'b'.repeat(10_000)}` : 'The command x has not been found';
      const error = { class: execute === 'long' ? 'GenericError' : 'CommandNotFound', desc };
      return `${JSON.stringify({ error, id })}\r\n`;
    }),
  );
  const client = await connectQmp(monitor.path);
  const error = (await client.execute('x').catch((error: unknown) => error)) as QmpCommandError;
  t.ok(error instanceof QmpCommandError);
  t.match(error, { code: 'UNSUPPORTED', errorClass: 'CommandNotFound', desc: 'The command x has not been found' });
  t.equal(error.message, 'QEMU refuses x: The command x has not been found');
  const long = (await client.execute('long').catch((error: unknown) => error)) as QmpCommandError;
  t.match(long, { code: 'READ', errorClass: 'GenericError' });
  t.ok(!long.message.includes('\n') && long.message.length < 400, 'one line, and not endless');
  client.close();
});

/** What a server says first, and what is said of it. */
const NONSENSE: Readonly<Record<string, readonly [string, RegExp]>> = {
  'another protocol': ['SSH-2.0-OpenSSH_9.2\r\n', /does not talk as QEMU's monitor/],
  'a web server': ['HTTP/1.1 400 Bad Request\r\n\r\n', /does not talk as QEMU's monitor/],
  'JSON that is no greeting': ['{"hello": 1}\r\n', /it does not greet first/],
  'no object': ['[1, 2]\r\n', /a message is no object/],
  'a greeting, and then a refusal to nobody': [
    `${GREETING}{"error": {"class": "GenericError", "desc": "JSON parse error"}}\r\n`,
    /refuses what was not asked/,
  ],
  'endless nesting': ['['.repeat(100_000), /nesting depth limit/],
  'bytes of nothing': ['\0\x01\xff\xfe'.repeat(1000), /does not talk as QEMU's monitor/],
};

for (const [title, [text, message]] of Object.entries(NONSENSE))
  t.test(`nonsense: ${title}`, async (t) => {
    const monitor = await FakeMonitor.start(t, text, () => null);
    const error = (await connectQmp(monitor.path, { patience: 10_000 }).catch((error: unknown) => error)) as Error;
    t.match(error, { code: 'READ', message });
    t.notMatch(error.message, '\n', 'one line');
  });

t.test('an answer that is none', async (t) => {
  const monitor = await FakeMonitor.start(t, GREETING, ({ id }) => `{"id": "${id}"}\r\n`);
  await t.rejects(connectQmp(monitor.path), { code: 'READ', message: /neither returns nor refuses/ });
});

t.test('nobody answers', async (t) => {
  const silent = await FakeMonitor.start(t, '');
  await t.rejects(connectQmp(silent.path, { patience: 50 }), { code: 'READ', message: /another client/ });
  const deaf = await FakeMonitor.start(t, GREETING, () => null);
  await t.rejects(connectQmp(deaf.path, { patience: 50 }), { code: 'READ', message: /does not greet/ });
  const abort = new AbortController();
  const connecting = connectQmp(silent.path, { signal: abort.signal });
  abort.abort();
  await t.rejects(connecting, { code: 'ABORTED' });
  await t.rejects(connectQmp(silent.path, { signal: abort.signal }), { code: 'ABORTED' });
});

t.test('a connection that ends', async (t) => {
  const monitor = await FakeMonitor.start(
    t,
    GREETING,
    afterGreeting(() => null),
  );
  const client = await connectQmp(monitor.path);
  const answer = client.execute('stop');
  monitor.socket!.destroy();
  await t.rejects(answer, { code: 'READ', message: /is gone/ });
  t.match(await client.closed, { code: 'READ' });
});

/** Greets, answers what it is asked first, and ends: with the second argument's file to tell of it. */
const ANSWERS_AND_ENDS = `
  const [socketPath, marker] = process.argv.slice(1);
  require('node:net').createServer((socket) => {
    socket.write(${JSON.stringify(GREETING)});
    socket.on('data', (data) => {
      const { execute, id } = JSON.parse(data);
      socket.write(JSON.stringify({ return: {}, id }) + '\\r\\n', () => {
        if (execute !== 'quit') return;
        socket.destroy();
        setImmediate(() => { require('node:fs').writeFileSync(marker, ''); process.exit(); });
      });
    });
  }).listen(socketPath);`;

for (const [title, fds] of [
  ['a command', []],
  ['a descriptor', [0]],
] as const)
  t.test(`QEMU answers quit, and ends while ${title} is on its way`, { skip: fds.length > 0 && noKoffi }, async (t) => {
    const folder = shortFolder(t);
    const [path, marker] = [join(folder, 'qmp'), join(folder, 'marker')];
    const { NODE_OPTIONS: _, ...env } = process.env;
    const child = spawn(process.execPath, ['-e', ANSWERS_AND_ENDS, path, marker], { env, stdio: 'inherit' });
    t.teardown(() => child.kill());
    t.ok(await eventually(() => existsSync(path)));
    const client = await connectQmp(path);
    const quit = client.execute('quit');
    // Busy: nothing is read here before more is written.
    while (!existsSync(marker)) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
    const late = client.execute('cont', undefined, { fds });
    late.catch(() => {});
    t.same(await quit, {}, 'the answer is heard');
    await t.rejects(late, { code: 'READ', message: /is gone/ });
    t.match(await client.closed, { code: 'READ' });
  });

t.test('a path that no socket can have', async (t) => {
  const folder = shortFolder(t);
  const server = createServer();
  t.teardown(() => server.close());
  // A path that is cut would be this one.
  const cut = join(folder, 'x'.repeat(107 - folder.length - 1));
  server.listen(cut);
  await once(server, 'listening');
  await t.rejects(connectQmp(`${cut}y`), { code: 'USAGE', message: `${cut}y is too long` });
  const message = /ü+ is too long for the path of a socket: 120 bytes, and the system takes 107; [^\n]+$/;
  await t.rejects(connectQmp('ü'.repeat(60)), { code: 'USAGE', message }, 'bytes, not letters');
});

t.test('no monitor there', async (t) => {
  const folder = shortFolder(t);
  writeFileSync(join(folder, 'file'), 'text');
  await t.rejects(connectQmp(join(folder, 'none')), { code: 'READ', message: /no such file/ });
  await t.rejects(connectQmp(join(folder, 'file')), { code: 'READ', message: /cannot connect/ });
  for (const address of ['', 'tcp:host', 'tcp:host:0', 'tcp:host:70000', 'tcp::1'])
    await t.rejects(connectQmp(address), { code: 'USAGE' }, address);
});

t.test('over TCP', async (t) => {
  const server = createServer((socket) => {
    socket.write(GREETING);
    socket.on('data', (data) => socket.write(ok((JSON.parse(data.toString()) as Request).id)));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = await connectQmp(`tcp:127.0.0.1:${(server.address() as AddressInfo).port}`);
  t.equal(client.passesDescriptors, false);
  t.equal(client.peerPid, null);
  const fd = openSync('/dev/null', 'r');
  await t.rejects(client.execute('getfd', { fdname: 'x' }, { fds: [fd] }), { code: 'UNSUPPORTED' });
  closeSync(fd);
  client.close();
  server.close();
});

t.test('descriptors, and who listens', { skip: noKoffi }, async (t) => {
  const server = await TestServer.start();
  t.teardown(() => server.stop());
  const client = await connectQmp(server.path);
  t.equal(client.peerPid, server.child.pid);
  t.equal(client.passesDescriptors, true);
  const file = join(server.folder, 'file');
  writeFileSync(file, '');
  const fd = openSync(file, 'w');
  await client.execute('getfd', { fdname: 'dump' }, { fds: [fd] });
  closeSync(fd);
  await client.execute('dump-guest-memory', { paging: false, protocol: 'fd:dump' });
  t.equal(readFileSync(file).toString('latin1', 1, 4), 'ELF', 'it came to the file that we opened');
  client.close();
});
