/**
 * The core of a Xen guest (`xl dump-core`): ELF sections where others have program headers.
 *
 * Xen's docs/misc/dump-core-format.txt and tools/libs/guest/xg_core.h describe it. `.xen_pages` holds pages,
 * `.xen_pfn` the frame number of each, `.xen_prstatus` a vcpu_guest_context for each CPU, `.note.Xen` what kind of
 * guest it is. Only guests whose frame numbers are physical addresses can be read (HVM, PVH): a paravirtual guest has
 * `.xen_p2m` instead, and page tables of machine addresses.
 *
 * The table of frame numbers stands behind the pages, so that a stream cannot be read.
 */

import { VmcoreError } from '../../model/errors.js';
import {
  type DecodedElfHeader,
  decodeSectionHeader,
  ELF_SIZES,
  EM_X86_64,
  type SectionHeader,
} from '../../formats/elf.js';
import { parseNotes } from '../../formats/notes.js';
import { type CpuState, CR0_PG, type GeneralRegister, NULL_SEGMENT, type Segment } from '../../model/guest.js';
import { PHYSICAL_ADDRESS_LIMIT } from '../../model/physical-memory.js';
import { PAGE_SIZE } from '../../model/stage.js';
import {
  badInput,
  type CoreHeaders,
  type CoreReader,
  checkOffset,
  type ElfLimits,
  type LoadSegment,
} from './elf-headers.js';

const SECTION_NOTE = '.note.Xen';
const SECTION_PAGES = '.xen_pages';
const SECTION_PFN = '.xen_pfn';
const SECTION_P2M = '.xen_p2m';
const SECTION_PRSTATUS = '.xen_prstatus';

/** Longer tables of names are not Xen's. */
const MAX_NAMES_BYTES = 1 << 16;
/** Frame numbers that are read at a time, in bytes. */
const PFN_WINDOW_BYTES = 1 << 20;
const PFN_BYTES = 8;
/** High half of XC_CORE_INVALID_PFN, all ones: a page that went away while it was dumped. */
const INVALID_PFN_HIGH = 0xffff_ffff;

/** XEN_ELFNOTE_DUMPCORE_HEADER: xch_magic, xch_nr_vcpus, xch_nr_pages, xch_page_size: u64 each */
const NOTE_NAME_XEN = 'Xen';
const NT_DUMPCORE_HEADER = 0x2000001;
const HEADER_NOTE_SIZE = 32;
const HEADER_NOTE_PAGE_SIZE_AT = 24;
/** xch_magic of a guest with hardware virtualisation (XC_CORE_MAGIC_HVM) */
const MAGIC_HVM = 0xf00febeen;

/** Size of vcpu_guest_context on x86_64 (xen/include/public/arch-x86/xen.h) and offsets of its fields. */
const CONTEXT_SIZE = 5168;
const USER_REGS = 520;
const CTRLREG = 4984;
const FS_BASE = 5144;
const GS_BASE_KERNEL = 5152;
const GS_BASE_USER = 5160;

/** cpu_user_regs of x86_64 (arch-x86/xen-x86_64.h): general registers by offset. */
const GENERAL_OFFSETS: Readonly<Record<GeneralRegister, number>> = {
  r15: 0,
  r14: 8,
  r13: 16,
  r12: 24,
  rbp: 32,
  rbx: 40,
  r11: 48,
  r10: 56,
  r9: 64,
  r8: 72,
  rax: 80,
  rcx: 88,
  rdx: 96,
  rsi: 104,
  rdi: 112,
  rip: 128,
  rflags: 144,
  rsp: 152,
};
const SELECTOR_OFFSETS = { cs: 136, ss: 160, es: 168, ds: 176, fs: 184, gs: 192 } as const;

/** CR4.PAE (Intel SDM vol. 3, 2.5) */
const CR4_PAE = 1n << 5n;

type Sections = ReadonlyMap<string, SectionHeader>;

/** Whether a core's header is of the kind that `xl dump-core` writes: sections and no program headers. */
export function isXenCore(header: DecodedElfHeader): boolean {
  return header.phnum === 0 && header.shnum > 0;
}

/**
 * Reads the headers of a Xen core, as if its runs of pages were PT_LOADs.
 * @throws VmcoreError BAD_INPUT, TRUNCATED, LIMIT, READ; UNSUPPORTED for a paravirtual guest
 */
export async function readXenCore(
  reader: CoreReader,
  header: DecodedElfHeader,
  limits: ElfLimits,
): Promise<CoreHeaders> {
  const sections = await readSections(reader, header);
  await checkGuestKind(reader, sections, limits);
  const loads = await readPageRuns(reader, sections, limits);
  if (loads.length === 0) throw badInput(`${reader.name} holds no memory: ${SECTION_PFN} names no page`);
  const cpus = await readCpus(reader, sections, limits);
  const arch = header.machine === EM_X86_64 ? 'x86_64' : 'i386';
  return { arch, loads, cpus, notes: [], noteNames: new Set(), programHeaders: [] };
}

