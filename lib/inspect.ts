/**
 * What a vmcore is: its format, and the guest in it, as a plain value that is JSON already. Addresses and registers
 * are "0x…" strings, counts and sizes are numbers.
 */

import { ELFCLASS64, EM_X86_64, NO_PHYSICAL_ADDRESS, PT_LOAD } from './formats/elf.js';
import { PAGE_CODEC_FLAGS } from './formats/kdump.js';
import { findVmcoreinfo, vmcoreinfoFacts } from './formats/vmcoreinfo.js';
import { type InspectedWinDmp, inspectWinDmp } from './inspect-win-dmp.js';
import type { CompletedGuest } from './linux/with-vmcoreinfo.js';
import { VmcoreError } from './model/errors.js';
import type { CpuState, Guest } from './model/guest.js';
import type { ElfNote } from './model/note.js';
import { EXCLUDE_NAMES, EXCLUDE_REASONS, type ExcludeReason } from './model/page-exclusion.js';
import { PAGE_SIZE } from './model/page-size.js';
import { openGuest, type OpenGuestOptions } from './open-guest.js';
import { pagingMode } from './paging/mapping-resolver.js';
import { ElfCoreGuest } from './sources/elf/elf-core.js';
import { KdumpGuest, type KdumpPageCounts } from './sources/kdump/kdump-core.js';
import type { PageCensus } from './sources/kdump/kdump-pages.js';
import { readVmcoreinfo } from './sources/raw/vmcoreinfo-file.js';
import { WinDmpGuest } from './sources/windows/win-dmp-core.js';

/** One CPU, as far as one line can say it. */
export interface InspectedCpu {
  readonly rip: string;
  readonly rsp: string;
  readonly rflags: string;
  readonly cs: string;
  /** null when the source has no control registers */
  readonly cr0: string | null;
  readonly cr3: string | null;
  readonly cr4: string | null;
  /** `none`, `32-bit`, `PAE`, `4-level`, `5-level`; null when the source has no control registers */
  readonly paging: string | null;
}

/** A run of physical memory, and where it is mapped when the vmcore says so. */
export interface InspectedMapping {
  readonly vaddr: string;
  /** null when it has no physical address (/proc/kcore) */
  readonly paddr: string | null;
  /** bytes of memory (p_memsz) */
  readonly length: number;
  /** bytes of it that the file holds (p_filesz) */
  readonly stored: number;
}

/** What a Linux guest's pages are used for, as far as a dump may leave them out. */
export interface InspectedPages {
  /** pages of memory */
  readonly total: number;
  /** pages that a dump at level 31 leaves out, by reason; pages of zeros are not looked for */
  readonly excluded: Readonly<Partial<Record<ExcludeReason, number>>>;
  /** all others */
  readonly kept: number;
  /** those of them that are kept because the kernel's structures contradict themselves, or tell nothing of them */
  readonly undecided: number;
  /** guest physical address where VMCOREINFO was found; null when the guest came with it */
  readonly vmcoreinfoAt: string | null;
  readonly warnings: readonly string[];
}

/** What is peculiar to a kdump. */
export interface InspectedKdump {
  /** `struct disk_dump_header` and `struct kdump_sub_header`, by the names of their members */
  readonly header: Readonly<Record<string, string | number>>;
  /** names of what dump_level says was left out */
  readonly excludes: readonly string[];
  readonly pages: PageCensus & KdumpPageCounts;
  /** bytes of the pages that are not zero, over their bytes in the file; null when there are none */
  readonly ratio: number | null;
}

/** What a vmcore, or any other source of a guest, is. */
export interface Inspection {
  readonly source: string;
  /** `ELF64 core, EM_X86_64`, `guest description`, … */
  readonly format: string;
  readonly architecture: string;
  readonly cpus: readonly InspectedCpu[];
  /** physical memory */
  readonly memory: {
    readonly bytes: number;
    readonly blocks: readonly { readonly base: string; readonly length: number }[];
    /** pages of it that the source lacks, because they were left out when it was made */
    readonly leftOut: number;
  };
  /** what the source leaves open and was decided by a rule, with what to do where that is wrong; null as a rule */
  readonly assumption: string | null;
  /** PT_LOADs with virtual addresses (a dump with paging); empty otherwise */
  readonly mappings: readonly InspectedMapping[];
  /** kdump: header fields by their names, and what the pages are; null for other formats */
  readonly kdump: InspectedKdump | null;
  /** what the pages are used for; null when it was not asked for */
  readonly pages: InspectedPages | null;
  /** Windows: the dump header by its fields, of a crash dump or of the driver's note; null for other guests */
  readonly winDmp: InspectedWinDmp | null;
  readonly notes: readonly { readonly name: string; readonly type: number; readonly bytes: number }[];
  /** the main facts of VMCOREINFO, null where it does not say; null when there is none */
  readonly vmcoreinfo: Readonly<Record<string, string | number | boolean | null>> | null;
}

