/** Our kdumps beside QEMU's, and in the hands of the programs that read kdumps. */

import { execFileSync, spawnSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { dump } from '../../lib/dump.js';
import { findVmcoreinfo } from '../../lib/formats/vmcoreinfo.js';
import type { Guest } from '../../lib/model/guest.js';
import { openGuestDescription } from '../../lib/sources/description/guest-description.js';
import { type KdumpGuest, openKdump } from '../../lib/sources/kdump/kdump-core.js';
import { KDUMP_CODECS, type KdumpCodec } from '../../lib/layouts/kdump-layout.js';
import { GUEST_NAMES, type GuestName, missingTools, oracleGuest } from '../guests/oracle.js';
import { needsPython, needsTools, PYTHON, skipUnless } from '../tools.js';
import { compareKdumpHeads, sameMemory } from './compare-kdump.js';
import { findBanner } from './linux-banner.js';

const folder = mkdtempSync(join(tmpdir(), 'vmcore-oracle-'));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));

const noGuests = (...names: GuestName[]) => skipUnless(names.flatMap((name) => missingTools(name)));
const noPython = needsPython('drgn', 'kdumpfile');
const noMakedumpfile = needsTools('makedumpfile');

async function open(name: GuestName): Promise<{ guest: Guest; path(file: string): string }> {
  const oracle = await oracleGuest(name);
  return { guest: await openGuestDescription(oracle.path('guest.json')), path: oracle.path };
}

async function write(guest: Guest, name: string, codec: KdumpCodec, flattened = false): Promise<string> {
  const path = join(folder, name);
  await dump(guest, { format: `kdump-${flattened ? '' : 'raw-'}${codec}` }, { file: path, force: true }).finished;
  return path;
}

/** Puts a flattened file together. */
function rearrange(flattened: string): string {
  const path = `${flattened}.rearranged`;
  const stdin = openSync(flattened, 'r');
  execFileSync('makedumpfile', ['-R', '-f', path], { stdio: [stdin, 'ignore', 'pipe'] });
  closeSync(stdin);
  return path;
}

