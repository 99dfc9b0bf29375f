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
  /** The bare-metal source; default: the guest's name. */
  readonly source?: string;
}

/** Its memory is one more block, and a hole from 0xa0000 on comes with it. */
const VGA = ['-device', 'VGA,vgamem_mb=1'];

const PLAIN = { machine: 'pc', memory: 16 * MIB } satisfies QemuOptions;

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

function hostile(about: string, paging: GuestTraits['paging'], options: Partial<QemuOptions> = {}): GuestTraits {
  return bareMetal(about, paging, { ...PLAIN, ...options }, { hostile: true });
}

function linux(
  about: string,
  vmcoreinfo: boolean,
  qemu: Partial<QemuOptions>,
  traits: Partial<GuestTraits> = {},
): GuestTraits {
  return {
    kind: 'linux',
    about,
    paging: '4-level',
    arch: 'x86_64',
    elfClass: 64,
    cpus: qemu.cpus ?? 1,
    hostile: false,
    vmcoreinfo,
    qemu: {
      machine: 'pc',
      memory: 512 * MIB,
      cpu: 'max,la57=off',
      args: vmcoreinfo ? ['-device', 'vmcoreinfo'] : [],
      ...qemu,
    },
    ...traits,
  };
}

const GUESTS = {
  'real-mode': bareMetal('real mode, with a VGA whose memory is dumped, too', 'none', {
    ...PLAIN,
    args: VGA,
  }),
  'flat-32': bareMetal('protected mode without paging; ELF32', 'none', { ...PLAIN, machine: 'q35', args: FLASH }),
  'paging-32': bareMetal('32-bit paging, PSE-36; ELF32, made by qemu-system-i386', '32-bit', {
    binary: 'qemu-system-i386',
    machine: 'pc',
    memory: 17 * MIB,
    cpu: 'qemu32,+pse36',
    args: FLASH,
  }),
  'paging-32-high': bareMetal(
    'the same with RAM above 4 GiB: EM_386 in ELF64',
    '32-bit',
    { machine: 'pc', ...SPLIT },
    { source: 'paging-32' },
  ),
  'a20-off': bareMetal('32-bit paging without PSE, the A20 gate closed', '32-bit', { machine: 'pc', memory: 17 * MIB }),
  pae: bareMetal('PAE with NX and RAM above 4 GiB', 'pae', { machine: 'pc', ...SPLIT }),
  'long-4level': bareMetal('4-level tables with 4 KiB, 2 MiB and 1 GiB pages; a VGA', '4-level', {
    machine: 'pc',
    cpu: 'qemu64,+pdpe1gb',
    ...SPLIT,
    args: VGA,
  }),
  'long-5level': bareMetal('5-level tables; the second CPU idle in real mode', '5-level', {
    machine: 'q35',
    cpu: 'max',
    cpus: 2,
    ...SPLIT,
  }),
  'long-compat': bareMetal('a 32-bit code segment in long mode', '4-level', PLAIN),
  'long-xnum': bareMetal('67,585 mappings: PN_XNUM', '4-level', { machine: 'pc', memory: 264 * MIB }),
  'smp-two-cr3': bareMetal('two CPUs with different tables', '4-level', { machine: 'q35', memory: 17 * MIB, cpus: 2 }),
  'smp-cpu0-flat': bareMetal(
    'the first CPU without paging, the second in long mode',
    '4-level',
    { machine: 'pc', memory: 17 * MIB, cpus: 2 },
    { arch: 'i386' },
  ),
  'hostile-self': hostile('every entry of the top table is the top table', '4-level'),
  'hostile-loops': hostile('all but one are', '4-level'),
  'hostile-kasan': hostile('terabytes of aliases of one page, as KASAN has them', '4-level'),
  'hostile-giant': hostile('128 TiB in 1 GiB pages of one GiB', '4-level', { cpu: 'qemu64,+pdpe1gb' }),
  'hostile-32': hostile('every entry of a 32-bit directory is the directory', '32-bit'),
  'hostile-pae': hostile('the same in PAE', 'pae'),
  'linux-1cpu': linux('Linux with VMCOREINFO, idle', true, {}),
  'linux-2cpu': linux(
    'Linux without VMCOREINFO, with 5-level tables and a busy process',
    false,
    { cpus: 2, cpu: 'max', machine: 'q35' },
    { paging: '5-level' },
  ),
  'linux-5g': linux('Linux with VMCOREINFO and RAM above 4 GiB', true, { cpus: 2, memory: 5 * GIB }),
} satisfies Record<string, GuestTraits>;

export type GuestName = keyof typeof GUESTS;

/** The guests by name; small ones first. */
export const ORACLE_GUESTS: Readonly<Record<GuestName, GuestTraits>> = GUESTS;

export const GUEST_NAMES = Object.keys(GUESTS) as GuestName[];
