/** The debuggers that a vmcore is for open ours, and find in it what is in the guest. */

import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { dump } from '../../lib/dump.js';
import { findVmcoreinfo } from '../../lib/formats/vmcoreinfo.js';
import { openGuest } from '../../lib/open-guest.js';
import { type GuestName, missingTools, oracleGuest } from '../guests/oracle.js';
import { needsPython, needsTools, PYTHON, skipUnless } from '../tools.js';
import { findBanner } from './linux-banner.js';

const GUEST: GuestName = 'linux-1cpu';
const folder = mkdtempSync(join(tmpdir(), 'vmcore-readers-'));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));
const skip = skipUnless(missingTools(GUEST));

/** A vmcore of the Linux guest, made once. */
const made = new Map<string, Promise<string>>();
function vmcore(kind: 'plain' | 'paging'): Promise<string> {
  const path = join(folder, kind);
  let making = made.get(kind);
  if (!making) {
    making = (async () => {
      const guest = await openGuest((await oracleGuest(GUEST)).path('guest.json'));
      await dump(guest, { paging: kind === 'paging' }, { file: path }).finished;
      guest.close();
      return path;
    })();
    made.set(kind, making);
  }
  return making;
}

/** The upper half of the address space, where kernels are. */
const KERNEL_HALF = 0xffff_8000_0000_0000n;

t.test('readelf -a has nothing to complain of', { skip: skip || needsTools('readelf') }, async (t) => {
  for (const kind of ['plain', 'paging'] as const) {
    const { status, stdout, stderr } = spawnSync('readelf', ['-aW', await vmcore(kind)], {
      encoding: 'utf8',
      maxBuffer: 1 << 28,
    });
    t.equal(status, 0);
    t.equal(stderr, '', `${kind}: no warning`);
    t.match(stdout, /CORE \(Core file\)/);
    t.match(stdout, /NT_PRSTATUS/);
    t.match(stdout, /VMCOREINFO/);
  }
});

t.test('gdb disassembles at rip', { skip: skipUnless(missingTools('linux-2cpu')) || needsTools('gdb') }, async (t) => {
  const path = join(folder, 'two-cpus');
  const guest = await openGuest((await oracleGuest('linux-2cpu')).path('guest.json'));
  await dump(guest, { paging: true }, { file: path }).finished;
  guest.close();
  // One CPU is in user mode, whose low addresses QEMU's PT_LOADs do not have; ours are QEMU's.
  const thread = guest.cpus.findIndex(({ rip }) => rip >= KERNEL_HALF);
  const { rip } = guest.cpus[thread]!;
  const commands = [`core-file ${path}`, `thread ${thread + 1}`, 'p/x $rip', 'x/3i $rip'];
  const { stdout, stderr } = spawnSync('gdb', ['-nx', '-batch', ...commands.flatMap((line) => ['-ex', line])], {
    encoding: 'utf8',
  });
  t.match(stdout, `0x${rip.toString(16)}`);
  const instructions = stdout.split('\n').filter((line) => /^(=>)?\s*0x[0-9a-f]+:\s+\S/.test(line));
  t.equal(instructions.length, 3, `three instructions:\n${stdout}`);
  t.notMatch(stdout + stderr, /Cannot access memory|\(bad\)/);
});

t.test(
  'drgn knows the platform and the kernel, and reads its memory',
  { skip: skip || needsPython('drgn') },
  async (t) => {
    const guest = await openGuest((await oracleGuest(GUEST)).path('guest.json'));
    const uts = findVmcoreinfo(guest.notes)!.symbol('init_uts_ns')!;
    const banner = findBanner(guest.memory!);
    guest.close();
    const script = `
import drgn, sys
prog = drgn.Program()
prog.set_core_dump(sys.argv[1])
print(prog.platform)
print(bool(prog.flags & drgn.ProgramFlags.IS_LINUX_KERNEL))
print(prog.read(int(sys.argv[2], 0), 200, physical=True).split(b'\\n')[0].decode())
if len(sys.argv) > 3: print(b'Linux' in prog.read(int(sys.argv[3], 0), 65 * 6))
`;
    const hex = (value: number | bigint) => `0x${value.toString(16)}`;
    const run = (...args: string[]) => execFileSync(PYTHON, ['-c', script, ...args], { encoding: 'utf8' }).trim();
    for (const kind of ['plain', 'paging'] as const) {
      // Without virtual addresses in the PT_LOADs drgn reads physical memory only.
      const virtual = kind === 'paging' ? [hex(uts)] : [];
      const [platform, isKernel, text, utsname] = run(await vmcore(kind), hex(banner.paddr), ...virtual).split('\n');
      t.match(platform, /X86_64/, kind);
      t.equal(isKernel, 'True');
      t.equal(text, banner.text, 'linux_banner, by its physical address');
      if (kind === 'paging') t.equal(utsname, 'True', 'init_uts_ns, by its virtual address');
    }
  },
);

t.test(
  "makedumpfile, which refuses QEMU's ELF, takes ours",
  { skip: skip || needsTools('makedumpfile') },
  async (t) => {
    const output = join(folder, 'small');
    const path = await vmcore('plain');
    const { status, stdout, stderr } = spawnSync('makedumpfile', ['-l', '-d', '31', path, output], {
      encoding: 'utf8',
    });
    t.equal(status, 0, `${stdout}${stderr}`);
    t.ok(statSync(output).size < statSync(path).size / 4, 'free, cache, user and zero pages are gone');
    const oracle = await oracleGuest(GUEST);
    const qemus = spawnSync('makedumpfile', ['-l', '-d', '31', oracle.path('qemu.elf'), join(folder, 'refused')]);
    t.not(qemus.status, 0, "QEMU's own is still refused: or else this difference to QEMU needs a second look");
  },
);

t.test('crash opens it', { skip: skip || needsTools('crash') }, async (t) => {
  const { stdout } = spawnSync('crash', ['--osrelease', await vmcore('plain')], { encoding: 'utf8' });
  t.equal(stdout.trim(), (await oracleGuest(GUEST)).manifest.release);
});
