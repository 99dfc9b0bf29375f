/**
 * Linux guests with memory of every kind that a dump may leave out: page cache with and without buffers, anonymous,
 * merged, huge, free, offline, poisoned. Each is paused, and kept as what `vmcore dump raw:…` takes.
 *
 * | file            | what |
 * | --------------- | ---- |
 * | guest.ram       | the RAM file, sparse |
 * | registers.txt   | HMP `info registers -a` |
 * | vmcoreinfo.note | the whole ELF note |
 * | guest.json      | the guest description, which says all that |
 * | manifest.json   | `BusyManifest` |
 *
 * `node dist/test/guests/busy.js [NAME…]` makes them, which tests do by themselves.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { hasTool, skipUnless } from '../tools.js';
import { missingForDebian } from './debian.js';
import { type DebianKernel, debianKernel, debianKernelFolder, type KernelName } from './debian-kernel.js';
import { readElf } from './elf-oracle.js';
import { bootLinux, MARKER, packInitrd, stopWith } from './linux.js';
import { makeOnce } from './make-once.js';
import { cacheFolder, GUESTS_SOURCE } from './places.js';
import type { Qemu, QemuOptions } from './qemu.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const MEMORY_PROGRAM = join(GUESTS_SOURCE, 'busy', 'memory.S');
/** The balloon takes this much away from the guest. */
const BALLOONED = 32 * MIB;
const BALLOON_TRIES = 3000;

interface BusyTraits {
  readonly about: string;
  readonly kernel: KernelName;
  readonly machine: QemuOptions['machine'];
  /** Bytes of RAM. */
  readonly memory: number;
  /** Bytes of it below 4 GiB, by the rule of the machine. */
  readonly below4g: number;
  readonly cpu: string;
}

const FOUR_LEVELS = 'max,la57=off';
const FIVE_LEVELS = 'max';
const NO_LONG_MODE = 'max,lm=off';

const GUESTS = {
  'busy-6.1': {
    about: 'Linux 6.1 below 4 GiB, 4-level tables',
    kernel: '6.1',
    machine: 'pc',
    memory: 512 * MIB,
    below4g: 512 * MIB,
    cpu: FOUR_LEVELS,
  },
  'busy-6.1-5g': {
    about: 'Linux 6.1 above 4 GiB, 5-level tables',
    kernel: '6.1',
    machine: 'q35',
    memory: 5 * GIB,
    below4g: 2 * GIB,
    cpu: FIVE_LEVELS,
  },
  'busy-6.12': {
    about: 'Linux 6.12 below 4 GiB, 5-level tables',
    kernel: '6.12',
    machine: 'q35',
    memory: 512 * MIB,
    below4g: 512 * MIB,
    cpu: FIVE_LEVELS,
  },
  'busy-6.12-5g': {
    about: 'Linux 6.12 above 4 GiB, 4-level tables',
    kernel: '6.12',
    machine: 'pc',
    memory: 5 * GIB,
    below4g: 3 * GIB,
    cpu: FOUR_LEVELS,
  },
  'busy-6.1-686-pae': {
    // No high memory: an ELF with `--paging`, which makedumpfile needs, has only what page tables map.
    about: 'Linux 6.1 for i386 with PAE, FLATMEM',
    kernel: '6.1-686-pae',
    machine: 'pc',
    memory: 512 * MIB,
    below4g: 512 * MIB,
    cpu: NO_LONG_MODE,
  },
  'busy-6.1-686': {
    about: 'Linux 6.1 for i386 without PAE, FLATMEM, huge pages of 4 MiB',
    kernel: '6.1-686',
    machine: 'pc',
    memory: 512 * MIB,
    below4g: 512 * MIB,
    cpu: NO_LONG_MODE,
  },
} satisfies Record<string, BusyTraits>;

export type BusyName = keyof typeof GUESTS;

/** Small ones first. */
export const BUSY_NAMES = [
  'busy-6.1',
  'busy-6.12',
  'busy-6.1-686-pae',
  'busy-6.1-686',
  'busy-6.1-5g',
  'busy-6.12-5g',
] as const satisfies BusyName[];

export interface BusyManifest {
  readonly about: string;
  /** `uname -r`. */
  readonly release: string;
  readonly arch: 'x86_64' | 'i386';
  /** Bytes. */
  readonly ram: { readonly size: number; readonly below4g: number; readonly above4g: number };
  /** What the guest said of its memory just before it was paused: /proc/meminfo. */
  readonly meminfo: string;
}

export interface BusyGuest {
  readonly name: BusyName;
  readonly folder: string;
  readonly manifest: BusyManifest;
  /** Paths. */
  readonly ram: string;
  readonly registers: string;
  readonly vmcoreinfo: string;
  /** The guest description: a source that says all. */
  readonly description: string;
  /** Arguments for `vmcore dump`: memory, and all that is known of it. A raw memory file cannot say that it is of i386. */
  readonly source: readonly string[];
}

