/** A kernel of Debian with its debug information: what crash and drgn take beside a vmcore. */
import { mkdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { DebianApt } from './debian.js';
import { debianKernel, debianOf, type KernelName } from './debian-kernel.js';
import { makeOnce } from './make-once.js';
import { cacheFolder } from './places.js';

/**
 * The path of vmlinux, from the debug package of the very kernel that guests boot; downloaded when nobody has done so
 * before. The package is 270 MB and more, and five times that when it is unpacked; vmlinux alone is kept.
 */
export async function vmlinux(name: KernelName): Promise<string> {
  const { release } = await debianKernel(name);
  const folder = join(cacheFolder(), `vmlinux-${release}`);
  await makeOnce(folder, (into) => {
    const [apt, tree] = [join(into, 'apt'), join(into, 'tree')];
    mkdirSync(apt);
    DebianApt.open(debianOf(name), apt).unpack([`linux-image-${release}-dbg`], tree, { closure: false });
    renameSync(join(tree, 'usr/lib/debug/boot', `vmlinux-${release}`), join(into, 'vmlinux'));
    for (const path of [apt, tree]) rmSync(path, { recursive: true });
  });
  return join(folder, 'vmlinux');
}
