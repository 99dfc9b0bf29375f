/** All eight formats, asked for over QMP and written to a passed path, in the hands of those who read them. */

import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { inspect, QmpServer } from '../../lib/index.js';
import { missingTools, oracleGuest } from '../guests/oracle.js';
import { needsPython, needsTools, PYTHON, skipUnless } from '../tools.js';
import { windowsGuestFixture } from '../windows-fixture.js';
import { TestServer, Wire } from './qmp-fixture.js';

/** What drgn makes of a vmcore without symbols. */
const DRGN = `
import drgn, sys
prog = drgn.Program()
prog.set_core_dump(sys.argv[1])
print(prog.platform.arch.name, bool(prog.flags & drgn.ProgramFlags.IS_LINUX_KERNEL))
`;

const LINUX_FORMATS = [
  'elf',
  'kdump-zlib',
  'kdump-lzo',
  'kdump-snappy',
  'kdump-raw-zlib',
  'kdump-raw-lzo',
  'kdump-raw-snappy',
];

const skip = skipUnless(missingTools('linux-1cpu')) || needsPython('drgn') || needsTools('makedumpfile');

t.test('a Linux guest: drgn and makedumpfile', { skip }, async (t) => {
  const oracle = await oracleGuest('linux-1cpu');
  const server = await TestServer.start({ source: oracle.path('guest.json') });
  t.teardown(() => server.stop());
  const wire = await server.connect();
  for (const format of LINUX_FORMATS) {
    const file = join(server.folder, format);
    t.same(await wire.execute('dump-guest-memory', { paging: false, protocol: `file:${file}`, format }), {
      return: {},
    });
    const isFlattened = /^kdump-(?!raw)/.test(format);
    const input = isFlattened ? `${file}.whole` : file;
    if (isFlattened)
      t.equal(spawnSync('sh', ['-c', `makedumpfile -R ${input} < ${file}`]).status, 0, 'makedumpfile -R');
    const { stdout, stderr } = spawnSync(PYTHON, ['-c', DRGN, input], { encoding: 'utf8' });
    t.equal(stdout, 'X86_64 True\n', `${format}: drgn ${stderr}`);
  }
  wire.close();
});

t.test('a Windows guest', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'vmcore-qmp-'));
  const path = join(folder, 'qmp');
  const { guest } = windowsGuestFixture();
  const server = new QmpServer(guest);
  await server.listen(`unix:${path}`);
  t.teardown(async () => {
    await server.close();
    rmSync(folder, { recursive: true, force: true });
  });
  const wire = await Wire.negotiated(path);
  const file = join(folder, 'windows.dmp');
  t.same(await wire.execute('dump-guest-memory', { paging: false, protocol: `file:${file}`, format: 'win-dmp' }), {
    return: {},
  });
  t.match(await inspect(file), { format: /win|dmp|dump/i }, 'it is a crash dump of Windows');
  wire.close();
});