async function readSections(reader: CoreReader, header: DecodedElfHeader): Promise<Sections> {
  const { name } = reader;
  const { shdr: size } = ELF_SIZES[header.class];
  if (header.shentsize !== size)
    throw badInput(
      `${name} has an e_shentsize of ${header.shentsize}, but section headers of its class have ${size} bytes`,
    );
  checkOffset(name, header.shoff, 'the section header table');
  const bytes = await reader.read(header.shoff, header.shnum * size, `the table of ${header.shnum} section headers`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const table = Array.from({ length: header.shnum }, (_, i) => decodeSectionHeader(view, i * size, header.class));
  const namesSection = table[header.shstrndx];
  if (!namesSection) throw badInput(`${name} has no program headers and no names of sections, so no memory`);
  const names = await readSection(reader, namesSection, 'the table of section names', MAX_NAMES_BYTES);
  return new Map(table.map((section) => [sectionName(names, section.name), section]));
}

function sectionName(names: Uint8Array, at: number): string {
  const end = names.indexOf(0, at);
  return Buffer.from(names.subarray(at, end < 0 ? at : end)).toString('latin1');
}

async function readSection(
  reader: CoreReader,
  section: SectionHeader,
  what: string,
  limit: number,
): Promise<Uint8Array> {
  if (section.size > limit)
    throw new VmcoreError('LIMIT', `${reader.name}: ${what} has ${section.size} bytes, more than ${limit}`);
  checkOffset(reader.name, section.offset + section.size, what);
  return reader.read(section.offset, section.size, what);
}

function sectionOf(name: string, sections: Sections, wanted: string): SectionHeader {
  const section = sections.get(wanted);
  if (!section) throw badInput(`${name} has neither program headers nor a section ${wanted}, so no memory`);
  return section;
}

async function checkGuestKind(reader: CoreReader, sections: Sections, limits: ElfLimits): Promise<void> {
  const { name } = reader;
  const section = sectionOf(name, sections, SECTION_NOTE);
  const bytes = await readSection(reader, section, SECTION_NOTE, limits.maxNoteBytes);
  const note = parseNotes(bytes, `${name}, ${SECTION_NOTE}`).find(
    (candidate) => candidate.name === NOTE_NAME_XEN && candidate.type === NT_DUMPCORE_HEADER,
  );
  if (!note || note.desc.length < HEADER_NOTE_SIZE) throw badInput(`${name} has no Xen dump-core header note`);
  const view = new DataView(note.desc.buffer, note.desc.byteOffset, HEADER_NOTE_SIZE);
  if (view.getBigUint64(0, true) !== MAGIC_HVM || sections.has(SECTION_P2M))
    throw new VmcoreError(
      'UNSUPPORTED',
      `${name} is the core of a paravirtual Xen guest, whose page tables hold machine addresses; only HVM and PVH guests can be read`,
    );
  const pageSize = view.getBigUint64(HEADER_NOTE_PAGE_SIZE_AT, true);
  if (pageSize !== BigInt(PAGE_SIZE))
    throw badInput(`${name} has pages of ${pageSize} bytes, but x86 has ${PAGE_SIZE}`);
}

/** Runs of pages with ascending frame numbers, each as a PT_LOAD would have it. */
async function readPageRuns(reader: CoreReader, sections: Sections, limits: ElfLimits): Promise<LoadSegment[]> {
  const { name } = reader;
  const pages = sectionOf(name, sections, SECTION_PAGES);
  const pfns = sectionOf(name, sections, SECTION_PFN);
  checkOffset(name, pages.offset + pages.size, SECTION_PAGES);
  checkOffset(name, pfns.offset + pfns.size, SECTION_PFN);
  if (pfns.size % PFN_BYTES !== 0 || (pfns.size / PFN_BYTES) * PAGE_SIZE !== pages.size)
    throw badInput(
      `${name}: ${SECTION_PFN} has ${pfns.size} bytes, which does not fit the ${pages.size} bytes of ${SECTION_PAGES}`,
    );
  const runs = new PageRuns(name, pages.offset, limits.maxProgramHeaders);
  for (let at = 0; at < pfns.size; at += PFN_WINDOW_BYTES) {
    const bytes = await reader.read(pfns.offset + at, Math.min(PFN_WINDOW_BYTES, pfns.size - at), SECTION_PFN);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let i = 0; i < bytes.length; i += PFN_BYTES)
      runs.add((at + i) / PFN_BYTES, view.getUint32(i, true), view.getUint32(i + 4, true));
  }
  return runs.finish();
}

