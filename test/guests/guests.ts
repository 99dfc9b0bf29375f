/**
 * The guests there are, and what each is good for. How one is made: bare-metal.ts and linux.ts; what is kept of it:
 * oracle.ts.
 */
import type { QemuOptions } from './qemu.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;

export interface GuestTraits {
  readonly kind: 'bare-metal' | 'linux';
  /** What it is there for, in one line. */
  readonly about: string;
  /** The mode of the first CPU that has paging on; `none` when none has. */
  readonly paging: 'none' | '32-bit' | 'pae' | '4-level' | '5-level';
  /** e_machine of QEMU's dump (by the first CPU's mode). */
  readonly arch: 'x86_64' | 'i386';
  readonly elfClass: 32 | 64;
  readonly cpus: number;
  /** QEMU would walk its page tables for ever: there is no paging dump. */
  readonly hostile: boolean;
  readonly vmcoreinfo: boolean;
  readonly qemu: QemuOptions;
}

/** RAM in two parts, of 17 MiB each: 17 so that large pages span the end of either. */
const SPLIT = { machineOptions: ['max-ram-below-4g=17M'], memory: 34 * MIB };

/**
 * Firmware in flash. Its ROM below 4 GiB is else taken for RAM by QEMU's dump, which therefore makes ELF64 of every PC:
 * this is the way to see ELF32.
 */
const FLASH = ['-drive', 'if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/seabios/bios-256k.bin'];

function bareMetal(
  about: string,
  paging: GuestTraits['paging'],
  qemu: QemuOptions,
  traits: Partial<GuestTraits> = {},
): GuestTraits {
  const long = paging === '4-level' || paging === '5-level';
  return {
    kind: 'bare-metal',
    about,
    paging,
    arch: long ? 'x86_64' : 'i386',
    elfClass: qemu.args?.includes(FLASH[1]!) ? 32 : 64,
    cpus: qemu.cpus ?? 1,
    hostile: false,
    vmcoreinfo: false,
    qemu,
    ...traits,
  };
}

const hostile = { hostile: true };

function linux(about: string, vmcoreinfo: boolean, qemu: QemuOptions): GuestTraits {
  return {
    kind: 'linux',
    about,
    paging: '4-level',
    arch: 'x86_64',
    elfClass: 64,
    cpus: qemu.cpus ?? 1,
    hostile: false,
    vmcoreinfo,
    qemu: { cpu: 'max', ...qemu, args: vmcoreinfo ? ['-device', 'vmcoreinfo'] : [] },
  };
}

const GUESTS = {
  'long-4level': bareMetal('4-level tables with 4 KiB, 2 MiB and 1 GiB pages', '4-level', {
    machine: 'pc',
    cpu: 'qemu64,+pdpe1gb',
    ...SPLIT,
  }),
  'linux-1cpu': linux('Linux with VMCOREINFO', true, { machine: 'pc', memory: 512 * MIB }),
} satisfies Record<string, GuestTraits>;

export type GuestName = keyof typeof GUESTS;

/** The guests by name; small ones first. */
export const ORACLE_GUESTS: Readonly<Record<GuestName, GuestTraits>> = GUESTS;

export const GUEST_NAMES = Object.keys(GUESTS) as GuestName[];

void [hostile, GIB, FLASH];
