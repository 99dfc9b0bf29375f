/**
 * The pages that we leave out, beside those that makedumpfile leaves out of our ELF of the same guest, page by page.
 *
 * Neither looks at a page behind the last that the kernel has a struct page for: a dump is without it. QEMU's ROM below
 * 4 GiB is such memory when all RAM is below it. A dump of ours at level 1 can be given to makedumpfile, which then leaves
 * out what it leaves out of the ELF: of one with that memory it loses nearly all.
 *
 * They are the same but for one thing, which the test holds:
 *   - of a kernel that can mark broken memory (NUMBER(PG_hwpoison)), makedumpfile leaves out such pages, and those that
 *     are offline, at level 1 too; to us level 1 means zeros alone, which needs nothing from the kernel.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { dump } from '../../lib/dump.js';
import { findVmcoreinfo } from '../../lib/formats/vmcoreinfo.js';
import type { Guest } from '../../lib/model/guest.js';
import { deviceMemoryStart } from '../../lib/linux/device-memory.js';
import { excludePages } from '../../lib/linux/exclude-pages.js';
import { blockEnd } from '../../lib/model/physical-memory.js';
import { openGuestDescription } from '../../lib/sources/description/guest-description.js';
import { PAGE_SIZE } from '../../lib/model/stage.js';
import { i386Makedumpfile, needsI386Makedumpfile } from '../guests/bookworm-i386.js';
import { type BusyName, busyGuest, needsBusyGuests } from '../guests/busy.js';
import { forkyMakedumpfile, needsForky } from '../guests/forky.js';
import { needsTools } from '../tools.js';
import { type MakedumpfilePages, makedumpfilePages } from './makedumpfile-pages.js';
import { DL_EXCLUDE_CACHE, DL_EXCLUDE_USER_DATA, DL_EXCLUDE_ZERO } from '../../lib/model/dump-level.js';

const ALL = 31;
const LEVELS = [1, 2, 4, 8, 16, 17, ALL];

const folder = mkdtempSync(join(tmpdir(), 'vmcore-exclude-'));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));

/** A makedumpfile that knows the kernel of a guest. */
interface Oracle {
  readonly guest: BusyName;
  /** Whether makedumpfile needs the virtual addresses of PT_LOADs. */
  readonly paging?: boolean;
  readonly skip: string | false;
  makedumpfile(): Promise<string>;
}

const noForky = await needsForky();
const installed = { skip: needsTools('makedumpfile'), makedumpfile: async () => 'makedumpfile' };
const i386 = { skip: await needsI386Makedumpfile(), makedumpfile: i386Makedumpfile, paging: true };
const newest = { skip: noForky, makedumpfile: forkyMakedumpfile };

const ORACLES: readonly Oracle[] = [
  { guest: 'busy-6.1', ...installed },
  { guest: 'busy-6.1-5g', ...newest },
  { guest: 'busy-6.12', ...newest },
  { guest: 'busy-6.12-5g', ...newest },
  { guest: 'busy-6.1-686-pae', ...i386 },
  { guest: 'busy-6.1-686', ...i386 },
];

for (const { guest: name, paging, skip, makedumpfile } of ORACLES)
  t.test(`${name}: the pages kept are makedumpfile's`, { skip: skip || (await needsBusyGuests(name)) }, async (t) => {
    const guest = await openGuestDescription((await busyGuest(name)).description);
    const elf = join(folder, 'elf');
    await dump(guest, { format: 'elf', paging }, { file: elf, force: true }).finished;
    for (const level of LEVELS) {
      const theirs = await makedumpfilePages(await makedumpfile(), elf, level, join(folder, 'kdump'));
      await compare(t, guest, level, theirs);
      // That of 32 bits cannot find its way in a kdump, which has no virtual addresses.
      if (level === ALL && !paging) await compareFiltered(t, guest, await makedumpfile(), theirs);
    }
    guest.close();
  });

/** What makedumpfile leaves of a kdump of ours, beside what it leaves of the ELF. */
async function compareFiltered(t: Test, guest: Guest, makedumpfile: string, theirs: MakedumpfilePages): Promise<void> {
  const start = deviceMemoryStart(guest);
  const end = start === null ? blockEnd(guest.blocks.at(-1)!) : start;
  t.equal(Math.min(end, blockEnd(guest.blocks.at(-1)!)), theirs.end * PAGE_SIZE, 'where the kernel’s memory ends');
  const ours = join(folder, 'ours');
  await dump(guest, { format: 'kdump-raw-lzo', dumpLevel: DL_EXCLUDE_ZERO }, { file: ours, force: true }).finished;
  const filtered = await makedumpfilePages(makedumpfile, ours, ALL, join(folder, 'kdump'));
  const lost = pagesWhere(guest, (pfn) => theirs.kept.has(pfn) !== filtered.kept.has(pfn));
  t.strictSame(lost, [], `${filtered.kept.size} of ${theirs.kept.size} pages are left of our kdump`);
}

async function compare(t: Test, guest: Guest, level: number, theirs: MakedumpfilePages): Promise<void> {
  const { exclusion, undecided } = await excludePages(guest, { level });
  t.equal(undecided, 0, `level ${level}: all pages are decided`);
  const about = `level ${level}: ${exclusion.total} pages are left out`;
  const differences = pagesWhere(guest, (pfn) => pfn < theirs.end && exclusion.has(pfn) === theirs.kept.has(pfn));
  t.strictSame(differences, level === DL_EXCLUDE_ZERO ? await unaskedPages(guest) : [], about);
  t.strictSame(
    pagesWhere(guest, (pfn) => pfn >= theirs.end && exclusion.has(pfn)),
    [],
    'nothing behind is left out',
  );
}

/** Pages that makedumpfile leaves out whatever the level: those that are left out both as cache and as user pages. */
async function unaskedPages(guest: Guest): Promise<number[]> {
  if (findVmcoreinfo(guest.notes)?.number('PG_hwpoison') === null) return [];
  const cache = await excludePages(guest, { level: DL_EXCLUDE_CACHE });
  const user = await excludePages(guest, { level: DL_EXCLUDE_USER_DATA });
  return pagesWhere(guest, (pfn) => cache.exclusion.has(pfn) && user.exclusion.has(pfn));
}

/** The guest's page frames for which something holds. */
function pagesWhere(guest: Guest, holds: (pfn: number) => boolean): number[] {
  const pages: number[] = [];
  for (const block of guest.blocks)
    for (let pfn = block.base / PAGE_SIZE; pfn < blockEnd(block) / PAGE_SIZE; pfn++) if (holds(pfn)) pages.push(pfn);
  return pages;
}
