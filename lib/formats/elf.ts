/**
 * ELF core files as values: header, program headers, the section header that PN_XNUM needs.
 *
 * Layouts follow the gABI (elf.h): Elf32_Ehdr and Elf64_Ehdr, Elf32_Phdr and Elf64_Phdr, Elf32_Shdr and Elf64_Shdr.
 * Little-endian only: x86 is. Offsets and sizes are numbers where a file can have them and exact up to 2^53; p_vaddr
 * is a bigint.
 */

/** Bytes 0-3 of every ELF file: `\x7fELF` */
export const ELFMAG: Readonly<Uint8Array> = Uint8Array.of(0x7f, 0x45, 0x4c, 0x46);
/** e_ident[EI_CLASS] */
export const ELFCLASS32 = 1;
export const ELFCLASS64 = 2;
/** e_ident[EI_DATA]: little-endian */
export const ELFDATA2LSB = 1;
export const EV_CURRENT = 1;
/** e_type of a core file */
export const ET_CORE = 4;
/** e_machine */
export const EM_386 = 3;
export const EM_X86_64 = 62;
/** e_phnum when the real number stands in sh_info of section 0 */
export const PN_XNUM = 0xffff;
/** p_type */
export const PT_LOAD = 1;
export const PT_NOTE = 4;

/** e_ident[EI_CLASS] of the two classes */
export type ElfClass = typeof ELFCLASS32 | typeof ELFCLASS64;

/** p_offset of memory that the file does not hold: QEMU writes -1. */
export const NOT_STORED = -1;
/** p_paddr of a segment that has no physical address: /proc/kcore has -1 (fs/proc/kcore.c). */
export const NO_PHYSICAL_ADDRESS = -1;

/** Sizes of the structures of each class, in bytes. */
export const ELF_SIZES = {
  [ELFCLASS32]: { ehdr: 52, phdr: 32, shdr: 40 },
  [ELFCLASS64]: { ehdr: 64, phdr: 56, shdr: 64 },
} as const;

/** What a core file's header says. */
export interface ElfHeader {
  readonly class: ElfClass;
  /** e_machine */
  readonly machine: number;
  /** e_phoff */
  readonly phoff: number;
  /** e_phnum, the field as it stands */
  readonly phnum: number;
  /** e_shoff; 0 when there are no section headers */
  readonly shoff: number;
  /** e_shnum */
  readonly shnum: number;
}

/** Elf32_Phdr or Elf64_Phdr */
export interface ProgramHeader {
  readonly type: number;
  readonly flags: number;
  /** file offset, or NOT_STORED */
  readonly offset: number;
  readonly vaddr: bigint;
  /** guest physical address, or NO_PHYSICAL_ADDRESS */
  readonly paddr: number;
  readonly filesz: number;
  readonly memsz: number;
  readonly align: number;
}

/** Encodes Elf32_Ehdr or Elf64_Ehdr of a core file. */
export function encodeElfHeader(header: ElfHeader): Uint8Array {
  const sizes = ELF_SIZES[header.class];
  const bytes = new Uint8Array(sizes.ehdr);
  const view = new DataView(bytes.buffer);
  bytes.set(ELFMAG);
  bytes[4] = header.class;
  bytes[5] = ELFDATA2LSB;
  bytes[6] = EV_CURRENT;
  view.setUint16(16, ET_CORE, true);
  view.setUint16(18, header.machine, true);
  view.setUint32(20, EV_CURRENT, true);
  // e_entry stays 0; from here on the classes differ by the width of addresses.
  const is64 = header.class === ELFCLASS64;
  const tail = is64 ? 52 : 40;
  if (is64) {
    view.setBigUint64(32, BigInt(header.phoff), true);
    view.setBigUint64(40, BigInt(header.shoff), true);
  } else {
    view.setUint32(28, header.phoff, true);
    view.setUint32(32, header.shoff, true);
  }
  view.setUint16(tail, sizes.ehdr, true);
  view.setUint16(tail + 2, sizes.phdr, true);
  view.setUint16(tail + 4, header.phnum, true);
  // QEMU leaves e_shentsize 0 where there are no section headers.
  view.setUint16(tail + 6, header.shnum > 0 ? sizes.shdr : 0, true);
  view.setUint16(tail + 8, header.shnum, true);
  return bytes;
}

/** Encodes one program header at `at` of a table. */
export function encodeProgramHeader(view: DataView, at: number, cls: ElfClass, phdr: ProgramHeader): void {
  if (cls === ELFCLASS64) {
    view.setUint32(at, phdr.type, true);
    view.setUint32(at + 4, phdr.flags, true);
    view.setBigInt64(at + 8, BigInt(phdr.offset), true);
    view.setBigUint64(at + 16, phdr.vaddr, true);
    view.setBigUint64(at + 24, BigInt(phdr.paddr), true);
    view.setBigUint64(at + 32, BigInt(phdr.filesz), true);
    view.setBigUint64(at + 40, BigInt(phdr.memsz), true);
    view.setBigUint64(at + 48, BigInt(phdr.align), true);
  } else {
    view.setUint32(at, phdr.type, true);
    view.setUint32(at + 4, phdr.offset, true);
    view.setUint32(at + 8, Number(BigInt.asUintN(32, phdr.vaddr)), true);
    view.setUint32(at + 12, phdr.paddr, true);
    view.setUint32(at + 16, phdr.filesz, true);
    view.setUint32(at + 20, phdr.memsz, true);
    view.setUint32(at + 24, phdr.flags, true);
    view.setUint32(at + 28, phdr.align, true);
  }
}