for (const name of GUEST_NAMES)
  t.test(
    `${name}: headers, bitmaps and every page are QEMU's`,
    { skip: noGuests(name) || noMakedumpfile },
    async (t) => {
      const { guest, path } = await open(name);
      const ours = await write(guest, 'ours', 'zlib');
      const { utsname, physBase } = compareKdumpHeads(t, guest, ours, rearrange(path('qemu.kdump-zlib')));

      t.ok(
        [utsname.sysname, utsname.nodename, utsname.release, utsname.version, utsname.machine].every((s) => s !== ''),
      );
      const info = findVmcoreinfo(guest.notes);
      t.equal(BigInt.asIntN(64, physBase), info?.number('phys_base') ?? 0n, 'phys_base is that of VMCOREINFO');
      if (info) t.equal(utsname.release, info.get('OSRELEASE'));
      if (info) t.match(utsname.version, /^#\d+ /, 'read from memory, for VMCOREINFO does not say it');

      const reopened = await openKdump(ours);
      const qemu = await openKdump(path('qemu.kdump-zlib'));
      await sameMemory(t, reopened, guest);
      await sameMemory(t, qemu, guest);
      t.strictSame(reopened.cpus.length, guest.cpus.length);
      t.strictSame(withoutRaw(qemu), withoutRaw(reopened), 'the same CPUs in both');
      for (const each of [reopened, qemu, guest]) each.close();
    },
  );

/** CPUs without KernelGSBase, which a description may not have, and without the descriptors that they came in. */
function withoutRaw({ cpus }: KdumpGuest): unknown {
  return cpus.map(({ rip, rsp, cs, longMode }) => ({ rip, rsp, cs: cs.selector, longMode }));
}

t.test(
  'makedumpfile -R makes our raw file of our flattened one',
  { skip: noGuests('pae') || noMakedumpfile },
  async (t) => {
    const { guest } = await open('pae');
    for (const codec of KDUMP_CODECS) {
      const raw = readFileSync(await write(guest, 'raw', codec));
      const rearranged = readFileSync(rearrange(await write(guest, 'flattened', codec, true)));
      t.equal(Buffer.compare(raw, rearranged), 0, codec);
    }
  },
);

const READ_ALL = `
import sys, kdumpfile
dump = kdumpfile.kdumpfile(sys.argv[1])
assert dump.attr['arch.name'] == 'x86_64'
memory = open(sys.argv[2], 'rb')
for pfn in range(int(sys.argv[3])):
    assert dump.read(kdumpfile.KDUMP_MACHPHYSADDR, pfn << 12, 4096) == memory.read(4096), hex(pfn)
print('all equal')
`;

t.test('libkdumpfile reads every page', { skip: noGuests('linux-1cpu') || noPython }, async (t) => {
  const { guest, path } = await open('linux-1cpu');
  const pages = guest.blocks[0]!.length / 4096;
  for (const codec of KDUMP_CODECS) {
    const args = ['-c', READ_ALL, await write(guest, 'vmcore', codec), path('guest.ram'), String(pages)];
    const run = spawnSync(PYTHON, args, { encoding: 'utf8' });
    // libkdumpfile is often built without Snappy.
    if (/Unsupported compression method: snappy/.test(run.stderr)) t.pass('libkdumpfile here has no Snappy');
    else t.match(run, { status: 0, stdout: 'all equal\n' }, `${codec}: ${run.stderr}`);
  }
});

const READ_WITH_DRGN = `
import sys, drgn
program = drgn.Program()
program.set_core_dump(sys.argv[1])
assert program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
print(program.read(int(sys.argv[2], 16), 6))
print(program.read(int(sys.argv[3], 16), 200, True).split(b'\\n')[0].decode())
`;

t.test(
  'drgn opens all six, and reads by virtual and by physical address',
  { skip: noGuests('linux-1cpu') || noPython || noMakedumpfile },
  async (t) => {
    const { guest } = await open('linux-1cpu');
    const symbol = findVmcoreinfo(guest.notes)!.symbol('init_uts_ns')!.toString(16);
    const banner = findBanner(guest.memory!);
    for (const codec of KDUMP_CODECS)
      for (const flattened of [false, true]) {
        const written = await write(guest, 'vmcore', codec, flattened);
        // libkdumpfile 0.5.1, which drgn reads kdumps with, does not know the flattened format: makedumpfile -R first.
        const path = flattened ? rearrange(written) : written;
        const args = ['-c', READ_WITH_DRGN, path, symbol, banner.paddr.toString(16)];
        const run = spawnSync(PYTHON, args, { encoding: 'utf8' });
        t.equal(
          run.stdout,
          `b'Linux\\x00'\n${banner.text}\n`,
          `${codec}${flattened ? ', flattened' : ''}: ${run.stderr}`,
        );
      }
    guest.close();
  },
);

/** Has makedumpfile leave out zero pages. */
function refilter(input: string): { status: number | null; output: string } {
  const output = `${input}.refiltered`;
  const { status } = spawnSync('makedumpfile', ['-l', '-d', '1', '-f', input, output]);
  return { status, output };
}

t.test(
  'makedumpfile refilters it to the pages of our ELF',
  { skip: noGuests('linux-5g') || noMakedumpfile },
  async (t) => {
    const { guest } = await open('linux-5g');
    const elf = join(folder, 'elf');
    await dump(guest, { format: 'elf' }, { file: elf, force: true }).finished;
    const fromElf = await openKdump(refilter(elf).output);
    const fromKdump = await openKdump(refilter(await write(guest, 'vmcore', 'lzo')).output);
    t.strictSame(fromKdump.pageCounts, fromElf.pageCounts);
    t.ok(fromKdump.pageCounts.stored > 10_000);
    await sameMemory(t, fromKdump, fromElf);
    for (const each of [guest, fromElf, fromKdump]) each.close();
  },
);

t.test(
  'makedumpfile cannot refilter any kdump whose memory goes on above what the kernel uses',
  { skip: noGuests('linux-1cpu') || noMakedumpfile },
  async (t) => {
    // QEMU dumps the ROM below 4 GiB as memory, so max_mapnr is 2^20 pages. makedumpfile's get_mem_map() lowers its own
    // max_mapnr to the end of the kernel's mem_map, and then copy_bitmap_file() looks for the second bitmap of the *input*
    // behind a first one of that size. It finds the zeros in the middle of the first one, and nothing is left to write.
    // Where RAM goes on above 4 GiB, as it does above, both ends are the same. When this test fails, they have mended it.
    const { guest } = await open('linux-1cpu');
    t.not(refilter(await write(guest, 'vmcore', 'lzo')).status, 0);
    guest.close();
  },
);
