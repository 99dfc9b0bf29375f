/**
 * What QEMU 10 answered, case by case, against what we answer; and the same script against a live QEMU of the machine.
 * Every difference has to be in a list with its reason, and every reason has to have a difference.
 */

import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { demoGuest } from '../../lib/index.js';
import { parseSize } from '../../lib/sizes.js';
import { REPOSITORY } from '../guests/places.js';
import { Qemu } from '../guests/qemu.js';
import { needsTools } from '../tools.js';
import { type Message, noKoffi, TestServer } from './qmp-fixture.js';
import { type Case, type Played, play } from './transcript.js';

const { cases } = JSON.parse(readFileSync(join(REPOSITORY, 'test', 'qmp', 'qemu-10-transcript.json'), 'utf8')) as {
  cases: Case[];
};

/** Large enough that a dump of it is still going on when the next command comes. */
const SOURCE = '2G';
const MIB = 1 << 20;

/** The recorded guest's memory, in all and below 1 MiB. */
const RECORDED = { total: 2164391936, low: 917504 };

/** Memory of the guests, so that sizes can be told apart from other numbers. */
interface Sizes {
  readonly total: number;
  readonly low: number;
}

function sizesOf(blocks: readonly { base: number; length: number }[]): Sizes {
  const below = (limit: number) =>
    blocks.reduce((sum, { base, length }) => sum + Math.max(0, Math.min(base + length, limit) - base), 0);
  return { total: below(2 ** 52), low: below(MIB) };
}

/** A message without what differs from run to run: when, and how much memory the guest has. */
function normal(line: string, { total, low }: Sizes): Message {
  return JSON.parse(line, (key, value) => {
    if (key === 'timestamp') return undefined;
    if (value === total) return 'TOTAL';
    return value === low ? 'LOW' : value;
  }) as Message;
}

/** The answers of a case in a form that can be compared; the end of a detached dump may come before its answer. */
function comparable(name: string, lines: readonly string[], sizes: Sizes): string {
  const messages = lines.map((line) => JSON.stringify(sorted(normal(line, sizes))));
  if (name === 'detached dump to a full device') messages.sort();
  const text = messages.join('\n');
  // How far it is when it is asked is the machine's affair.
  return name === 'query while active' ? text.replace(/"completed":(\d+|"\w+")/, '"completed":0') : text;
}

/** Members in the order of their names: QEMU's order is that of a hash table. */
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, member]) => [key, sorted(member)]),
  );
}

const OWN_VERSION = 'the version is our own';
const NO_DUMP_YET = 'the recorded QEMU had dumped before; here no dump has been asked for yet';
const NEGATIVE = 'QEMU takes negative numbers by mistake; we refuse them';

/** Cases in which we do not say what QEMU 10 said. */
const DIFFERENCES: Readonly<Record<string, string>> = {
  greeting: OWN_VERSION,
  'query-version': OWN_VERSION,
  'id of any JSON type': NO_DUMP_YET,
  'command split over two writes, part 2': NO_DUMP_YET,
  'after a syntax error the stream goes on': NO_DUMP_YET,
  capability: 'that QEMU was built without LZO and Snappy',
  'begin negative': NEGATIVE,
  'length negative': NEGATIVE,
};

/** Prints the table; checks that what differs is explained, and that what is explained differs. */
function checkTable(
  t: Test,
  rows: readonly { name: string; theirs: string; ours: string }[],
  reasons: Readonly<Record<string, string>>,
): void {
  for (const { name, theirs, ours } of rows) {
    const same = theirs === ours;
    const reason = reasons[name];
    t.comment(`${same ? 'same     ' : 'different'} ${name}${same ? '' : `: ${reason ?? 'UNEXPLAINED'}`}`);
    if (!same) t.comment(`    QEMU: ${theirs.replaceAll('\n', ' | ')}`);
    if (!same) t.comment(`    ours: ${ours.replaceAll('\n', ' | ')}`);
    if (reason === undefined) t.equal(ours, theirs, name);
    else t.not(ours, theirs, `${name}: ${reason}`);
  }
  const names = rows.map(({ name }) => name);
  t.same(
    Object.keys(reasons).filter((name) => !names.includes(name)),
    [],
    'every reason belongs to a case',
  );
}

/** Two cases have one name each twice; the number tells them apart. */
function unique(played: readonly Case[]): string[] {
  return played.map(({ case: name }, i) => {
    const before = played.slice(0, i).filter((other) => other.case === name).length;
    return before === 0 ? name : `${name} (${before + 1})`;
  });
}

