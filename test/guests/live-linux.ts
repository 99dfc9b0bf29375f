/** A Linux guest with two CPUs, one of them busy in user mode, that is dumped from its QEMU and not from files. */
import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { basename, join } from 'node:path';
import { type DebianKernel, debianKernel, type KernelName } from './debian-kernel.js';
import { bootLinux, MARKER, packInitrd } from './linux.js';
import { roomyFolder } from './qemu.js';

const MEMORY = 512 * 2 ** 20;

const INIT = `#!/bin/sh -e
busybox mkdir -p /proc /tmp
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
busybox mount -t tmpfs tmp /tmp
while :; do :; done &
busybox insmod /qemu_fw_cfg.ko
busybox yes 'Not all those who wander are lost.' | busybox dd of=/tmp/text bs=64k count=480 iflag=fullblock 2>/dev/null
busybox echo ${MARKER}
exec busybox sleep 1000000
`;

/** Boots it, calls `use` with what `vmcore dump` takes while it stands still, and ends it. */
export async function withLiveLinux(name: KernelName, use: (source: string) => void): Promise<void> {
  const kernel = await debianKernel(name);
  const folder = mkdtempSync(join(roomyFolder(MEMORY), 'vmcore-live-linux-'));
  try {
    const [initrd, socket] = [join(folder, 'initrd'), join(folder, 'qmp')];
    makeInitrd(kernel, join(folder, 'root'), initrd);
    const args = ['-device', 'vmcoreinfo', '-qmp', `unix:${socket},server=on,wait=off`];
    const qemu = await bootLinux(
      { kernel: kernel.vmlinuz, initrd, release: kernel.release },
      { machine: 'q35', memory: MEMORY, cpus: 2, cpu: 'max', args, base: folder },
    );
    try {
      use(`qmp:${socket}`);
    } finally {
      await qemu.quit();
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function makeInitrd({ modules, busybox }: DebianKernel, root: string, initrd: string): void {
  mkdirSync(root);
  const module = modules.find((path) => basename(path) === 'qemu_fw_cfg.ko')!;
  copyFileSync(module, join(root, basename(module)));
  packInitrd(root, busybox, INIT, initrd);
}
