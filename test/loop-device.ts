/** A file as a block device, for tests: only root can have one, and only where the kernel has loop devices. */

import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { skipUnless } from './tools.js';

/** The skip of a test that needs a loop device. */
export function needsLoopDevice(): string | false {
  if (process.getuid?.() !== 0) return 'loop devices are for root';
  if (!existsSync('/dev/loop-control')) return 'this machine has no loop devices';
  return skipUnless(spawnSync('losetup', ['--version']).error ? ['losetup'] : []);
}

/** Has a file as a device for as long as `use` runs. */
export async function withLoopDevice(file: string, use: (device: string) => Promise<void>): Promise<void> {
  const device = execFileSync('losetup', ['--find', '--show', '--read-only', file], { encoding: 'utf8' }).trim();
  try {
    await use(device);
  } finally {
    execFileSync('losetup', ['--detach', device]);
  }
}