const ourSizes = sizesOf(demoGuest({ memory: parseSize(SOURCE, 'SOURCE') }).blocks);

async function playOurs(): Promise<Played[]> {
  const server = await TestServer.start({ source: `demo:${SOURCE}` });
  const folder = join(server.folder, 'targets');
  mkdirSync(folder);
  try {
    return await play(cases, server.path, folder);
  } finally {
    await server.stop();
  }
}

t.test("every case of QEMU 10's transcript", { skip: noKoffi }, async (t) => {
  const played = await playOurs();
  const names = unique(cases);
  const rows = played.map(({ case: name, receive, got }, i) => ({
    name: names[i]!,
    theirs: comparable(name, receive, RECORDED),
    ours: comparable(name, got, ourSizes),
  }));
  t.equal(rows.length, cases.length, 'every case was played');
  checkTable(t, rows, DIFFERENCES);
  const answer = (name: string) => played.find((one) => one.case === name)!.got.join('\n');
  t.match(answer('begin negative'), /"desc": "Parameter 'begin' expects a non-negative value"/);
  t.match(answer('length negative'), /"desc": "Parameter 'length' expects a non-negative value"/);
  t.match(
    answer('capability'),
    /\["elf", "kdump-zlib", "kdump-raw-zlib", "kdump-lzo", "kdump-raw-lzo", "kdump-snappy", "kdump-raw-snappy", "win-dmp"\]/,
  );
  t.match(answer('greeting'), /"package": "vmcore \d+\.\d+\.\d+/);
});

const OLD_TEXT = 'QEMU 7.2 said it in other words; ours are those of QEMU 10';
const STATUS_OF_OLD = 'query-status of QEMU 7.2 has `singlestep`, and a guest that never ran is `prelaunch`';
const NO_RAW = 'QEMU 7.2 has no kdump-raw formats, so nothing was dumped, and its refusal is another one';

/** Cases in which a live QEMU 7.2 and we differ. */
const LIVE_DIFFERENCES: Readonly<Record<string, string>> = {
  greeting: OWN_VERSION,
  'query-version': OWN_VERSION,
  'id is echoed': STATUS_OF_OLD,
  capability: 'QEMU 7.2 has no kdump-raw formats, and the machine’s was built without LZO and Snappy',
  'begin negative': NEGATIVE,
  'length negative': NEGATIVE,
  'zero length': OLD_TEXT,
  'protocol without prefix': OLD_TEXT,
  'protocol empty': OLD_TEXT,
  'file: with empty path': OLD_TEXT,
  'file in a missing folder': OLD_TEXT,
  'file is a folder': OLD_TEXT,
  'kdump-raw with paging': NO_RAW,
  'kdump-raw to a pipe': NO_RAW,
};

async function playQemu(): Promise<{ played: Played[]; sizes: Sizes }> {
  const folder = mkdtempSync(join(tmpdir(), 'vmcore-qmp-'));
  const path = join(folder, 'second');
  const qemu = await Qemu.launch({
    machine: 'pc',
    memory: 256 * MIB,
    args: ['-S', '-qmp', `unix:${path},server=on,wait=off`],
  });
  const targets = join(folder, 'targets');
  mkdirSync(targets);
  try {
    const played = await play(cases, path, targets);
    // What QEMU says its sizes are: the last full dump, and the one of the first MiB.
    const totalOf = (name: string) => {
      const line = played.find((one) => one.case === name)!.got[0]!;
      return Number(/"total": (\d+)/.exec(line)?.[1]);
    };
    return { played, sizes: { total: totalOf('query after detach'), low: totalOf('elf to a pipe') } };
  } finally {
    await qemu.quit();
    rmSync(folder, { recursive: true, force: true });
  }
}

const noQemu = needsTools('qemu-system-x86_64', 'mkfifo');

t.test('the same script against a live QEMU and against us', { skip: noKoffi || noQemu }, async (t) => {
  const [ours, qemu] = [await playOurs(), await playQemu()];
  const names = unique(cases);
  const rows = cases.map(({ case: name }, i) => ({
    name: names[i]!,
    theirs: comparable(name, qemu.played[i]!.got, qemu.sizes),
    ours: comparable(name, ours[i]!.got, ourSizes),
  }));
  checkTable(t, rows, LIVE_DIFFERENCES);
});
