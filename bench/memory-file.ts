/** Memory files of guests, a quarter of which is not zero. */

import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { roomyFolder } from '../test/guests/qemu.js';

const MIB = 1 << 20;
const GIB = 2 ** 30;

/** Fills every fourth 16 MiB of a memory file: half text, half noise, so that a quarter of the guest is not zero. */
export function fillMemory(path: string, size: number): void {
  const noise = Buffer.alloc(8 * MIB);
  let state = 0x9e3779b9;
  for (let i = 0; i < noise.length; i += 4) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    noise.writeInt32LE(state, i);
  }
  const text = Buffer.alloc(8 * MIB, 'the quick brown fox jumps over the lazy dog 0123456789\n');
  const fd = openSync(path, 'r+');
  for (let at = 0; at + 16 * MIB <= size; at += 64 * MIB) {
    writeSync(fd, noise, 0, noise.length, at);
    writeSync(fd, text, 0, text.length, at + noise.length);
  }
  closeSync(fd);
}

/** The same with a sparse terabyte that has a page of text in each GiB. */
export async function withTerabyte(work: (ram: string, folder: string) => Promise<void>): Promise<void> {
  // Each of the 2^28 pages has a descriptor of 24 bytes in a kdump.
  const folder = mkdtempSync(join(roomyFolder(4 * GIB), 'vmcore-bench-'));
  try {
    const ram = join(folder, 'ram');
    const fd = openSync(ram, 'w');
    ftruncateSync(fd, 1024 * GIB);
    const page = Buffer.alloc(4096, 'a page of text ');
    for (let at = 0; at < 1024 * GIB; at += GIB) writeSync(fd, page, 0, page.length, at);
    closeSync(fd);
    await work(ram, folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Makes a memory file in a folder of its own, does something with it, and removes both. */
export async function withMemoryFile(
  size: number,
  work: (ram: string, folder: string) => Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(roomyFolder(size), 'vmcore-bench-'));
  try {
    const ram = join(folder, 'ram');
    const fd = openSync(ram, 'w');
    ftruncateSync(fd, size);
    closeSync(fd);
    fillMemory(ram, size);
    await work(ram, folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
