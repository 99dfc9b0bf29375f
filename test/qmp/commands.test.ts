/** Commands: what is said of them, against what a live QEMU says; what there is beyond QEMU; life without koffi. */

import { join } from 'node:path';
import t from 'tap';
import { Qemu } from '../guests/qemu.js';
import { needsTools } from '../tools.js';
import { errorText, eventually, type Message, noKoffi, TestServer, withoutKoffi } from './qmp-fixture.js';

interface Entry {
  readonly name: string;
  readonly 'meta-type': string;
  readonly [key: string]: unknown;
}

/** A type with everything that it refers to in its place: names of types mean nothing. */
function resolved(schema: readonly Entry[], name: string): unknown {
  const entry = schema.find((one) => one.name === name)!;
  switch (entry['meta-type']) {
    case 'object':
      return (entry['members'] as { name: string; type: string; default?: null }[])
        .map((member) => ({
          name: member.name,
          optional: 'default' in member,
          type: resolved(schema, member.type),
        }))
        .sort((a, b) => (a.name < b.name ? -1 : 1));
    case 'array':
      return [resolved(schema, entry['element-type'] as string)];
    case 'enum':
      return [...(entry['values'] as string[])].sort();
    case 'builtin':
      return entry['json-type'];
    default:
      return { arguments: resolved(schema, entry['arg-type'] as string), result: resultOf(schema, entry) };
  }
}

function resultOf(schema: readonly Entry[], { 'ret-type': type }: Entry): unknown {
  return type === undefined ? undefined : resolved(schema, type as string);
}

const schemaOf = (answer: Message) => answer['return'] as readonly Entry[];

/** Where the schema of QEMU 7.2 is another one than that of QEMU 10, which is ours. */
const OTHER_SCHEMA: Readonly<Record<string, string>> = {
  'dump-guest-memory': 'no kdump-raw formats',
  'query-dump-guest-memory-capability': 'no kdump-raw formats',
  'query-status': 'StatusInfo had `singlestep`',
  'query-qmp-schema': 'SchemaInfo is not described in full by us',
};

t.test('query-qmp-schema says what QEMU says', { skip: needsTools('qemu-system-x86_64') }, async (t) => {
  const server = await TestServer.start();
  t.teardown(() => server.stop());
  const qemu = await Qemu.launch({ machine: 'pc', memory: 16 << 20, args: ['-S'] });
  t.teardown(() => qemu.quit());
  const wire = await server.connect();
  const ours = schemaOf(await wire.execute('query-qmp-schema'));
  const theirs = await qemu.execute<Entry[]>('query-qmp-schema');
  const served = ours.filter((entry) => ['command', 'event'].includes(entry['meta-type'])).map(({ name }) => name);
  t.same(new Set(ours.map(({ name }) => name)).size, ours.length, 'each name once');
  for (const name of served) {
    const [a, b] = [JSON.stringify(resolved(ours, name)), JSON.stringify(resolved(theirs, name))];
    if (OTHER_SCHEMA[name]) t.not(a, b, `${name}: ${OTHER_SCHEMA[name]}`);
    else t.equal(a, b, name);
  }
  const { return: commands } = (await wire.execute('query-commands')) as { return: { name: string }[] };
  t.same(
    commands.map(({ name }) => name).sort(),
    served.filter((name) => name === name.toLowerCase()).sort(),
    'query-commands agrees',
  );
  wire.close();
});