/**
 * What makes the memory that is in the table above. Its order: what is large and aligned first. Files are on tmpfs (its
 * pages are swap-backed), in the initrd (ramfs) and on ext4, read back after a new mount there: pages that were written
 * have buffers, pages that were read have none. Removed files leave pages behind that are free and not zero.
 */
const INIT = `#!/bin/sh -e
busybox mkdir -p /proc /sys /tmp /ext
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t tmpfs -o size=80% tmp /tmp
for module in $(busybox cat /modules); do busybox insmod $module; done
mm=/sys/kernel/mm

[ ! -d $mm/hugepages/hugepages-1048576kB ] || echo 1 > $mm/hugepages/hugepages-1048576kB/nr_hugepages
for size in 2048kB 4096kB; do
  [ ! -d $mm/hugepages/hugepages-$size ] || echo 6 > $mm/hugepages/hugepages-$size/nr_hugepages
done
echo madvise > $mm/transparent_hugepage/enabled
echo 4000 > $mm/ksm/pages_to_scan
echo 1 > $mm/ksm/run
/memory > /tmp/said &
until [ -s /tmp/said ]; do busybox sleep 0.05; done

busybox dd if=/dev/urandom of=/tmp/noise bs=64k count=96 2>/dev/null
busybox yes 'Not all those who wander are lost.' | busybox dd of=/tmp/text bs=64k count=96 iflag=fullblock 2>/dev/null
busybox cp /tmp/text /text

busybox dd if=/dev/zero of=/tmp/disk bs=1M seek=32 count=0 2>/dev/null
busybox mke2fs -F /tmp/disk >/dev/null 2>&1
busybox losetup /dev/loop0 /tmp/disk
busybox mount -t ext4 /dev/loop0 /ext
busybox cp /tmp/noise /ext/read
busybox mkdir /ext/small /tmp/small
for i in $(busybox seq 800); do echo $i > /ext/small/$i; echo $i > /tmp/small/$i; done
busybox umount /ext
busybox mount -t ext4 /dev/loop0 /ext
busybox cat /ext/read /ext/small/* > /dev/null
busybox cp /tmp/text /ext/written

busybox cp /tmp/text /tmp/gone
busybox cp /tmp/text /ext/gone
busybox rm /tmp/gone /ext/gone

until [ "$(busybox cat $mm/ksm/pages_sharing)" != 0 ]; do busybox sleep 0.05; done
echo 0 > $mm/ksm/run
for address in 0x9000000 0xa000000 0xb000000; do
  echo $address > /sys/devices/system/memory/soft_offline_page || :
done 2>/dev/null
busybox cat /proc/meminfo
busybox echo ${MARKER}
exec busybox sleep 1000000
`;

/** What is missing to make these guests; [] when nothing is, but for the network. */
function missingTools(name: BusyName): string[] {
  if (existsSync(guestFolder(name))) return [];
  const tools = ['qemu-system-x86_64', 'as', 'ld', 'cp', 'cpio'].filter((tool) => !hasTool(tool));
  return existsSync(debianKernelFolder(GUESTS[name].kernel)) ? tools : [...tools, ...missingForDebian()];
}

/** The skip of a test that needs guests: gets their kernels, and where that fails it says why. */
export async function needsBusyGuests(...names: readonly BusyName[]): Promise<string | false> {
  const missing = new Set(names.flatMap(missingTools));
  if (missing.size > 0) return skipUnless([...missing]);
  try {
    for (const name of names) if (!existsSync(guestFolder(name))) await debianKernel(GUESTS[name].kernel);
    return false;
  } catch (error) {
    return skipUnless([`a kernel of Debian (${error instanceof Error ? error.message : String(error)})`]);
  }
}

/** The guest, made when nobody has made it before. */
export async function busyGuest(name: BusyName): Promise<BusyGuest> {
  const folder = guestFolder(name);
  await makeOnce(folder, (into) => make(GUESTS[name], into));
  const manifest = JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8')) as BusyManifest;
  const files = {
    ram: join(folder, 'guest.ram'),
    registers: join(folder, 'registers.txt'),
    vmcoreinfo: join(folder, 'vmcoreinfo.note'),
    description: join(folder, 'guest.json'),
  };
  const { ram, registers, vmcoreinfo, description } = files;
  const raw = [`raw:${ram}`, '--below-4g', `${manifest.ram.below4g}`, '--registers', registers];
  const source = manifest.arch === 'x86_64' ? [...raw, '--vmcoreinfo', vmcoreinfo] : [description];
  return { name, folder, manifest, ...files, source };
}

/** Named by everything that a guest is made from, but for the versions of the packages. */
function guestFolder(name: BusyName): string {
  const hash = createHash('sha256').update(JSON.stringify(GUESTS[name]));
  for (const source of ['busy', 'debian-kernel', 'linux', 'qemu'])
    hash.update(readFileSync(join(GUESTS_SOURCE, `${source}.ts`)));
  hash.update(readFileSync(MEMORY_PROGRAM));
  return join(cacheFolder(), `${name}-${hash.digest('hex').slice(0, 12)}`);
}

