/** Boots Debian's cloud kernel with a busybox initrd that fills some memory and then sleeps. */
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { copyFileSync, existsSync, mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { gzipSync } from 'node:zlib';
import { makeOnce } from './make-once.js';
import { GuestStuck, Qemu, type QemuOptions } from './qemu.js';

const META_PACKAGE = 'linux-image-cloud-amd64';
/** What the init of a guest prints when the guest is as it should be. */
export const MARKER = 'GUEST-IS-READY';
const BOOT_TIMEOUT_MS = 180_000;
/** Once in a hundred boots or so a CPU is stuck for ever ("soft lockup") in QEMU's emulation. */
const BOOT_TRIES = 3;
const STOP_TRIES = 500;

/**
 * tmpfs files make memory that is neither zero nor kernel: noise that no compressor can shrink, and text that all can.
 * The module carries VMCOREINFO to QEMU's `vmcoreinfo` device, if there is one. With more than one CPU, one of them is
 * kept busy, for the most part in user mode.
 */
const INIT = `#!/bin/sh -e
busybox mkdir -p /proc /sys /tmp
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t tmpfs -o size=80% tmp /tmp
[ "$(busybox nproc)" = 1 ] || { while :; do :; done & }
busybox insmod /qemu_fw_cfg.ko
busybox dd if=/dev/urandom of=/tmp/noise bs=64k count=480 2>/dev/null
busybox yes 'Not all those who wander are lost.' | busybox dd of=/tmp/text bs=64k count=480 iflag=fullblock 2>/dev/null
busybox echo ${MARKER}
exec busybox sleep 1000000
`;

/** What bootLinux boots. */
export interface LinuxKernel {
  readonly kernel: string;
  readonly initrd: string;
  /** As `uname -r`. */
  readonly release: string;
}

/** Statically linked, as there is nothing else in the initrd. */
function busybox(): string | undefined {
  return ['/bin/busybox', '/usr/bin/busybox'].find((path) => {
    const { status, stdout } = spawnSync('readelf', ['-lW', path], { encoding: 'utf8' });
    return status === 0 && !stdout.includes('INTERP');
  });
}

/** The package that the meta package stands for now, or undefined where there is no apt or it knows none. */
function kernelPackage(): string | undefined {
  const { stdout } = spawnSync('apt-cache', ['depends', META_PACKAGE], { encoding: 'utf8' });
  return /Depends: (linux-image-\S+)/.exec(stdout ?? '')?.[1];
}

/** Folders of the cache are named so: what is in them depends on the package and on INIT. */
const SUFFIX = `-${createHash('sha256').update(INIT).digest('hex').slice(0, 8)}`;

function cachedKernel(cache: string): string | undefined {
  if (!existsSync(cache)) return undefined;
  const names = readdirSync(cache).filter((name) => name.startsWith('linux-image-') && name.endsWith(SUFFIX));
  return names.sort().at(-1);
}

/** What is missing to boot Linux; [] when nothing is. */
export function missingForLinux(cache: string): string[] {
  if (cachedKernel(cache) !== undefined) return [];
  const missing = ['dpkg', 'cpio'].filter((tool) => spawnSync(tool, ['--version']).status !== 0);
  if (busybox() === undefined) missing.push('busybox-static');
  if (kernelPackage() === undefined) missing.push(`the package ${META_PACKAGE}`);
  return missing;
}

/** Downloads and unpacks the kernel and makes the initrd, once. */
export async function linuxKernel(cache: string): Promise<LinuxKernel> {
  const package_ = cachedKernel(cache)?.slice(0, -SUFFIX.length) ?? kernelPackage();
  if (package_ === undefined) throw new Error(`no package ${META_PACKAGE}: is there an apt?`);
  const folder = join(cache, package_ + SUFFIX);
  await makeOnce(folder, (into) => unpack(package_, into));
  const release = package_.replace(/^linux-image-/, '');
  return { kernel: join(folder, 'vmlinuz'), initrd: join(folder, 'initrd'), release };
}

function unpack(package_: string, into: string): void {
  const tree = join(into, 'tree');
  const root = join(into, 'root');
  execFileSync('apt-get', ['-q', 'download', package_], { cwd: into, stdio: 'pipe' });
  const deb = find(into, (path) => path.endsWith('.deb'));
  execFileSync('dpkg', ['-x', deb, tree]);
  copyFileSync(
    find(tree, (path) => path.startsWith('boot/vmlinuz-')),
    join(into, 'vmlinuz'),
  );
  mkdirSync(root);
  copyFileSync(
    find(tree, (path) => path.endsWith('/qemu_fw_cfg.ko')),
    join(root, 'qemu_fw_cfg.ko'),
  );
  packInitrd(root, busybox()!, INIT, join(into, 'initrd'));
  for (const path of [tree, root, deb]) rmSync(path, { recursive: true });
}

/** Packs a folder, with a busybox that needs no libraries and an init added to it, into an initrd. */
export function packInitrd(root: string, busybox: string, init: string, initrd: string): void {
  mkdirSync(join(root, 'bin'));
  copyFileSync(busybox, join(root, 'bin/busybox'));
  symlinkSync('busybox', join(root, 'bin/sh'));
  writeFileSync(join(root, 'init'), init, { mode: 0o755 });
  const archive = execFileSync('sh', ['-c', 'find . | cpio --quiet -o -H newc'], { cwd: root, maxBuffer: 2 ** 26 });
  writeFileSync(initrd, gzipSync(archive, { level: 1 }));
}

/** The path of the first file of an unpacked package that is wanted. */
export function find(folder: string, wanted: (path: string) => boolean): string {
  const path = (readdirSync(folder, { recursive: true }) as string[]).find(wanted);
  if (path === undefined) throw new Error(`${folder} is not what a Debian kernel package looks like`);
  return join(folder, path);
}

/**
 * Boots Linux (with KASLR, as real ones do); pauses and returns it when its memory is filled and its CPUs are where tests
 * want them: one idle, and with more than one CPU another in user mode: only then KERNEL_GS_BASE is not zero.
 */
export async function bootLinux(kernel: LinuxKernel, options: QemuOptions): Promise<Qemu> {
  for (let tries = 1; ; tries++) {
    try {
      return await bootOnce(kernel, options);
    } catch (error) {
      if (!(error instanceof GuestStuck) || tries === BOOT_TRIES) throw error;
    }
  }
}

/** Without its check of the timer: where the machine has other work, Linux takes ticks that come late for a defect, and panics. */
const COMMAND_LINE = 'console=ttyS0 quiet panic=-1 cryptomgr.notests no_timer_check';

async function bootOnce({ kernel, initrd }: LinuxKernel, options: QemuOptions): Promise<Qemu> {
  const boot = ['-kernel', kernel, '-initrd', initrd, '-append', COMMAND_LINE];
  const qemu = await Qemu.launch({ ...options, args: [...(options.args ?? []), ...boot] });
  try {
    await qemu.waitForSerial(MARKER, BOOT_TIMEOUT_MS);
    await stopWith(qemu, (options.cpus ?? 1) === 1 ? ['HLT=1'] : ['HLT=1', 'CPL=3']);
    return qemu;
  } catch (error) {
    await qemu.kill();
    throw error;
  }
}

/**
 * Pauses a guest at a moment when `info registers` has all these states of CPUs in it.
 * @throws GuestStuck when there is none
 */
export async function stopWith(qemu: Qemu, states: readonly string[]): Promise<void> {
  for (let tries = 0; ; tries++) {
    await qemu.stop();
    const registers = await qemu.hmp('info registers -a');
    if (states.every((state) => registers.includes(state))) return;
    if (tries === STOP_TRIES) throw new GuestStuck(`never ${states.join(' and ')} in ${tries} tries:\n${registers}`);
    await qemu.cont();
    await sleep(7);
  }
}
