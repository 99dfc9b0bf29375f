/** Which process and which block is meant: behind a relay, and where the memory is in several places. */

import { join } from 'node:path';
import t from 'tap';
import type { OpenQemuOptions } from '../../lib/live/qemu/options.js';
import { checkFailure, runCli, until } from '../cli/run-cli.js';
import { dumpLive, launchLive, type LiveGuest, liveQemus } from './live-qemu.js';
import { Relay } from './relay.js';

const [qemu] = await liveQemus();
const { skip } = qemu!;

const IN_NO_FILE = {
  machineOptions: ['memory-backend=other'],
  args: ['-object', 'memory-backend-ram,id=other,size=256M'],
};

/** A DIMM that is in no file, beside RAM that is in one; and a graphics card, whose memory is in none, ever. */
const IN_TWO_PLACES = {
  machine: 'q35',
  args: [
    ...['-device', 'VGA', '-m', 'slots=2,maxmem=1G'],
    ...['-object', 'memory-backend-ram,id=dimm,size=272M', '-device', 'pc-dimm,memdev=dimm'],
  ],
} as const;

t.test('behind a relay', { skip }, async (t) => {
  const dump = async (live: LiveGuest, options: OpenQemuOptions, name: string) => {
    const relay = await Relay.start(join(live.folder, `${name}.relay`), live.socket);
    try {
      return await dumpLive({ ...live, source: relay.source }, options, {}, join(live.folder, name));
    } finally {
      relay.close();
    }
  };
  const inFile = await launchLive(t, qemu!);
  t.match(await dump(inFile, {}, 'file'), { memoryPath: 'file', warnings: [] }, 'a file needs no process');

  const inNone = await launchLive(t, qemu!, IN_NO_FILE);
  const { memoryPath, warnings } = await dump(inNone, {}, 'stream');
  t.equal(memoryPath, 'stream');
  t.equal(warnings.length, 1);
  const blamed =
    /: it is in no shared file; process [0-9]+ \(.+\) at the other end of the socket does not have the guest's memory; say --pid$/;
  t.match(warnings[0], blamed, 'what passes it on is not taken for QEMU, and what to do is said');
  const { pid } = inNone.qemu;
  t.match(await dump(inNone, { pid }, 'proc'), { memoryPath: 'proc', warnings: [] }, 'it is found where it is named');
});

t.test('memory in two places', { skip }, async (t) => {
  const live = await launchLive(t, qemu!, IN_TWO_PLACES);
  // The firmware places the card's memory.
  await until(async () => /vga\.vram/.test(await live.qemu.hmp('info mtree -f')));
  const output = join(live.folder, 'vmcore');
  const file = await runCli(['dump', live.source, '--memory-path', 'file', '-o', output]);
  checkFailure(t, file, 1, /cannot be had: 272 MiB at 0x\w+: it is in no shared file$/m, 'the block that counts');
  const { code, stdout, stderr } = await runCli(['dump', live.source, '-o', output]);
  t.match({ code, stderr }, { code: 0, stderr: '' });
  const [, file272 = '', proc = ''] =
    /^memory read from QEMU's process \(.*\), (.*) of it from the file behind it \(.*\), (.*) of it through QEMU's own dump$/m.exec(
      stdout.toString(),
    ) ?? [];
  t.match({ file272, proc }, { file272: /^25[56][.\d]* MiB$/, proc: /KiB$/ }, stdout.toString());
});
