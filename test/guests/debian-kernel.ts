/** Kernels of Debian's releases, with the modules that guests need and a busybox that runs on them. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Debian, DebianApt } from './debian.js';
import { find } from './linux.js';
import { makeOnce } from './make-once.js';
import { cacheFolder, GUESTS_SOURCE } from './places.js';

interface KernelPackage {
  readonly debian: Debian;
  readonly metaPackage: string;
}

const KERNELS = {
  '6.1': { debian: { release: 'bookworm', architecture: 'amd64' }, metaPackage: 'linux-image-cloud-amd64' },
  '6.12': { debian: { release: 'trixie', architecture: 'amd64' }, metaPackage: 'linux-image-cloud-amd64' },
  '6.1-686-pae': { debian: { release: 'bookworm', architecture: 'i386' }, metaPackage: 'linux-image-686-pae' },
  '6.1-686': { debian: { release: 'bookworm', architecture: 'i386' }, metaPackage: 'linux-image-686' },
} as const satisfies Record<string, KernelPackage>;

export type KernelName = keyof typeof KERNELS;

export const KERNEL_NAMES = Object.keys(KERNELS) as KernelName[];

/** In the order in which they go in. Those that a kernel has built in are not in its package. */
const MODULES = [
  'virtio',
  'virtio_ring',
  'virtio_pci_legacy_dev',
  'virtio_pci_modern_dev',
  'virtio_pci',
  'virtio_balloon',
  'loop',
  'crc32c_generic',
  'crc16',
  'mbcache',
  'jbd2',
  'ext4',
  'qemu_fw_cfg',
];

export interface DebianKernel {
  readonly vmlinuz: string;
  /** As `uname -r`. */
  readonly release: string;
  /** Paths, in the order in which they go in. */
  readonly modules: readonly string[];
  /** Path of one that is linked statically. */
  readonly busybox: string;
  readonly architecture: Debian['architecture'];
}

/** Where the kernel is, or will be. */
export function debianKernelFolder(name: KernelName): string {
  const hash = createHash('sha256').update(JSON.stringify(KERNELS[name]));
  for (const source of ['debian', 'debian-kernel']) hash.update(readFileSync(join(GUESTS_SOURCE, `${source}.ts`)));
  return join(cacheFolder(), `kernel-${name}-${hash.digest('hex').slice(0, 12)}`);
}

/** The Debian that the kernel is of. */
export function debianOf(name: KernelName): Debian {
  return KERNELS[name].debian;
}

/** The kernel, downloaded when nobody has done so before. */
export async function debianKernel(name: KernelName): Promise<DebianKernel> {
  const folder = debianKernelFolder(name);
  await makeOnce(folder, (into) => make(KERNELS[name], into));
  return {
    vmlinuz: join(folder, 'vmlinuz'),
    release: readFileSync(join(folder, 'release'), 'utf8'),
    modules: MODULES.map((module) => join(folder, `${module}.ko`)).filter(existsSync),
    busybox: join(folder, 'busybox'),
    architecture: KERNELS[name].debian.architecture,
  };
}

function make({ debian, metaPackage }: KernelPackage, into: string): void {
  const tree = join(into, 'tree');
  const folder = join(into, 'apt');
  mkdirSync(folder);
  const apt = DebianApt.open(debian, folder);
  const kernel = apt.resolve(metaPackage);
  apt.unpack([kernel, 'busybox-static'], tree, { closure: false });
  const take = (name: string, wanted: (path: string) => boolean) => copyFileSync(find(tree, wanted), join(into, name));
  take('vmlinuz', (path) => path.startsWith('boot/vmlinuz-'));
  take('busybox', (path) => path.endsWith('bin/busybox'));
  writeFileSync(join(into, 'release'), kernel.replace('linux-image-', ''));
  takeModules(tree, into);
  for (const path of [tree, folder]) rmSync(path, { recursive: true });
}

function takeModules(tree: string, into: string): void {
  for (const path of readdirSync(tree, { recursive: true, encoding: 'utf8' })) {
    const [, name, packed] = /\/(\w+)\.ko(\.xz)?$/.exec(path) ?? [];
    if (name === undefined || !MODULES.includes(name)) continue;
    const source = join(tree, path);
    const unpack = () => execFileSync(join(into, 'busybox'), ['xzcat', source], { maxBuffer: 2 ** 26 });
    writeFileSync(join(into, `${name}.ko`), packed ? unpack() : readFileSync(source));
  }
}
