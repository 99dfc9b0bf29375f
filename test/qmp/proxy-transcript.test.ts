/**
 * The script of QEMU 10's transcript, played to a proxy before the machine's QEMU. The machine of the record stood
 * still, and so does this one. Its memory is read through QEMU's own dump, which takes long enough that a dump is still
 * going on when the next command comes.
 */

import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { Qemu } from '../guests/qemu.js';
import { needsTrixie, trixie } from '../guests/trixie.js';
import { makeShortFolder } from '../short-folder.js';
import { needsTools } from '../tools.js';
import { noKoffi, TestServer } from './qmp-fixture.js';
import { cases, checkTable, comparable, type Played, play, RECORDED, unique } from './transcript.js';

const MIB = 1 << 20;

const OTHER_VERSION = 'the version is that of the QEMU behind';
const NO_DUMP_YET = 'the recorded QEMU had dumped before; here no dump has been asked for yet';
const NEGATIVE = 'QEMU takes negative numbers by mistake; we refuse them';

/** Cases in which a proxy before any QEMU does not say what QEMU 10 said. */
const DIFFERENCES: Readonly<Record<string, string>> = {
  'id is echoed': 'a guest that never ran is `prelaunch`, and query-status of older QEMU has `singlestep`',
  'id of any JSON type': NO_DUMP_YET,
  'command split over two writes, part 2': NO_DUMP_YET,
  'after a syntax error the stream goes on': NO_DUMP_YET,
  capability: 'the recorded QEMU was built without LZO and Snappy; the proxy makes all formats before any QEMU',
  'begin negative': NEGATIVE,
  'length negative': NEGATIVE,
};

/** Before another QEMU than that of the record. */
const OTHER_DIFFERENCES = { ...DIFFERENCES, greeting: OTHER_VERSION, 'query-version': OTHER_VERSION };

async function playProxy(binary?: string): Promise<Played[]> {
  const folder = makeShortFolder();
  const monitor = join(folder, 'monitor');
  const args = ['-S', '-qmp', `unix:${monitor},server=on,wait=off`];
  const qemu = await Qemu.launch({
    machine: 'pc',
    memory: 512 * MIB,
    args,
    ...(binary === undefined ? {} : { binary }),
  });
  try {
    const server = await TestServer.start({ source: `qmp:${monitor}`, args: ['--memory-path', 'stream'] });
    try {
      const targets = join(server.folder, 'targets');
      mkdirSync(targets);
      return await play(cases, server.path, targets);
    } finally {
      await server.stop();
    }
  } finally {
    await qemu.quit();
    rmSync(folder, { recursive: true, force: true });
  }
}

const noQemu = needsTools('qemu-system-x86_64', 'mkfifo');

/** Compares what was played with the record. */
function checkPlayed(t: Test, played: readonly Played[], differences: Readonly<Record<string, string>>): void {
  const totalOf = (name: string) => {
    const line = played.find((one) => one.case === name)!.got[0]!;
    return Number(/"total": (\d+)/.exec(line)?.[1]);
  };
  const sizes = { total: totalOf('query after detach'), low: totalOf('elf to a pipe') };
  t.ok(sizes.total > 512 * MIB && sizes.low <= MIB, 'the sizes are those of the guest');
  const names = unique(cases);
  const rows = played.map(({ case: name, receive, got }, i) => ({
    name: names[i]!,
    theirs: comparable(name, receive, RECORDED),
    ours: comparable(name, got, sizes),
  }));
  t.equal(rows.length, cases.length, 'every case was played');
  checkTable(t, rows, differences);
  const answer = (name: string) => played.find((one) => one.case === name)!.got.join('\n');
  t.match(answer('begin negative'), /"desc": "Parameter 'begin' expects a non-negative value"/);
  t.match(answer('length negative'), /"desc": "Parameter 'length' expects a non-negative value"/);
  t.match(
    answer('capability'),
    /\["elf", "kdump-zlib", "kdump-raw-zlib", "kdump-lzo", "kdump-raw-lzo", "kdump-snappy", "kdump-raw-snappy", "win-dmp"\]/,
  );
}

t.test("QEMU 10's transcript through the proxy", { skip: noKoffi || noQemu }, async (t) => {
  checkPlayed(t, await playProxy(), OTHER_DIFFERENCES);
});

const noTrixie = await needsTrixie();

t.test("QEMU 10's transcript through the proxy before QEMU 10", { skip: noKoffi || noTrixie }, async (t) => {
  const played = await playProxy((await trixie()).qemu);
  const { got, receive } = played[0]!;
  checkPlayed(t, played, got[0] === receive[0] ? DIFFERENCES : OTHER_DIFFERENCES);
});
