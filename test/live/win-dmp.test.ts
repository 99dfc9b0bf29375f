/** Windows crash dumps of live guests, in each way of reading: QEMU's own of the same pause, byte for byte. */

import { spawnSync } from 'node:child_process';
import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { OpenGuestOptions } from '../../lib/open-guest.js';
import { readCrashDump } from '../crash-dump-reader.js';
import type { WindowsGuestName } from '../guests/windows.js';
import { needsTools } from '../tools.js';
import { bootLiveWindows, dumpLive, liveQemus } from './live-qemu.js';

const skip = needsTools('as', 'ld', 'cmp');

/** Of a second CPU, QEMU knows debug registers that no vmcore tells (test/oracle/win-dmp.test.ts). */
const GUESTS = ['win-64', 'win-32-pae'] as const satisfies WindowsGuestName[];

/** The format wants random access, which a stream has not before it is copied. */
const WAYS: Readonly<Record<string, OpenGuestOptions>> = {
  file: { memoryPath: 'file' },
  proc: { memoryPath: 'proc' },
  'stream, copied': { memoryPath: 'stream', pauseOnlyForCopy: true },
};

for (const qemu of await liveQemus())
  for (const name of GUESTS)
    t.test(`${name}, ${qemu.name}`, { skip: qemu.skip || skip }, async (t) => {
      const live = await bootLiveWindows(t, qemu, name);
      await live.qemu.stop();
      const [ours, qemus] = [join(live.folder, 'ours'), join(live.folder, 'qemus')];
      await live.qemu.execute('dump-guest-memory', { paging: false, protocol: `file:${qemus}`, format: 'win-dmp' });
      for (const [way, options] of Object.entries(WAYS)) {
        const { memoryPath } = await dumpLive(live, options, { format: 'win-dmp' }, ours);
        t.equal(memoryPath, options.memoryPath);
        const { status, stdout, stderr } = spawnSync('cmp', [ours, qemus], { encoding: 'utf8' });
        t.equal(status, 0, `${way}: every byte is QEMU's ${stdout}${stderr}`);
        t.match(readCrashDump(ours), { hasKdbg: true, trailing: 0 }, 'and a reader of others finds it whole');
        rmSync(ours);
      }
      await live.qemu.cont();
      const refused = dumpLive(live, { memoryPath: 'stream' }, { format: 'win-dmp' }, ours);
      await t.rejects(refused, { code: 'UNSUPPORTED' }, 'a stream is refused');
      t.notOk(existsSync(ours));
      t.equal(await live.status(), 'running', 'and the guest runs again');
    });