/** Encodes a program header table. */
export function encodeProgramHeaders(cls: ElfClass, phdrs: readonly ProgramHeader[]): Uint8Array {
  const size = ELF_SIZES[cls].phdr;
  const bytes = new Uint8Array(size * phdrs.length);
  const view = new DataView(bytes.buffer);
  phdrs.forEach((phdr, i) => {
    encodeProgramHeader(view, i * size, cls, phdr);
  });
  return bytes;
}

/** Encodes section header 0, whose sh_info holds the number of program headers when e_phnum is PN_XNUM. */
export function encodePhnumSection(cls: ElfClass, phnum: number): Uint8Array {
  const bytes = new Uint8Array(ELF_SIZES[cls].shdr);
  new DataView(bytes.buffer).setUint32(cls === ELFCLASS64 ? 44 : 28, phnum, true);
  return bytes;
}

/** All bits of a 64-bit and of a 32-bit field: -1 */
const ALL_ONES = [0xffff_ffff_ffff_ffffn, 0xffff_ffff] as const;

function addressOf(value: bigint): number {
  return Number(value);
}

/** A field that may be -1, which means that there is none. */
function orNone(value: bigint | number): number {
  return ALL_ONES.some((ones) => value === ones) ? -1 : Number(value);
}

/** What decoding a header yields beyond what encoding one takes: fields that a hostile file can lie about. */
export interface DecodedElfHeader extends ElfHeader {
  /** e_type */
  readonly type: number;
  /** e_phentsize in bytes */
  readonly phentsize: number;
  /** e_shentsize in bytes */
  readonly shentsize: number;
  /** e_shstrndx: the section that holds the names of sections */
  readonly shstrndx: number;
}

/**
 * Decodes Elf32_Ehdr or Elf64_Ehdr.
 * @param bytes at least the 64 bytes of an Elf64_Ehdr, or 52 when e_ident says ELFCLASS32
 * @returns null when it is no little-endian ELF header
 */
export function decodeElfHeader(bytes: Uint8Array): DecodedElfHeader | null {
  if (bytes.length < ELF_SIZES[ELFCLASS32].ehdr || ELFMAG.some((byte, i) => bytes[i] !== byte)) return null;
  const cls = bytes[4];
  if ((cls !== ELFCLASS32 && cls !== ELFCLASS64) || bytes[5] !== ELFDATA2LSB) return null;
  if (bytes.length < ELF_SIZES[cls].ehdr) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const is64 = cls === ELFCLASS64;
  const tail = is64 ? 52 : 40;
  return {
    class: cls,
    type: view.getUint16(16, true),
    machine: view.getUint16(18, true),
    phoff: is64 ? addressOf(view.getBigUint64(32, true)) : view.getUint32(28, true),
    shoff: is64 ? addressOf(view.getBigUint64(40, true)) : view.getUint32(32, true),
    phentsize: view.getUint16(tail + 2, true),
    phnum: view.getUint16(tail + 4, true),
    shentsize: view.getUint16(tail + 6, true),
    shnum: view.getUint16(tail + 8, true),
    shstrndx: view.getUint16(tail + 10, true),
  };
}

/** Decodes the program header at `at` of a table. Values above 2^53 come out rounded: callers check their bounds. */
export function decodeProgramHeader(view: DataView, at: number, cls: ElfClass): ProgramHeader {
  if (cls === ELFCLASS64) {
    return {
      type: view.getUint32(at, true),
      flags: view.getUint32(at + 4, true),
      offset: orNone(view.getBigUint64(at + 8, true)),
      vaddr: view.getBigUint64(at + 16, true),
      paddr: orNone(view.getBigUint64(at + 24, true)),
      filesz: addressOf(view.getBigUint64(at + 32, true)),
      memsz: addressOf(view.getBigUint64(at + 40, true)),
      align: addressOf(view.getBigUint64(at + 48, true)),
    };
  }
  return {
    type: view.getUint32(at, true),
    offset: orNone(view.getUint32(at + 4, true)),
    vaddr: BigInt(view.getUint32(at + 8, true)),
    paddr: orNone(view.getUint32(at + 12, true)),
    filesz: view.getUint32(at + 16, true),
    memsz: view.getUint32(at + 20, true),
    flags: view.getUint32(at + 24, true),
    align: view.getUint32(at + 28, true),
  };
}

/** Elf32_Shdr or Elf64_Shdr, as far as a core's reader needs it. */
export interface SectionHeader {
  /** sh_name: offset of the name in the section that e_shstrndx names */
  readonly name: number;
  readonly type: number;
  /** sh_offset, in the file */
  readonly offset: number;
  /** sh_size in bytes */
  readonly size: number;
  /** sh_info: the number of program headers, in section 0 of a core with PN_XNUM */
  readonly info: number;
}

/** Decodes the section header at `at` of a table. Values above 2^53 come out rounded: callers check their bounds. */
export function decodeSectionHeader(view: DataView, at: number, cls: ElfClass): SectionHeader {
  const is64 = cls === ELFCLASS64;
  return {
    name: view.getUint32(at, true),
    type: view.getUint32(at + 4, true),
    offset: is64 ? addressOf(view.getBigUint64(at + 24, true)) : view.getUint32(at + 16, true),
    size: is64 ? addressOf(view.getBigUint64(at + 32, true)) : view.getUint32(at + 20, true),
    info: view.getUint32(at + (is64 ? 44 : 28), true),
  };
}
