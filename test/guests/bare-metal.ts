/** Assembles the guests of bare-metal/ into multiboot kernels, and boots them to their last HLT. */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { GUESTS_SOURCE } from './places.js';
import { Qemu, type QemuOptions } from './qemu.js';

const SOURCES = join(GUESTS_SOURCE, 'bare-metal');
/** Must be BASE of guest.inc. */
const LINK_ADDRESS = 0x200000;
/** What every guest writes to its serial port when its state is reached. */
const MARKER = '!';
const BOOT_TIMEOUT_MS = 60_000;

export function bareMetalSources(name: string): string[] {
  return [`${name}.S`, 'guest.inc', 'smp.inc'].map((file) => join(SOURCES, file));
}

/** Makes the kernel in the folder `into`; returns its path. */
export function assemble(name: string, into: string): string {
  const object = join(into, `${name}.o`);
  const kernel = join(into, `${name}.kernel`);
  // 32-bit objects even for long mode: QEMU's multiboot loader takes ELF32 only.
  execFileSync('as', ['--32', '-I', SOURCES, '-o', object, join(SOURCES, `${name}.S`)]);
  const layout = ['-N', '-Ttext', `0x${LINK_ADDRESS.toString(16)}`, '--no-warn-rwx-segments'];
  execFileSync('ld', ['-m', 'elf_i386', ...layout, '-o', kernel, object]);
  return kernel;
}

/** Boots a kernel; returns when the guest has signalled and every CPU halted. It is not paused. */
export async function bootBareMetal(kernel: string, options: QemuOptions): Promise<Qemu> {
  const qemu = await Qemu.launch({ ...options, args: [...(options.args ?? []), '-kernel', kernel] });
  try {
    await qemu.waitForSerial(MARKER, BOOT_TIMEOUT_MS);
    await qemu.waitUntilHalted(BOOT_TIMEOUT_MS);
    return qemu;
  } catch (error) {
    await qemu.kill();
    throw error;
  }
}
