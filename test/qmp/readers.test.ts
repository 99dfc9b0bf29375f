/** All eight formats, asked for over QMP and written to a passed path, in the hands of those who read them. */

import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import t from 'tap';
import { readCrashDump } from '../crash-dump-reader.js';
import { missingTools, oracleGuest } from '../guests/oracle.js';
import { windowsGuest } from '../guests/windows.js';
import { needsPython, needsTools, PYTHON, skipUnless } from '../tools.js';
import { TestServer } from './qmp-fixture.js';

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

const noWindowsGuests = needsTools('qemu-system-x86_64', 'as', 'ld');

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

for (const name of ['win-64', 'win-32'] as const)
  t.test(`${name}: QEMU's bytes, and a reader of crash dumps`, { skip: noWindowsGuests }, async (t) => {
    const guest = await windowsGuest(name);
    const server = await TestServer.start({ source: guest.path('guest.json') });
    t.teardown(() => server.stop());
    const wire = await server.connect();
    const file = join(server.folder, 'windows.dmp');
    t.same(await wire.execute('dump-guest-memory', { paging: false, protocol: `file:${file}`, format: 'win-dmp' }), {
      return: {},
    });
    t.equal(spawnSync('cmp', [file, guest.path('qemu.win-dmp')]).status, 0, "QEMU's dump of the same pause");
    const { bits, hasKdbg, contexts, trailing } = readCrashDump(file);
    t.match({ bits, hasKdbg, trailing }, { bits: guest.manifest.bits, hasKdbg: true, trailing: 0 });
    t.ok(contexts.length > 0);
    wire.close();
  });