/** How to look. */
export interface InspectOptions extends OpenGuestOptions {
  /** Linux guests: look what the pages are used for, which takes reading all of the kernel's `struct page` */
  readonly pages?: boolean | undefined;
}

/** With the sign in front: KASLR may have moved a kernel down, and then phys_base is below 0. */
function hex(value: bigint | number): string {
  return value < 0 ? `-0x${(-value).toString(16)}` : `0x${value.toString(16)}`;
}

/**
 * Looks at a vmcore or at any other source.
 * @throws VmcoreError as openGuest does, and with `pages` as excludePages does
 */
export async function inspect(source: string, options: InspectOptions = {}): Promise<Inspection> {
  const { vmcoreinfo, ...others } = options;
  const note = vmcoreinfo === undefined ? null : await readVmcoreinfo(vmcoreinfo);
  const guest = await openGuest(source, others);
  try {
    const { replaceVmcoreinfo, withVmcoreinfo, withVmcoreinfoNote } = await import('./linux/with-vmcoreinfo.js');
    if (!options.pages)
      return await inspectGuest(source, guest, note ? replaceVmcoreinfo(guest.notes, note) : guest.notes);
    const completed = await withVmcoreinfo(note ? withVmcoreinfoNote(guest, note) : guest);
    const inspection = await inspectGuest(source, guest, completed.guest.notes);
    return { ...inspection, pages: await inspectPages(completed) };
  } finally {
    guest.close();
  }
}

async function inspectGuest(source: string, guest: Guest, notes: readonly ElfNote[]): Promise<Inspection> {
  const kdump = guest instanceof KdumpGuest ? guest : null;
  const elf = guest instanceof ElfCoreGuest ? guest : null;
  const winDmp = inspectWinDmp(guest);
  // A Windows driver's note goes by the same name.
  const info = winDmp ? null : findVmcoreinfo(notes);
  return {
    source,
    format: kdump ? kdumpFormat(kdump) : elf ? elfFormat(elf) : sourceFormat(source, guest),
    architecture: guest.arch,
    cpus: guest.cpus.map(inspectCpu),
    memory: {
      bytes: guest.blocks.reduce((sum, block) => sum + block.length, 0),
      blocks: guest.blocks.map(({ base, length }) => ({ base: hex(base), length })),
      leftOut: guest.missing?.count ?? 0,
    },
    assumption: guest.assumption ?? null,
    mappings: elf ? virtualMappings(elf) : [],
    kdump: kdump && inspectKdump(kdump),
    pages: null,
    winDmp,
    notes: notes.map(({ name, type, desc }) => ({ name, type, bytes: desc.length })),
    vmcoreinfo:
      info && Object.fromEntries(Object.entries(vmcoreinfoFacts(info)).map(([key, value]) => [key, plain(value)])),
  };
}

function plain(value: string | number | boolean | bigint | null): string | number | boolean | null {
  return typeof value === 'bigint' ? hex(value) : value;
}

function elfFormat({ header }: ElfCoreGuest): string {
  return `ELF${header.class === ELFCLASS64 ? 64 : 32} core, ${header.machine === EM_X86_64 ? 'EM_X86_64' : 'EM_386'}`;
}

/** Names of the DUMP_DH_COMPRESSED_* flags. */
const COMPRESSION_NAMES = Object.entries(PAGE_CODEC_FLAGS);

function kdumpFormat({ flattened, headers }: KdumpGuest): string {
  const codecs = COMPRESSION_NAMES.filter(([, flag]) => (headers.header.status & flag) !== 0).map(([name]) => name);
  return `${flattened ? 'flattened kdump' : 'kdump'}, ${codecs.join(' and ') || 'compression not told'}`;
}