t.test('beyond QEMU, only when asked for', async (t) => {
  const plain = await TestServer.start();
  const extended = await TestServer.start({ source: 'demo:64G', args: ['--extensions'] });
  t.teardown(() => Promise.all([plain.stop(), extended.stop()]));
  const [wire, other] = [await extended.connect(), await plain.connect()];
  const protocol = `file:${extended.folder}/out`;
  const range = { begin: 0x100000, length: 0x100000 };
  const kdump = { paging: false, protocol, format: 'kdump-lzo', ...range };
  t.same(await wire.execute('dump-guest-memory', { ...kdump, threads: 1 }), { return: {} });
  t.match(await wire.execute('query-dump'), { return: { total: range.length, completed: range.length } });
  t.match(errorText(await wire.execute('dump-guest-memory', { ...kdump, threads: 0 })), /'threads' expects/);
  t.match(errorText(await wire.execute('dump-guest-memory', { ...kdump, paging: true })), /doesn't support paging/);
  t.match(errorText(await other.execute('dump-guest-memory', kdump)), /doesn't support paging or filter/);
  t.equal(
    errorText(await other.execute('dump-guest-memory', { ...kdump, threads: 1 })),
    "Parameter 'threads' is unexpected",
  );
  t.equal(errorText(await other.execute('dump-cancel')), 'The command dump-cancel has not been found');
  t.equal(errorText(await wire.execute('dump-cancel')), 'There is no dump in process');
  await wire.execute('dump-guest-memory', { paging: false, protocol: `file:${extended.folder}/big`, detach: true });
  t.same(await wire.execute('dump-cancel'), { return: {} });
  const event = await wire.until((message) => message['event'] === 'DUMP_COMPLETED');
  t.match(event, { data: { result: { status: 'failed' }, error: 'dump: cancelled' } });
  t.ok(await eventually(() => extended.files().join() === 'out'), 'nothing partial is left');
  wire.close();
  other.close();
});

t.test('paging of elf', async (t) => {
  const server = await TestServer.start();
  t.teardown(() => server.stop());
  const wire = await server.connect();
  t.same(await wire.execute('dump-guest-memory', { paging: true, protocol: `file:${server.folder}/out` }), {
    return: {},
  });
  wire.close();
});

t.test('events go to all clients that negotiated', async (t) => {
  const server = await TestServer.start();
  t.teardown(() => server.stop());
  const [asks, listens] = [await server.connect(), await server.connect()];
  await asks.execute('dump-guest-memory', { paging: false, protocol: `file:${server.folder}/out` });
  t.match(await listens.message(), { event: 'DUMP_COMPLETED', timestamp: { seconds: Number, microseconds: Number } });
  asks.close();
  listens.close();
});

t.test('descriptors sent back to back find their commands', { skip: noKoffi }, async (t) => {
  const server = await TestServer.start();
  t.teardown(() => server.stop());
  const { openSync, closeSync, statSync } = await import('node:fs');
  const wire = await server.connect();
  const names = ['a', 'b', 'c'];
  for (const name of names) {
    const fd = openSync(join(server.folder, name), 'w');
    wire.send(`{"execute":"getfd","arguments":{"fdname":"${name}"}}`, [fd]);
    closeSync(fd);
  }
  for (const _ of names) t.same(await wire.message(), { return: {} });
  for (const [i, name] of names.entries())
    await wire.execute('dump-guest-memory', {
      paging: false,
      protocol: `fd:${name}`,
      begin: 0,
      length: 4096 * (i + 1),
    });
  const sizes = names.map((name) => statSync(join(server.folder, name)).size);
  t.same(
    sizes.map((size) => size - sizes[0]!),
    [0, 4096, 8192],
    'each got its own',
  );
  wire.close();
});

t.test('without koffi everything else works, and getfd says what is missing', async (t) => {
  const server = await TestServer.start({ node: withoutKoffi(t) });
  t.teardown(() => server.stop());
  const wire = await server.connect();
  t.match(errorText(await wire.execute('getfd', { fdname: 'x' })), /the optional package koffi is missing/);
  t.match(errorText(await wire.execute('add-fd')), /the optional package koffi is missing/);
  t.same(await wire.execute('dump-guest-memory', { paging: false, protocol: `file:${server.folder}/out` }), {
    return: {},
  });
  t.same(await wire.execute('query-fdsets'), { return: [] });
  wire.close();
});