/** Gathers pages that adjoin in memory and in the file. */
class PageRuns {
  readonly #runs: LoadSegment[] = [];
  #firstPage = 0;
  #firstPfn = 0;
  #count = 0;

  constructor(
    readonly name: string,
    /** where `.xen_pages` begins in the file */
    readonly pagesOffset: number,
    readonly limit: number,
  ) {}

  /** Adds the page number `page` of the file; its frame number comes in halves, since a bigint a page is slow. */
  add(page: number, pfnLow: number, pfnHigh: number): void {
    if (pfnHigh === INVALID_PFN_HIGH) return;
    const pfn = pfnHigh * 2 ** 32 + pfnLow;
    if ((pfn + 1) * PAGE_SIZE > PHYSICAL_ADDRESS_LIMIT)
      throw badInput(
        `${this.name}: page ${page} has frame number 0x${pfn.toString(16)}, above the 52 bits of x86 addresses`,
      );
    const continues = page === this.#firstPage + this.#count && pfn === this.#firstPfn + this.#count;
    if (!continues) {
      this.#close();
      this.#firstPage = page;
      this.#firstPfn = pfn;
    }
    this.#count++;
  }

  finish(): LoadSegment[] {
    this.#close();
    return this.#runs;
  }

  #close(): void {
    if (this.#count === 0) return;
    if (this.#runs.length === this.limit)
      throw new VmcoreError('LIMIT', `${this.name} has more runs of pages than maxProgramHeaders = ${this.limit}`);
    const bytes = this.#count * PAGE_SIZE;
    this.#runs.push({
      index: this.#runs.length,
      paddr: this.#firstPfn * PAGE_SIZE,
      offset: this.pagesOffset + this.#firstPage * PAGE_SIZE,
      filesz: bytes,
      memsz: bytes,
      isVirtual: false,
    });
    this.#count = 0;
  }
}

async function readCpus(reader: CoreReader, sections: Sections, limits: ElfLimits): Promise<CpuState[]> {
  const section = sections.get(SECTION_PRSTATUS);
  if (!section) return [];
  if (section.size % CONTEXT_SIZE !== 0)
    throw badInput(
      `${reader.name}: ${SECTION_PRSTATUS} has ${section.size} bytes, not a multiple of ${CONTEXT_SIZE} (x86_64)`,
    );
  const bytes = await readSection(reader, section, SECTION_PRSTATUS, limits.maxNoteBytes);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: section.size / CONTEXT_SIZE }, (_, i) => decodeContext(view, i * CONTEXT_SIZE));
}

/** A CPU from its vcpu_guest_context, which has no descriptor tables and of segments only selectors and two bases. */
function decodeContext(view: DataView, at: number): CpuState {
  const u64 = (offset: number): bigint => view.getBigUint64(at + offset, true);
  const general = Object.fromEntries(
    Object.entries(GENERAL_OFFSETS).map(([name, offset]) => [name, u64(USER_REGS + offset)]),
  ) as Record<GeneralRegister, bigint>;
  const segment = (name: keyof typeof SELECTOR_OFFSETS, base = 0n): Segment => ({
    ...NULL_SEGMENT,
    selector: view.getUint16(at + USER_REGS + SELECTOR_OFFSETS[name], true),
    base,
  });
  // Xen names the bases by who uses them: in ring 0 the kernel's is the one in use, the other waits for swapgs.
  const inModule = (segment('cs').selector & 3) === 0;
  const bases = { kernel: u64(GS_BASE_KERNEL), user: u64(GS_BASE_USER), fs: u64(FS_BASE) };
  const [cr0, cr2, cr3, cr4] = [u64(CTRLREG), u64(CTRLREG + 16), u64(CTRLREG + 24), u64(CTRLREG + 32)];
  const wide = [general.rip, general.rsp, bases.kernel, bases.user, bases.fs].some((value) => value >> 32n !== 0n);
  return {
    ...general,
    cs: segment('cs'),
    ds: segment('ds'),
    es: segment('es'),
    fs: segment('fs', bases.fs),
    gs: segment('gs', inModule ? bases.kernel : bases.user),
    ss: segment('ss'),
    // EFER is not stored. Long mode needs PAE paging, and a 64-bit kernel has addresses above 4 GiB in some of these.
    longMode: (cr0 & CR0_PG) !== 0n && (cr4 & CR4_PAE) !== 0n && wide,
    system: {
      ldt: NULL_SEGMENT,
      tr: NULL_SEGMENT,
      gdt: NULL_SEGMENT,
      idt: NULL_SEGMENT,
      cr0,
      cr1: 0n,
      cr2,
      cr3,
      cr4,
      kernelGsBase: inModule ? bases.user : bases.kernel,
    },
  };
}
