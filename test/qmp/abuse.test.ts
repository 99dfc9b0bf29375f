/** Clients that mean harm, or are broken: each costs itself an error, the next client is served, memory comes back. */

import { once } from 'node:events';
import type { Socket } from 'node:net';
import t, { type Test } from 'tap';
import { errorText, eventually, TestServer, type Wire } from './qmp-fixture.js';

const MIB = 1 << 20;

/** What a server's memory may differ by, in MiB: what its allocators keep, and slabs of dumps. */
const SLACK = 160;

/** Has the server collect its garbage when it is asked to: when V8 does so by itself, nobody can tell. */
const COLLECTS = ['--expose-gc', '--import', new URL('collect-on-signal.js', import.meta.url).href];

const WARM_DUMPS = 8;

/** Runs an attack; checks that the next client is served, and that nothing of the attack stays. */
function attack(name: string, run: (t: Test, server: TestServer) => Promise<void>): void {
  t.test(name, async (t) => {
    const server = await TestServer.start({ node: COLLECTS });
    t.teardown(() => server.stop());
    const warm = await server.connect();
    // Memory of dumps is collected late: as many of them as it takes to see what is normal.
    for (let i = 0; i < WARM_DUMPS; i++)
      await warm.execute('dump-guest-memory', { paging: false, protocol: `file:${server.folder}/warm` });
    warm.close();
    const [memory, descriptors] = [server.memory, server.descriptors];
    await run(t, server);
    const next = await server.connect();
    t.same(await next.execute('query-status'), { return: { status: 'paused', running: false } }, 'the next is served');
    next.close();
    t.comment(`memory ${memory.toFixed(0)} -> ${server.memory.toFixed(0)} MiB`);
    const isBack = () => server.child.kill('SIGUSR2') && server.memory < memory + SLACK;
    t.ok(await eventually(isBack, 10_000), 'memory is where it was');
    t.comment(`memory ${server.memory.toFixed(0)} MiB without garbage`);
    t.ok(await eventually(() => server.descriptors <= descriptors, 10_000), 'descriptors are where they were');
    t.equal(server.child.exitCode, null, 'the server is alive');
  });
}

/** Waits until a socket takes more, or has been closed. */
async function drained(socket: Socket): Promise<void> {
  const over = new AbortController();
  const first = ['drain', 'close'].map((event) => once(socket, event, { signal: over.signal }));
  try {
    await Promise.race(first);
  } finally {
    // Else each wait would leave listeners behind.
    over.abort();
    await Promise.allSettled(first);
  }
}

/** Writes as fast as the server takes it. */
async function flood(wire: Wire, piece: Uint8Array, bytes: number): Promise<void> {
  for (let sent = 0; sent < bytes && !wire.socket.destroyed; sent += piece.length)
    if (!wire.socket.write(piece)) await drained(wire.socket);
}

attack('10,000 commands in one write', async (t, server) => {
  const wire = await server.connect();
  const COUNT = 10_000;
  wire.send(Array.from({ length: COUNT }, (_, id) => `{"execute":"query-dump","id":${id}}`).join(''));
  let inOrder = 0;
  while (inOrder < COUNT && (await wire.message())['id'] === inOrder) inOrder++;
  t.equal(inOrder, COUNT, 'all are answered, in order');
  wire.close();
});

attack('a message of 1 GiB with no end', async (t, server) => {
  const wire = await server.connect();
  wire.send('{"execute": "');
  await flood(wire, Buffer.alloc(4 * MIB, 'a'), 1024 * MIB);
  t.match(errorText(await wire.message()), 'JSON token size limit exceeded');
  wire.close();
});

attack('a message with no end, of small tokens', async (t, server) => {
  const wire = await server.connect();
  wire.send('[');
  await flood(wire, Buffer.from('1,'.repeat(1 << 20)), 2 * MIB);
  t.match(errorText(await wire.message()), 'JSON token count limit exceeded');
  wire.close();
});

attack('100,000 open brackets', async (t, server) => {
  const wire = await server.connect();
  wire.send('['.repeat(100_000));
  t.match(errorText(await wire.message()), 'JSON nesting depth limit exceeded');
  wire.close();
});

attack('invalid UTF-8', async (t, server) => {
  const wire = await server.connect();
  wire.send(Buffer.from('{"execute": "\xc3\x28"}\n', 'latin1'));
  t.equal(errorText(await wire.message()), 'JSON parse error, invalid UTF-8 sequence in string');
  wire.send(Buffer.from('\xff\xfe\x80\n', 'latin1'));
  t.equal(errorText(await wire.message()), "JSON parse error, stray '\ufffd'");
  wire.close();
});

attack('a client that never reads', async (t, server) => {
  const wire = await server.connect();
  wire.socket.pause();
  const command = Buffer.from('{"execute":"query-qmp-schema"}\n'.repeat(1000));
  for (let i = 0; i < 50; i++) wire.socket.write(command);
  const other = await server.connect();
  t.same(await other.execute('query-status'), { return: { status: 'paused', running: false } }, 'others are served');
  t.ok(server.memory < 400, `${server.memory.toFixed(0)} MiB while it does not read`);
  other.close();
  wire.close();
});

attack('200 connects and disconnects in mid-dump', async (t, server) => {
  const first = await server.connect();
  const target = `file:${server.folder}/slow`;
  for (let i = 0; i < 200; i++) {
    const wire = await server.connect();
    wire.send(`{"execute":"dump-guest-memory","arguments":{"paging":false,"protocol":"${target}"}}\n`);
    if (i % 2 === 0) await wire.message();
    wire.close();
  }
  const ended = async () => {
    const status = (await first.execute('query-dump'))['return'] as { status: string };
    return status.status !== 'active';
  };
  t.ok(await eventually(ended), 'the dump of a client that is gone ends');
  first.close();
});