async function make(traits: BusyTraits, into: string): Promise<void> {
  const kernel = await debianKernel(traits.kernel);
  const initrd = join(into, 'initrd');
  makeInitrd(kernel, into, initrd);
  const { machine, memory, cpu } = traits;
  const args = ['-device', 'vmcoreinfo', '-device', 'virtio-balloon-pci'];
  const qemu = await bootLinux(
    { kernel: kernel.vmlinuz, initrd, release: kernel.release },
    { machine, memory, cpu, args },
  );
  try {
    await inflateBalloon(qemu, memory - BALLOONED);
    await take(qemu, traits, kernel, into);
  } finally {
    await qemu.quit();
  }
  rmSync(initrd);
}

function makeInitrd(kernel: DebianKernel, into: string, initrd: string): void {
  const root = join(into, 'root');
  mkdirSync(root);
  for (const module of kernel.modules) copyFileSync(module, join(root, basename(module)));
  writeFileSync(join(root, 'modules'), kernel.modules.map((module) => `/${basename(module)}\n`).join(''));
  const object = join(into, 'memory.o');
  execFileSync('as', ['--32', '-o', object, MEMORY_PROGRAM]);
  execFileSync('ld', ['-m', 'elf_i386', '-o', join(root, 'memory'), object]);
  packInitrd(root, kernel.busybox, INIT, initrd);
  for (const path of [root, object]) rmSync(path, { recursive: true });
}

/** Pages that the guest has handed to the machine are offline to it. */
async function inflateBalloon(qemu: Qemu, target: number): Promise<void> {
  await qemu.cont();
  await qemu.execute('balloon', { value: target });
  for (let tries = 0; ; tries++) {
    const { actual } = await qemu.execute<{ actual: number }>('query-balloon');
    if (actual === target) break;
    if (tries === BALLOON_TRIES) throw new Error(`the balloon leaves the guest ${actual} bytes, not ${target}`);
    await sleep(20);
  }
  await stopWith(qemu, ['HLT=1']);
}

async function take(
  qemu: Qemu,
  { about, memory, below4g }: BusyTraits,
  { release, architecture }: DebianKernel,
  into: string,
): Promise<void> {
  execFileSync('cp', ['--sparse=always', qemu.ramFile, join(into, 'guest.ram')]);
  writeFileSync(join(into, 'registers.txt'), await qemu.hmp('info registers -a'));
  // A dump of one page has all the notes.
  const dump = join(into, 'notes.elf');
  await qemu.dump({ paging: false, file: dump, begin: 0, length: 4096 });
  const note = readElf(dump).notes.find(({ name }) => name === 'VMCOREINFO');
  if (note === undefined) throw new Error('the guest has not told QEMU its VMCOREINFO');
  writeFileSync(join(into, 'vmcoreinfo.note'), note.raw);
  rmSync(dump);
  const arch = architecture === 'amd64' ? 'x86_64' : 'i386';
  writeJson(join(into, 'guest.json'), {
    version: 1,
    arch,
    memory: [
      { base: 0, length: below4g, file: 'guest.ram', offset: 0 },
      ...(memory > below4g ? [{ base: 4 * GIB, length: memory - below4g, file: 'guest.ram', offset: below4g }] : []),
    ],
    registers: 'registers.txt',
    vmcoreinfo: 'vmcoreinfo.note',
  });
  const manifest: BusyManifest = {
    about,
    release,
    arch,
    ram: { size: memory, below4g, above4g: memory - below4g },
    meminfo: meminfoIn(await qemu.serial()),
  };
  writeJson(join(into, 'manifest.json'), manifest);
}

/** @throws Error when a kind of memory that the guest is for is not there */
function meminfoIn(serial: string): string {
  const start = serial.lastIndexOf('MemTotal:');
  const meminfo = serial.slice(start, serial.indexOf(MARKER, start)).replaceAll('\r', '');
  for (const kind of ['Cached', 'AnonPages', 'AnonHugePages', 'Hugetlb', 'Shmem', 'Mlocked', 'Slab'])
    if (!new RegExp(`^${kind}: +[1-9]`, 'm').test(meminfo)) throw new Error(`the guest has no ${kind}:\n${meminfo}`);
  return meminfo;
}

function writeJson(path: string, value: unknown): void {
  writeFileSync(path, `${JSON.stringify(value, undefined, 2)}\n`);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const names = process.argv.slice(2);
  for (const name of BUSY_NAMES) {
    if (names.length > 0 && !names.includes(name)) continue;
    const start = performance.now();
    const { folder } = await busyGuest(name);
    const { stdout } = spawnSync('du', ['-sh', folder], { encoding: 'utf8' });
    console.log(`${name}: ${((performance.now() - start) / 1000).toFixed(1)} s, ${stdout.trim()}`);
  }
}
