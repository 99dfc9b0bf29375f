/** What passes through the proxy, and what does not: against a QEMU that says what each test wants. */

import { execFileSync } from 'node:child_process';
import { closeSync, constants, fstatSync, openSync, readSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { FORMATS } from '../../lib/request.js';
import { connectQmp, type QmpConnection } from '../../lib/qmp/protocol/client.js';
import { type Json, JsonStream } from '../../lib/qmp/protocol/json-parser.js';
import { requestText } from '../../lib/qmp/protocol/json-text.js';
import { QmpProxy } from '../../lib/qmp/monitor/proxy.js';
import type { QmpError } from '../../lib/qmp/protocol/qmp-error.js';
import { needsTools } from '../tools.js';
import { type Answer, FakeQemu, GREETING, refusal } from './fake-qemu.js';
import { errorText, eventually, noKoffi, Wire } from './qmp-fixture.js';

interface Setup {
  readonly qemu: FakeQemu;
  readonly proxy: QmpProxy;
  /** the proxy's to QEMU */
  readonly connection: QmpConnection;
  /** the proxy's socket */
  readonly path: string;
}

async function setup(t: Test, answer?: Answer, greeting?: string): Promise<Setup> {
  const qemu = await FakeQemu.start(answer, greeting);
  const connection = await connectQmp(qemu.path, { oob: true });
  const proxy = new QmpProxy(connection);
  const path = join(qemu.folder, 'proxy');
  await proxy.listen(`unix:${path}`);
  t.teardown(async () => {
    await proxy.close();
    qemu.close();
  });
  return { qemu, proxy, connection, path };
}

/** Values as messages have them. */
const json = fc.letrec<{ value: Json }>((tie) => ({
  value: fc.oneof(
    { depthSize: 'small' },
    fc.constantFrom(null, true, false),
    fc.bigInt({ min: -(1n << 63n), max: (1n << 64n) - 1n }),
    fc.double({ noNaN: true, noDefaultInfinity: true }),
    fc.string({ unit: 'grapheme' }).filter((text) => !/\p{Noncharacter_Code_Point}|\p{Surrogate}/u.test(text)),
    fc.array(tie('value')),
    fc.array(fc.tuple(fc.string({ unit: 'grapheme-ascii' }), tie('value'))).map((pairs) => new Map(pairs)),
  ),
})).value;

function parse(text: string): Json {
  const messages: (Json | QmpError)[] = [];
  // A number at the end of a text may go on: the bracket tells that it does not.
  new JsonStream((message) => messages.push(message)).feed(Buffer.from(`[${text}]`));
  const [message] = messages;
  if (!Array.isArray(message)) throw message;
  return message[0] as Json;
}

t.test('a value is read as it was before it was written', async (t) => {
  fc.assert(fc.property(json, (value) => isDeepStrictEqual(parse(requestText(value)), value)));
  for (const text of ['1.0', '-0.0', '1e22', '5e-324', '18446744073709551615', '-9223372036854775808'])
    t.ok(isDeepStrictEqual(parse(requestText(parse(text))), parse(text)), text);
});

t.test('no number and no text is altered, either way', async (t) => {
  const result =
    '{"big": 18446744073709551615, "small": -9223372036854775808, "ratio": 0.10000000000000001, "text": "\\u00E9\\\\\\"\\n", "list": [1, null, true]}';
  const { qemu, path } = await setup(t, () => result);
  const wire = await Wire.negotiated(path);
  wire.send(
    `{'execute': 'qom-set', 'arguments': {"value": 18446744073709551615, "double": 1.0, "text": 'é"\\u0000', "__proto__": {"x": [-1]}}, 'id': {"n": 9007199254740993}}`,
  );
  t.equal(await wire.line(), `{"return": ${result}, "id": {"n": 9007199254740993}}`, 'the answer, and the own id');
  const [asked] = qemu.asked.slice(-1);
  t.same(
    [...asked!.args],
    [
      ['value', 18446744073709551615n],
      ['double', 1],
      ['text', 'é"\0'],
      ['__proto__', new Map([['x', [-1n]]])],
    ],
  );
  t.equal(typeof asked!.args.get('double'), 'number', 'a double stays one');
  wire.send('{"execute": "query-status"}');
  t.equal(await wire.line(), `{"return": ${result}}`, 'no id, none back');
  wire.close();
});

t.test('the greeting is that of QEMU, and so is what can be agreed on', async (t) => {
  const { qemu, path } = await setup(t);
  const wire = await Wire.connect(path);
  t.equal(await wire.line(), GREETING);
  t.match(errorText(await wire.execute('query-status')), /^Expecting capabilities negotiation/);
  t.same(await wire.execute('qmp_capabilities', { enable: ['oob'] }), { return: {} });
  t.match(errorText(await wire.execute('qmp_capabilities')), /already complete/);
  t.same(qemu.asked[0]!.args.get('enable'), ['oob'], 'QEMU was asked for it as well');
  wire.close();

  const old = GREETING.replace('["oob"]', '[]');
  const { qemu: oldQemu, path: oldPath } = await setup(t, undefined, old);
  const other = await Wire.connect(oldPath);
  t.equal(await other.line(), old);
  t.equal(errorText(await other.execute('qmp_capabilities', { enable: ['oob'] })), 'Capability oob not available');
  t.same(await other.execute('qmp_capabilities'), { return: {} });
  t.equal(oldQemu.asked[0]!.args.size, 0, 'QEMU was asked for nothing that it has not');
  other.close();
});

t.test("QEMU's refusals, with classes that only it has", async (t) => {
  const { path } = await setup(t, () => refusal("Device 'x' not found", 'DeviceNotFound'));
  const wire = await Wire.negotiated(path);
  wire.send('{"execute": "device_del", "arguments": {"id": "x"}, "id": 7}');
  t.equal(await wire.line(), `{"id": 7, "error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}}`);
  wire.close();
});

t.test('the schema says what can be asked for', async (t) => {
  const other = '{"name": "1", "meta-type": "enum", "values": ["none", "active"]}';
  const formats = (members: string, values: string) =>
    `{"name": "2", "meta-type": "enum", ${members}"values": [${values}]}`;
  const answers = [
    `[${other}, ${formats('', '"elf", "kdump-zlib"')}]`,
    `[${formats('"members": [{"name": "elf"}, {"name": "kdump-zlib"}], ', '"elf", "kdump-zlib"')}, ${other}]`,
    '{}',
  ];
  const { path } = await setup(t, () => answers.shift()!);
  const wire = await Wire.negotiated(path);
  const all = FORMATS.map((name) => `"${name}"`).join(', ');
  const members = FORMATS.map((name) => `{"name": "${name}"}`).join(', ');
  const expected = [
    `[${other}, ${formats('', all)}]`,
    `[${formats(`"members": [${members}], `, all)}, ${other}]`,
    '{}',
  ];
  for (const text of expected) {
    wire.send('{"execute": "query-qmp-schema"}');
    t.equal(await wire.line(), `{"return": ${text}}`);
  }
  wire.close();
});

t.test('commands go one after the other, and out of band past them', async (t) => {
  const waiting: (() => void)[] = [];
  const slow: Answer = ({ command }) =>
    command === 'slow' ? new Promise((resolve) => waiting.push(() => resolve('"slow"'))) : `"${command}"`;
  const { qemu, path } = await setup(t, slow);
  const plain = await Wire.negotiated(path);
  plain.send('{"execute": "slow", "id": 1}{"execute": "next", "id": 2}{"exec-oob": "quick", "id": 3}');
  t.ok(await eventually(() => waiting.length === 1));
  t.same(qemu.commands, ['slow'], 'the next one waits');
  waiting.pop()!();
  t.equal(await plain.line(), '{"return": "slow", "id": 1}');
  t.equal(await plain.line(), '{"return": "next", "id": 2}');
  t.match(await plain.line(), /"QMP input member 'exec-oob' is unexpected"/, 'it did not agree on it');
  plain.close();

  const wire = await Wire.connect(path);
  await wire.line();
  await wire.execute('qmp_capabilities', { enable: ['oob'] });
  wire.send('{"execute": "slow", "id": 1}{"execute": "next", "id": 2}');
  t.ok(await eventually(() => waiting.length === 1));
  wire.send('{"exec-oob": "quick", "id": 3}');
  t.equal(await wire.line(), '{"return": "quick", "id": 3}');
  t.ok(qemu.asked.at(-1)!.oob, 'out of band at QEMU, too');
  waiting.pop()!();
  t.equal(await wire.line(), '{"return": "slow", "id": 1}');
  t.equal(await wire.line(), '{"return": "next", "id": 2}');
  wire.close();
});

t.test('a client that floods and never reads waits for itself', async (t) => {
  const text = `"${'x'.repeat(1 << 18)}"`;
  const { qemu, path } = await setup(t, () => text);
  const wire = await Wire.connect(path);
  await wire.line();
  await wire.execute('qmp_capabilities', { enable: ['oob'] });
  wire.socket.pause();
  const count = 100;
  wire.send('{"exec-oob": "x"}'.repeat(count));
  const seen = async () => {
    const before = qemu.commands.length;
    await sleep(100);
    return qemu.commands.length === before;
  };
  t.ok(await eventually(async () => qemu.commands.length > 0 && seen()));
  t.ok(qemu.commands.length < count / 2, `${qemu.commands.length} of ${count} were carried out`);
  wire.socket.resume();
  const lines: unknown[] = [];
  while (lines.length < count) lines.push((await wire.line())?.length);
  t.ok(
    lines.every((length) => length === `{"return": ${text}}`.length),
    'every answer comes',
  );
  wire.close();
});

t.test('events pass as they are, to who has negotiated', async (t) => {
  const { qemu, connection, path } = await setup(t);
  const wire = await Wire.connect(path);
  await wire.line();
  const early = new Promise((heard) => connection.onEvent(heard));
  qemu.say('{"event": "EARLY", "timestamp": {"seconds": 1, "microseconds": 2}}');
  await early;
  await wire.execute('qmp_capabilities');
  const events = [
    '{"timestamp": {"seconds": 1795476175, "microseconds": 766176}, "event": "STOP"}',
    '{"timestamp": {"seconds": 3, "microseconds": 4}, "event": "X_NEW", "data": {"n": 18446744073709551615}}',
    // Somebody else's: we have asked for no dump.
    '{"timestamp": {"seconds": 5, "microseconds": 6}, "event": "DUMP_COMPLETED", "data": {"result": {}}}',
  ];
  for (const event of events) qemu.say(event);
  for (const event of events) t.equal(await wire.line(), event);
  wire.close();
});

t.test('a QEMU that spreads its messages over lines', async (t) => {
  const { qemu, path } = await setup(t, () => '{\r\n    "status": "running"\r\n}');
  const wire = await Wire.negotiated(path);
  wire.send('{"execute": "query-status"}');
  t.equal(await wire.line(), '{"return": {"status": "running"}}');
  qemu.say('{\r\n    "event": "STOP"\r\n}');
  t.equal(await wire.line(), '{"event": "STOP"}');
  wire.close();
});

t.test('clients come one after the other', async (t) => {
  const { qemu, path } = await setup(t);
  const [first, second] = [await Wire.negotiated(path), await Wire.connect(path)];
  qemu.say('{"event": "STOP"}');
  t.equal(await first.line(), '{"event": "STOP"}');
  await t.rejects(second.line(100), /no line/, 'no greeting before the first one has gone');
  first.close();
  t.equal(await second.line(), GREETING);
  t.match(errorText(await second.execute('query-status')), /^Expecting capabilities/, 'it negotiates by itself');
  second.close();
});

t.test('QEMU refuses the dump that ours needs', async (t) => {
  const busy = 'There is a dump in process, please wait.';
  const others = '{"event": "DUMP_COMPLETED", "data": {"result": {"status": "completed"}}}';
  let refused = busy;
  const { qemu, path } = await setup(t, ({ command }) => {
    if (command === 'query-status') return '{"running": false, "status": "paused"}';
    if (command !== 'dump-guest-memory') return '{}';
    if (refused === busy) qemu.say(others);
    return refusal(refused);
  });
  const wire = await Wire.negotiated(path);
  const dump = (format: string) =>
    wire.send(
      `{"execute": "dump-guest-memory", "arguments": {"paging": false, "protocol": "file:${qemu.folder}/out", "format": "${format}"}}`,
    );
  dump('kdump-lzo');
  t.equal(await wire.line(), others, "the end of another monitor's dump");
  t.same(await wire.message(), { error: { class: 'GenericError', desc: busy } });
  refused = 'Dump not allowed during incoming migration.';
  dump('kdump-zlib');
  t.same(await wire.message(), { error: { class: 'GenericError', desc: refused } });
  t.match(await wire.execute('query-dump'), { return: { status: 'failed', completed: 0 } });
  t.notOk(qemu.commands.includes('cont'), 'a paused guest stays paused');
  wire.close();
});

t.test('QEMU goes', async (t) => {
  const { qemu, proxy, path } = await setup(t, () => null);
  const wire = await Wire.negotiated(path);
  wire.send('{"execute": "x", "id": 1}');
  t.ok(await eventually(() => qemu.commands.length === 1));
  qemu.hangUp();
  t.match(await wire.message(), { id: 1, error: { desc: /is gone/ } });
  await t.rejects(proxy.finished, { code: 'READ', message: /is gone/ });
  await proxy.close();
  t.equal(await wire.line(), null);

  const { qemu: polite, proxy: second, path: secondPath } = await setup(t);
  const other = await Wire.negotiated(secondPath);
  polite.say('{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}');
  t.match(await other.message(), { event: 'SHUTDOWN' });
  polite.hangUp();
  await second.finished;
  await second.close();
  t.equal(await other.line(), null, 'the client is told as QEMU would');
});

t.test('what is no monitor', async (t) => {
  const { qemu, proxy, path } = await setup(t);
  const wire = await Wire.negotiated(path);
  qemu.say('220 mail.example.org ESMTP');
  await t.rejects(proxy.finished, { code: 'READ', message: /does not talk as QEMU's monitor/ });
  wire.close();
  const other = await FakeQemu.start(undefined, 'SSH-2.0-OpenSSH');
  t.teardown(() => other.close());
  await t.rejects(QmpProxy.connect(other.path), { code: 'READ', message: /does not talk as QEMU's monitor/ });
});

t.test('descriptors', { skip: noKoffi || needsTools('mkfifo') }, async (t) => {
  /** QEMU's, as it has them: named ones, and those of sets. */
  const named = new Map<string, number>();
  const sets = new Map<number, number>();
  const monitor: Answer = ({ command, args, takeDescriptors }) => {
    const name = String(args.get('fdname') ?? '');
    const fd = named.get(name);
    switch (command) {
      case 'getfd': {
        const [passed] = takeDescriptors();
        if (passed === undefined) return refusal('No file descriptor supplied via SCM_RIGHTS');
        if (fd !== undefined) closeSync(fd);
        named.set(name, passed);
        return '{}';
      }
      case 'closefd':
        if (fd === undefined) return refusal(`File descriptor named '${name}' not found`);
        closeSync(fd);
        named.delete(name);
        return '{}';
      case 'migrate': {
        const used = String(args.get('uri')).replace(/^fd:/, '');
        writeFileSync(named.get(used)!, 'the machine');
        closeSync(named.get(used)!);
        named.delete(used);
        return '{}';
      }
      case 'add-fd':
        sets.set(7, takeDescriptors()[0]!);
        return '{"fd": 99, "fdset-id": 7}';
      case 'remove-fd':
        closeSync(sets.get(7)!);
        return '{}';
      default:
        return '{}';
    }
  };
  const { qemu, proxy, path } = await setup(t, monitor);
  t.teardown(() => [...named.values()].forEach(closeSync));
  const wire = await Wire.negotiated(path);
  let fifos = 0;
  /** Passes the end of a pipe on; the other end is given. */
  const pass = async (command: string, args: Record<string, unknown>): Promise<number> => {
    const fifo = join(qemu.folder, `fifo-${fifos++}`);
    execFileSync('mkfifo', [fifo]);
    const reader = openSync(fifo, constants.O_RDONLY | constants.O_NONBLOCK);
    const writer = openSync(fifo, 'w');
    t.hasProp(await wire.execute(command, args, [writer]), 'return', command);
    closeSync(writer);
    return reader;
  };
  /** What has come through a pipe; null while somebody may still write. */
  const content = (reader: number): string | null => {
    const bytes = Buffer.alloc(64);
    try {
      return bytes.toString('latin1', 0, readSync(reader, bytes));
    } catch {
      return null;
    }
  };

  const used = await pass('getfd', { fdname: 'stream' });
  const kept = await pass('getfd', { fdname: 'str' });
  t.equal(fstatSync(named.get('stream')!).ino, fstatSync(used).ino, 'QEMU has it');
  t.same(await wire.execute('migrate', { uri: 'fd:stream' }), { return: {} });
  t.equal(content(used), 'the machine', 'QEMU used it');
  t.ok(await eventually(() => content(used) === ''), 'and nobody else holds it');
  t.ok(named.has('str'), 'QEMU still has what it did not use');
  t.equal(fstatSync(named.get('str')!).ino, fstatSync(kept).ino);
  t.equal(content(kept), null, 'and nobody gave it up');
  t.same(await wire.execute('closefd', { fdname: 'str' }), { return: {} });
  t.ok(await eventually(() => content(kept) === ''), 'closefd closes both');
  t.equal(errorText(await wire.execute('closefd', { fdname: 'str' })), "File descriptor named 'str' not found");

  const replaced = await pass('getfd', { fdname: 'twice' });
  const replacement = await pass('getfd', { fdname: 'twice' });
  t.ok(await eventually(() => content(replaced) === ''), 'a name that is taken is given to the new one');
  t.equal(errorText(await wire.execute('getfd', { fdname: 'x' })), 'No file descriptor supplied via SCM_RIGHTS');

  const fifo = join(qemu.folder, 'own');
  execFileSync('mkfifo', [fifo]);
  const own = openSync(fifo, constants.O_RDONLY | constants.O_NONBLOCK);
  proxy.addDescriptor('own', openSync(fifo, 'w'));
  t.same(await wire.execute('human-monitor-command', { 'command-line': 'info own' }), { return: {} });
  t.equal(content(own), null, 'what QEMU never had is not taken for used up');
  t.same(await wire.execute('closefd', { fdname: 'own' }), { return: {} });
  t.ok(await eventually(() => content(own) === ''), 'and can be closed');

  const member = await pass('add-fd', {});
  t.equal(content(member), null);
  t.same(await wire.execute('remove-fd', { 'fdset-id': 7, fd: 99 }), { return: {} });
  t.ok(await eventually(() => content(member) === ''), 'remove-fd closes both');
  for (const fd of [used, kept, replaced, replacement, own, member]) closeSync(fd);
  wire.close();
});
