/** QEMU dumps into a FIFO, and we read what comes out of it: the same vmcore as from QEMU's file. */

import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { GUEST_NAMES, missingTools, ORACLE_GUESTS, oracleGuest } from '../guests/oracle.js';
import { Qemu } from '../guests/qemu.js';
import { CLI, needsTools, skipUnless } from '../tools.js';

function sameBytes(a: string, b: string): boolean {
  execFileSync('cmp', [a, b]);
  return true;
}

t.test('a live QEMU, through a FIFO', { skip: needsTools('qemu-system-x86_64', 'mkfifo') }, async (t) => {
  const folder = t.testdir({});
  const [fifo, file, fromFifo, fromFile] = ['fifo', 'qemu.elf', 'a', 'b'].map((name) => join(folder, name));
  execFileSync('mkfifo', [fifo!]);
  const qemu = await Qemu.launch({ machine: 'q35', memory: 64 << 20, args: ['-S'] });
  try {
    const ram = openSync(qemu.ramFile, 'r+');
    writeSync(ram, Buffer.alloc(1 << 20, 'not only zeros '), 0, 1 << 20, 8 << 20);
    await qemu.dump({ paging: false, file: file! });
    const child = spawn('sh', ['-c', `exec "$0" "$1" dump - -o "$2" < "$3"`, process.execPath, CLI, fromFifo!, fifo!], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    const exited = once(child, 'exit');
    await qemu.dump({ paging: false, file: fifo! });
    t.same(await exited, [0, null]);
  } finally {
    await qemu.quit();
  }
  execFileSync(process.execPath, [CLI, 'dump', file!, '-o', fromFile!]);
  t.ok(sameBytes(fromFifo!, fromFile!));
});

for (const name of GUEST_NAMES) {
  // 5 GiB through a pipe say nothing that the smaller guests do not.
  if (ORACLE_GUESTS[name].hostile || name === 'linux-5g') continue;
  t.test(`${name}: QEMU's file through a pipe`, { skip: skipUnless(missingTools(name)) }, async (t) => {
    const oracle = await oracleGuest(name);
    const folder = t.testdir({});
    for (const dump of ['qemu.elf', 'qemu-paging.elf']) {
      const [piped, direct] = [join(folder, `${dump}.piped`), join(folder, `${dump}.direct`)];
      execFileSync('sh', [
        '-c',
        'cat "$0" | "$1" "$2" dump - -o "$3"',
        oracle.path(dump),
        process.execPath,
        CLI,
        piped,
      ]);
      execFileSync(process.execPath, [CLI, 'dump', oracle.path(dump), '-o', direct]);
      t.ok(sameBytes(piped, direct), dump);
    }
  });
}
