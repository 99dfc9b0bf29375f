/** A terabyte of memory, nearly all of it a hole: as fast as its descriptors are written, in bounded memory. */

import { spawnSync } from 'node:child_process';
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { FOUR_GIB } from '../lib/sources/raw/raw-memory.js';
import { openVmcore } from '../lib/vmcore-reader.js';
import { roomyFolder } from './guests/qemu.js';
import { CLI, needsTools } from './tools.js';

const GIB = 2 ** 30;
const SIZE = 1024 * GIB;
/** Bound on the process's peak resident set, in KiB. */
const PEAK_KIB = 250 * 1024;
/** Every page has a descriptor of 24 bytes, which is what the vmcore's size is. */
const VMCORE_BYTES = 7 * GIB;

/** A page of text that says where it is. */
function pageAt(offset: number): Buffer {
  return Buffer.alloc(4096, `the page at ${offset} of the memory file; `);
}

t.test('kdump-raw-lzo of a sparse 1 TiB memory file', { skip: needsTools('/usr/bin/time') }, async (t) => {
  const folder = mkdtempSync(join(roomyFolder(VMCORE_BYTES / 2), 'vmcore-terabyte-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const [ram, vmcore] = [join(folder, 'ram'), join(folder, 'vmcore')];
  const fd = openSync(ram, 'w');
  ftruncateSync(fd, SIZE);
  const written = Array.from({ length: SIZE / GIB }, (_, i) => i * GIB + i * 4096);
  for (const offset of written) writeSync(fd, pageAt(offset), 0, 4096, offset);
  closeSync(fd);

  const dump = ['dump', `raw:${ram}`, '--below-4g', '3G', '-f', 'kdump-raw-lzo', '-o', vmcore, '--json'];
  const run = spawnSync('/usr/bin/time', ['-f', '%M', process.execPath, CLI, ...dump], { encoding: 'utf8' });
  t.equal(run.status, 0, run.stderr);
  const { pages } = JSON.parse(run.stdout) as { pages: object };
  t.same(pages, {
    total: SIZE / 4096,
    data: written.length,
    zero: SIZE / 4096 - written.length,
    compressed: written.length,
  });
  const peak = Number(run.stderr.trim().split('\n').at(-1));
  t.ok(peak < PEAK_KIB, `peak resident set ${peak} KiB`);

  const reader = await openVmcore(vmcore);
  const paddrOf = (offset: number) => (offset < 3 * GIB ? offset : offset - 3 * GIB + FOUR_GIB);
  t.ok(
    written.every((offset) => pageAt(offset).equals(reader.read(paddrOf(offset), 4096))),
    'every page that was written is there',
  );
  t.ok(
    written.every((offset) => reader.read(paddrOf(offset + 8192), 4096).every((byte) => byte === 0)),
    'and zeros beside it',
  );
  reader.close();
});
