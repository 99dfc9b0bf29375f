/**
 * What `uname` prints on a guest, for the main header of a kdump: libkdumpfile, and so drgn, takes the architecture from
 * there, and only when the first five members are not empty and the very first is `Linux`.
 *
 * Linux keeps it in `init_uts_ns`, of which VMCOREINFO says the virtual address. Two ways lead from there to memory: the
 * kernel's image is mapped linearly, so phys_base is enough (x86_64); else page tables. What is read comes from a guest
 * and is taken only when it looks like what Linux has there.
 */

import { decodeUtsname, UTSNAME_SIZE, type Utsname } from '../formats/kdump.js';
import { findVmcoreinfo, type Vmcoreinfo } from '../formats/vmcoreinfo.js';
import type { Guest } from '../model/guest.js';
import { translate } from '../paging/mapping-resolver.js';

/** Where x86_64 maps the kernel's image (__START_KERNEL_map, arch/x86/include/asm/page_64_types.h) */
const START_KERNEL_MAP = 0xffff_ffff_8000_0000n;

/** Offsets of `name` in struct uts_namespace: what VMCOREINFO says, else 0 as since 5.11, else 4, behind a kref. */
const NAME_OFFSETS = [0n, 4n] as const;

/** What may stand in a member: printable ASCII, as all that Linux and its users put there. */
const PLAUSIBLE = /^[\x20-\x7e]{1,64}$/;
/** `machine` of x86 */
const X86_MACHINE = /^(x86_64|i[3-6]86)$/;

type UtsGuest = Pick<Guest, 'arch' | 'cpus' | 'notes' | 'memory'>;

/**
 * The guest's utsname: read from its memory, else what VMCOREINFO and the architecture tell. All members but
 * `domainname` are never empty.
 * @param longMode whether the first CPU is in long mode, which decides `machine` when nothing better is known
 */
export function guestUtsname(guest: UtsGuest, longMode: boolean): Utsname {
  return readUtsname(guest) ?? guessUtsname(guest, longMode);
}

/**
 * Reads init_uts_ns from a guest's memory.
 * @returns null when the guest is a stream, has no VMCOREINFO, or nothing plausible is there
 */
export function readUtsname(guest: UtsGuest): Utsname | null {
  const info = findVmcoreinfo(guest.notes);
  const symbol = info?.symbol('init_uts_ns') ?? null;
  if (info === null || symbol === null) return null;
  const said = info.offset('uts_namespace.name');
  for (const offset of said === null ? NAME_OFFSETS : [said])
    for (const address of physicalAddresses(guest, info, BigInt.asUintN(64, symbol + offset))) {
      const utsname = readAt(guest, address);
      if (utsname && isPlausible(utsname, info)) return utsname;
    }
  return null;
}

/** The physical addresses that a virtual address of the kernel's image may have, the likeliest first. */
function* physicalAddresses(guest: UtsGuest, info: Vmcoreinfo, vaddr: bigint): Generator<number> {
  const physBase = info.number('phys_base');
  if (physBase !== null && vaddr >= START_KERNEL_MAP) yield Number(vaddr - START_KERNEL_MAP + physBase);
  for (const cpu of guest.cpus) {
    if (!cpu.system || !guest.memory) continue;
    const address = translate(guest.memory, cpu, vaddr);
    if (address !== null) yield address;
  }
}

function readAt({ memory }: UtsGuest, address: number): Utsname | null {
  if (!memory || address < 0) return null;
  const bytes = new Uint8Array(UTSNAME_SIZE);
  return memory.read(address, bytes) ? decodeUtsname(bytes) : null;
}

function isPlausible(utsname: Utsname, info: Vmcoreinfo): boolean {
  const { sysname, nodename, release, version, machine } = utsname;
  const known = info.get('OSRELEASE');
  return (
    [sysname, nodename, release, version].every((text) => PLAUSIBLE.test(text)) &&
    X86_MACHINE.test(machine) &&
    (known === null || known === release)
  );
}

/**
 * Without memory to read: readers want something in each member, and the architecture. libkdumpfile takes only `Linux`
 * for an operating system, so that is what every guest gets; `(none)` is Linux's default.
 */
function guessUtsname(guest: UtsGuest, longMode: boolean): Utsname {
  const release = findVmcoreinfo(guest.notes)?.get('OSRELEASE') ?? null;
  return {
    sysname: 'Linux',
    nodename: '(none)',
    release: release !== null && PLAUSIBLE.test(release) ? release : 'unknown',
    version: 'unknown',
    machine: longMode ? 'x86_64' : 'i686',
    domainname: '(none)',
  };
}
