/**
 * What QEMU 10 answered, case by case, against what we answer; and the same script against a live QEMU of the machine.
 * Every difference has to be in a list with its reason, and every reason has to have a difference.
 */

import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { demoGuest } from '../../lib/index.js';
import { parseSize } from '../../lib/model/sizes.js';
import { Qemu } from '../guests/qemu.js';
import { makeShortFolder } from '../short-folder.js';
import { needsTools } from '../tools.js';
import { noKoffi, TestServer } from './qmp-fixture.js';
import {
  cases,
  checkTable,
  comparable,
  type Played,
  play,
  RECORDED,
  type Sizes,
  sizesOf,
  unique,
} from './transcript.js';

/** Large enough that a dump of it is still going on when the next command comes. */
const SOURCE = '2G';
const MIB = 1 << 20;

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
  const folder = makeShortFolder();
  const path = join(folder, 'second');
  const qemu = await Qemu.launch({
    machine: 'pc',
    memory: 512 * MIB,
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
