/**
 * `npm start`: dumps the built-in demo guest with a progress bar, then says what it made and how to look at it.
 */

import { basename } from 'node:path';
import { showProgress } from '../lib/cli/progress-bar.js';
import { demoGuest, dump } from '../lib/index.js';

const FILE = 'demo.vmcore';

const guest = demoGuest();
const job = dump(guest, { format: 'elf', paging: true }, { file: FILE, force: true });
const endProgress = await showProgress(job);
const { pages, seconds } = await job.finished.finally(endProgress);
const rip = `0x${guest.cpus[0]!.rip.toString(16)}`;

console.log(`
${basename(FILE)} is an ELF vmcore of a synthesised x86-64 guest with ${guest.cpus.length} CPUs:
${pages.total} pages, ${pages.data} written, ${pages.zero} zero and left out, in ${seconds.toFixed(2)} s.

Look at it:
  npx vmcore inspect ${FILE}
  readelf -ln ${FILE}
  gdb -batch -ex 'core-file ${FILE}' -ex 'info registers rip' -ex 'x/4i ${rip}'

Dump a guest of your own:
  npx vmcore dump guest.json -o vmcore          a guest description
  npx vmcore dump raw:guest.ram -o vmcore       a raw memory file
  npx vmcore dump qemu.elf --paging -o vmcore   another vmcore
  npx vmcore dump --help`);
