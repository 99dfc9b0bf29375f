/** The JSON dialect: texts that QEMU gave, any split of the input, bounds; and nonsense against a live QEMU. */

import { rmSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { type Json, JsonStream } from '../../lib/qmp/protocol/json-parser.js';
import { jsonText } from '../../lib/qmp/protocol/json-text.js';
import { QmpError } from '../../lib/qmp/protocol/qmp-error.js';
import { Qemu } from '../guests/qemu.js';
import { makeShortFolder } from '../short-folder.js';
import { needsTools } from '../tools.js';
import { TestServer, Wire } from './qmp-fixture.js';

/** What becomes of bytes: the text of each value, or of each error. */
function parse(pieces: Iterable<string | Uint8Array>): string[] {
  const found: string[] = [];
  const stream = new JsonStream((message: Json | QmpError) => {
    found.push(message instanceof QmpError ? `! ${message.desc.replace('JSON parse error, ', '')}` : jsonText(message));
  });
  for (const piece of pieces) stream.feed(typeof piece === 'string' ? Buffer.from(piece) : piece);
  return found;
}

/** Inputs and what QEMU 7.2 makes of them; integers, objects and so on are what it echoes as an id. */
const TABLE: readonly (readonly [string | Uint8Array, ...string[]])[] = [
  ["{'a': 'it\\'s \"q\"'}", '{"a": "it\'s \\"q\\""}'],
  ['[1.5, 1e3, -0, -5, 1.0, 0.1]', '[1.5, 1000, 0, -5, 1, 0.10000000000000001]'],
  [
    '[18446744073709551615, 18446744073709551616, 123456789012345678901234567890]',
    '[18446744073709551615, 1.8446744073709552e+19, 1.2345678901234568e+29]',
  ],
  ['"\\u00e9 é \\u0001 \\ud83d\\ude00 \\u007f" ', '"\\u00E9 \\u00E9 \\u0001 \\uD83D\\uDE00 \\u007F"'],
  ['"\\/\\b\\f\\n\\r\\t\\u0000"', '"/\\b\\f\\n\\r\\t\\u0000"'],
  [Buffer.from([0x22, 0xc0, 0x80, 0x22]), '"\\u0000"'],
  ['1 2 null true', '1', '2', 'null'],
  ['hello world ', "! invalid keyword 'hello'", "! invalid keyword 'world'"],
  ['Hello world\n', "! stray 'H'"],
  ['{"__proto__": 1}', '{"__proto__": 1}'],
  ['{"a":1,"a":2}', '! duplicate key'],
  ['{"a" 1}', '! missing : in object pair'],
  ['{"a":}', '! expecting value'],
  ['{1:2}', '! key is not a string in object'],
  ['{"a":1 "b":2}', '! expected separator in dict'],
  ['[1 2]', '! expected separator in list'],
  ['[1}', '! expected separator in list'],
  ['[{]}', '! expecting value'],
  [']', '! expecting value'],
  ['01 ', "! stray '01'"],
  ['1.\n', "! stray '1.\n'"],
  ['0e1 ', '0', "! invalid keyword 'e'", '1'],
  ['"a\\x"', '! invalid escape sequence in string'],
  ['"\\u12"', '! \\u12" is not a valid Unicode character'],
  ['"\\ud83d\\u0041"', '! \\ud83d is not a valid Unicode character'],
  ['"\\uffff"', '! \\uffff is not a valid Unicode character'],
  [Buffer.from([0x22, 0xc3, 0x28, 0x22]), '! invalid UTF-8 sequence in string'],
  [Buffer.from([0x22, 0xed, 0xa0, 0x80, 0x22]), '! invalid UTF-8 sequence in string'],
  ['"\uffff"', '! invalid UTF-8 sequence in string'],
  ['%d 5\n6 ', "! stray '%'", '6'],
  [
    '{"a": ?, "b": 1} 7 ',
    "! stray '?'",
    '! expecting value',
    '"b"',
    '! expecting value',
    '1',
    '! expecting value',
    '7',
  ],
  [Buffer.from('{"a": [\xff{"b": 1}', 'latin1'), "! stray '\ufffd'", '{"b": 1}'],
  ['5\x006 [7]', '5', "! stray ''", '[7]'],
];

t.test('texts of QEMU', async (t) => {
  for (const [input, ...expected] of TABLE) t.same(parse([input]), expected, JSON.stringify(String(input)));
});

t.test('input in any pieces gives the same', async (t) => {
  const all = Buffer.concat(
    TABLE.map(([input]) => Buffer.concat([Buffer.from(input), Buffer.from('\xff\n', 'latin1')])),
  );
  const whole = parse([all]);
  t.same(parse([...all].map((byte) => Uint8Array.of(byte))), whole, 'byte by byte');
  fc.assert(
    fc.property(fc.array(fc.nat(all.length), { maxLength: 20 }), (cuts) => {
      const ends = [...cuts, all.length].sort((a, b) => a - b);
      const pieces = ends.map((end, i) => all.subarray(i === 0 ? 0 : ends[i - 1], end));
      t.same(parse(pieces), whole);
    }),
    { numRuns: 50 },
  );
});

t.test('every value comes back as it was', async (t) => {
  fc.assert(
    fc.property(fc.jsonValue({ maxDepth: 5 }), (value) => {
      const [text] = parse([`${JSON.stringify(value)} `]);
      // JSON has no -0 in QEMU.
      t.same(JSON.parse(text!), JSON.parse(JSON.stringify(value)));
    }),
    { numRuns: 300 },
  );
});

t.test('bounds', async (t) => {
  const nested = (depth: number) => '['.repeat(depth) + ']'.repeat(depth);
  t.match(parse([nested(1024)])[0], /^\[\[/, 'nesting of 1024');
  t.same(parse(['['.repeat(1025)]), ['! JSON nesting depth limit exceeded'], 'nesting of 1025');
  const long = `"${'a'.repeat((64 << 20) - 2)}"`;
  t.equal(parse([long])[0]?.length, 64 << 20, 'a string of 64 MiB');
  t.same(parse([`"${'a'.repeat(64 << 20)}`])[0], '! JSON token size limit exceeded', 'a longer one');
  t.same(parse([`[${'1,'.repeat(1 << 20)}`])[0], '! JSON token count limit exceeded', 'two million tokens');
});

/** Pieces that nonsense is made of. */
const PIECES = [
  ...['{', '}', '[', ']', ':', ',', '"', "'", '\\', ' ', '\n', '0', '1', '-', '.', 'e', '+', 'a', 'true', 'null', 'E5'],
  ...[
    '"a"',
    '"execute"',
    '{"a":1}',
    '[1,2]',
    '"\\u00e9"',
    '\\u',
    '\\ud83d',
    '\\n',
    '%d',
    '?',
    '\x01',
    '\x7f',
    '\xc3\xa9',
  ],
  ...['\xff', '\xfe', '\xc0\x80', '\xed\xa0\x80', "'b'", '12', '1.5', 'false,'],
];

/** Sends each input, then something that brings any stream back to a known state; gives all that came in between. */
async function answers(path: string, inputs: readonly string[]): Promise<string[]> {
  const wire = await Wire.negotiated(path);
  const found: string[] = [];
  for (const [i, input] of inputs.entries()) {
    const end = `"end-${i}"`;
    wire.send(Buffer.from(`${input}\xff{"execute":"no-such","id":${end}}\n`, 'latin1'));
    const lines: string[] = [];
    for (let line = await wire.line(); line !== null && !line.includes(end); line = await wire.line()) lines.push(line);
    found.push(lines.join('\n'));
  }
  wire.close();
  return found;
}

t.test('nonsense is answered as QEMU answers it', { skip: needsTools('qemu-system-x86_64') }, async (t) => {
  const folder = makeShortFolder();
  const path = join(folder, 'second');
  const qemu = await Qemu.launch({
    machine: 'pc',
    memory: 16 << 20,
    args: ['-S', '-qmp', `unix:${path},server=on,wait=off`],
  });
  const server = await TestServer.start();
  t.teardown(async () => {
    await qemu.quit();
    await server.stop();
    rmSync(folder, { recursive: true, force: true });
  });
  const inputs = fc.sample(
    fc.array(fc.constantFrom(...PIECES), { minLength: 1, maxLength: 12 }).map((pieces) => pieces.join('')),
    { numRuns: 500, seed: 7 },
  );
  const [theirs, ours] = [await answers(path, inputs), await answers(server.path, inputs)];
  const different = inputs.filter((_, i) => ours[i] !== theirs[i]);
  for (const input of different.slice(0, 10)) {
    const i = inputs.indexOf(input);
    t.equal(ours[i], theirs[i], JSON.stringify(input));
  }
  t.equal(different.length, 0, `${inputs.length} inputs`);
});