/** The decision of a dump at the highest level; what is damaged is told, not refused. */
async function inspectPages({ guest, paddr }: CompletedGuest): Promise<InspectedPages> {
  checkPagesKnown(guest);
  const { excludePages } = await import('./linux/exclude-pages.js');
  const { exclusion, undecided, warnings } = await excludePages(guest, { level: 31, fallback: 'keep' });
  const total = guest.blocks.reduce((sum, { length }) => sum + Math.ceil(length / PAGE_SIZE), 0);
  // What the source lacks is not looked at here: the kernel still knows what it was used for.
  const counts = EXCLUDE_REASONS.flatMap((reason) =>
    reason === 'missing' ? [] : [[reason, exclusion.count(reason)] as const],
  );
  return {
    total,
    excluded: Object.fromEntries(counts),
    kept: total - exclusion.total,
    undecided,
    vmcoreinfoAt: paddr === null ? null : hex(paddr),
    warnings,
  };
}

/** A dump could be told of VMCOREINFO, or do with a lower level; who looks can do neither. @throws VmcoreError UNSUPPORTED */
function checkPagesKnown({ name, memory, notes }: Guest): void {
  const what = 'what the pages are used for';
  if (memory === null)
    throw new VmcoreError('UNSUPPORTED', `${name}: ${what} cannot be told from a stream; save it to a file first`);
  if (findVmcoreinfo(notes) === null)
    throw new VmcoreError(
      'UNSUPPORTED',
      `${name}: ${what} is not known without VMCOREINFO, which is neither in the notes nor in memory; inspect without --pages`,
    );
}

/** Names of the DL_EXCLUDE_* bits of a level. */
function excludeNames(level: number): string[] {
  return Object.entries(EXCLUDE_NAMES).flatMap(([name, bit]) => ((level & bit) !== 0 ? [name] : []));
}

function inspectKdump({ headers: { header, subHeader }, pages, pageCounts }: KdumpGuest): InspectedKdump {
  const census = pages.census();
  const data = census.plain + census.compressed;
  const zeroPage = census.zero > 0 ? PAGE_SIZE : 0;
  return {
    header: {
      signature: header.signature,
      header_version: header.version,
      'utsname.sysname': header.utsname.sysname,
      'utsname.nodename': header.utsname.nodename,
      'utsname.release': header.utsname.release,
      'utsname.version': header.utsname.version,
      'utsname.machine': header.utsname.machine,
      status: header.status,
      block_size: header.blockSize,
      sub_hdr_size: header.subHeaderBlocks,
      bitmap_blocks: header.bitmapBlocks,
      max_mapnr: header.maxMapnr,
      nr_cpus: header.cpus,
      ...(subHeader && {
        phys_base: hex(subHeader.physBase),
        dump_level: subHeader.dumpLevel,
        split: subHeader.split,
        offset_vmcoreinfo: subHeader.offsetVmcoreinfo,
        size_vmcoreinfo: subHeader.sizeVmcoreinfo,
        offset_note: subHeader.offsetNote,
        size_note: subHeader.sizeNote,
        max_mapnr_64: subHeader.maxMapnr,
      }),
    },
    excludes: excludeNames(subHeader?.dumpLevel ?? 0),
    pages: { ...pageCounts, ...census },
    ratio: data === 0 ? null : (data * PAGE_SIZE) / (census.bytes - zeroPage),
  };
}

function sourceFormat(source: string, guest: Guest): string {
  if (guest.memory === null) return 'ELF core (stream)';
  if (guest instanceof WinDmpGuest) return `Windows crash dump, full, ${guest.header.bits} bit`;
  if (source.startsWith('raw:')) return 'raw memory';
  if (source.startsWith('demo:')) return 'demo guest';
  return 'guest description';
}

function inspectCpu(cpu: CpuState): InspectedCpu {
  const { system } = cpu;
  return {
    rip: hex(cpu.rip),
    rsp: hex(cpu.rsp),
    rflags: hex(cpu.rflags),
    cs: hex(cpu.cs.selector),
    cr0: system && hex(system.cr0),
    cr3: system && hex(system.cr3),
    cr4: system && hex(system.cr4),
    paging: system && pagingMode(cpu),
  };
}

/** A dump without paging has p_vaddr = p_paddr, which says nothing. */
function virtualMappings({ programHeaders }: ElfCoreGuest): InspectedMapping[] {
  const loads = programHeaders.filter(({ type }) => type === PT_LOAD);
  if (loads.every(({ vaddr, paddr }) => vaddr === BigInt(paddr) || vaddr === 0n)) return [];
  return loads.map(({ vaddr, paddr, memsz, filesz }) => ({
    vaddr: hex(vaddr),
    paddr: paddr === NO_PHYSICAL_ADDRESS ? null : hex(paddr),
    length: memsz,
    stored: filesz,
  }));
}
