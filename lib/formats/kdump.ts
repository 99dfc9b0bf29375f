/**
 * kdump-compressed vmcores as values: the main header, the sub header, the page descriptor.
 *
 *   block 0: disk_dump_header | block 1: kdump_sub_header, notes | bitmap of memory | bitmap of stored pages |
 *   a page_desc for each stored page | the pages, each compressed on its own
 *
 * Layouts are those of makedumpfile's diskdump_mod.h (and QEMU's include/system/dump.h, which has them packed). They are
 * C structures of the dumped machine: in those of 32 bits `unsigned long`, pointers and `time_t` take 4 bytes, and
 * 64-bit members are aligned to 4. All is little-endian, as x86 is; headers can be read in the other byte order too, to
 * tell whose they are.
 */

import { ELFCLASS32, ELFCLASS64, type ElfClass } from './elf.js';

/** disk_dump_header.signature of kdump, and of its ancestor diskdump */
export const KDUMP_SIGNATURE = 'KDUMP   ';
export const DISKDUMP_SIGNATURE = 'DISKDUMP';
/** disk_dump_header.header_version: the newest, with 64-bit page frame numbers */
export const KDUMP_HEADER_VERSION = 6;
/** disk_dump_header.block_size: the machine's page size */
export const KDUMP_BLOCK_SIZE = 4096;
/** Blocks that the main header takes (DISKDUMP_HEADER_BLOCKS) */
export const MAIN_HEADER_BLOCKS = 1;

/** page_desc.flags, and disk_dump_header.status: how pages are compressed */
export const DUMP_DH_COMPRESSED_ZLIB = 0x1;
export const DUMP_DH_COMPRESSED_LZO = 0x2;
export const DUMP_DH_COMPRESSED_SNAPPY = 0x4;
export const DUMP_DH_COMPRESSED_ZSTD = 0x20;
/** status: makedumpfile ran out of space */
export const DUMP_DH_COMPRESSED_INCOMPLETE = 0x8;

/** How pages can be compressed, by the names of QEMU's formats; zstd is makedumpfile's alone. */
export const PAGE_CODEC_FLAGS = {
  zlib: DUMP_DH_COMPRESSED_ZLIB,
  lzo: DUMP_DH_COMPRESSED_LZO,
  snappy: DUMP_DH_COMPRESSED_SNAPPY,
  zstd: DUMP_DH_COMPRESSED_ZSTD,
} as const;
export type PageCodec = keyof typeof PAGE_CODEC_FLAGS;

/** Linux's `struct new_utsname`: what `uname` prints. Each at most 64 characters. */
export interface Utsname {
  /** operating system: `Linux` */
  readonly sysname: string;
  /** host name */
  readonly nodename: string;
  /** `6.1.0-18-amd64` */
  readonly release: string;
  /** `#1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1 (2024-02-01)` */
  readonly version: string;
  /** `x86_64` or `i686` */
  readonly machine: string;
  readonly domainname: string;
}

/** Members of `struct new_utsname`, in order, and the bytes that each has with its NUL (__NEW_UTS_LEN + 1). */
export const UTSNAME_MEMBERS = ['sysname', 'nodename', 'release', 'version', 'machine', 'domainname'] as const;
export const UTSNAME_MEMBER_SIZE = 65;
export const UTSNAME_SIZE = UTSNAME_MEMBERS.length * UTSNAME_MEMBER_SIZE;

/** `struct disk_dump_header`. Members that kdump makes no use of are left out: 0 when encoded. */
export interface KdumpHeader {
  readonly signature: string;
  /** header_version */
  readonly version: number;
  readonly utsname: Utsname;
  /** DUMP_DH_COMPRESSED_*, 0 in old files */
  readonly status: number;
  /** block_size, in bytes */
  readonly blockSize: number;
  /** sub_hdr_size: blocks of sub header and notes */
  readonly subHeaderBlocks: number;
  /** bitmap_blocks: blocks of both bitmaps together */
  readonly bitmapBlocks: number;
  /** max_mapnr: number of page frames, at most 2^32 - 1; version 6 has all of it in the sub header */
  readonly maxMapnr: number;
  /** nr_cpus */
  readonly cpus: number;
}

/** `struct kdump_sub_header`. Page frame numbers are those of version 6 where the file has them. */
export interface KdumpSubHeader {
  /** phys_base: what is to be added to (address - __START_KERNEL_map) for a physical address; may wrap at 64 bits */
  readonly physBase: bigint;
  /** dump_level: DL_EXCLUDE_*, what was left out */
  readonly dumpLevel: number;
  /** split: not 0 when this is a part of a dump, from start_pfn to end_pfn */
  readonly split: number;
  readonly startPfn: number;
  readonly endPfn: number;
  /** file offset and bytes of the text of VMCOREINFO; 0 when there is none */
  readonly offsetVmcoreinfo: number;
  readonly sizeVmcoreinfo: number;
  /** file offset and bytes of the ELF notes */
  readonly offsetNote: number;
  readonly sizeNote: number;
  /** file offset and bytes of the log of what makedumpfile erased */
  readonly offsetEraseinfo: number;
  readonly sizeEraseinfo: number;
  /** max_mapnr_64: number of page frames */
  readonly maxMapnr: number;
}

/** `struct page_desc`: where a page is. */
export interface PageDescriptor {
  /** file offset */
  readonly offset: number;
  /** bytes in the file */
  readonly size: number;
  /** DUMP_DH_COMPRESSED_*, 0 when the page is stored as it is */
  readonly flags: number;
}

/** sizeof(struct page_desc): offset u64, size u32, flags u32, page_flags u64 (always 0) */
export const PAGE_DESCRIPTOR_SIZE = 24;

/** Offsets of the first members of `struct disk_dump_header`, the same in both classes. */
const VERSION_AT = 8;
const UTSNAME_AT = 12;

/** Where `status` is, behind the timestamp, and what the header's size is; the members from there on are 32 bits. */
const HEADER_LAYOUT = {
  [ELFCLASS32]: { status: 412, size: 452 },
  [ELFCLASS64]: { status: 424, size: 464 },
} as const;

/** Offsets from `status` of the members behind it. */
const BLOCK_SIZE_AT = 4;
const SUB_HDR_SIZE_AT = 8;
const BITMAP_BLOCKS_AT = 12;
const MAX_MAPNR_AT = 16;
const NR_CPUS_AT = 36;

/** Bytes of the largest main header. */
export const LARGEST_HEADER_SIZE = HEADER_LAYOUT[ELFCLASS64].size;

/**
 * Members of `struct kdump_sub_header`, and the header_version since which a file has them. `long` has the class's
 * width, `u32` and `u64` their own.
 */
const SUB_HEADER_MEMBERS = [
  ['physBase', 'long', 0],
  ['dumpLevel', 'u32', 1],
  ['split', 'u32', 2],
  ['startPfn', 'long', 2],
  ['endPfn', 'long', 2],
  ['offsetVmcoreinfo', 'u64', 3],
  ['sizeVmcoreinfo', 'long', 3],
  ['offsetNote', 'u64', 4],
  ['sizeNote', 'long', 4],
  ['offsetEraseinfo', 'u64', 5],
  ['sizeEraseinfo', 'long', 5],
  ['startPfn64', 'u64', 6],
  ['endPfn64', 'u64', 6],
  ['maxMapnr', 'u64', 6],
] as const;

type SubHeaderMember = (typeof SUB_HEADER_MEMBERS)[number][0];

/** sizeof(struct kdump_sub_header) of version 6 */
export const SUB_HEADER_SIZE = { [ELFCLASS32]: 80, [ELFCLASS64]: 104 } as const;

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Encodes `struct disk_dump_header`. */
export function encodeKdumpHeader(cls: ElfClass, header: KdumpHeader): Uint8Array {
  const { status, size } = HEADER_LAYOUT[cls];
  const bytes = new Uint8Array(size);
  const view = viewOf(bytes);
  bytes.set(Buffer.from(header.signature, 'latin1'));
  view.setUint32(VERSION_AT, header.version, true);
  bytes.set(encodeUtsname(header.utsname), UTSNAME_AT);
  view.setUint32(status, header.status, true);
  view.setUint32(status + BLOCK_SIZE_AT, header.blockSize, true);
  view.setUint32(status + SUB_HDR_SIZE_AT, header.subHeaderBlocks, true);
  view.setUint32(status + BITMAP_BLOCKS_AT, header.bitmapBlocks, true);
  view.setUint32(status + MAX_MAPNR_AT, header.maxMapnr, true);
  view.setUint32(status + NR_CPUS_AT, header.cpus, true);
  return bytes;
}

/**
 * Decodes `struct disk_dump_header` of one class.
 * @param bytes        the first LARGEST_HEADER_SIZE bytes of a file
 * @param littleEndian byte order
 */
export function decodeKdumpHeader(bytes: Uint8Array, cls: ElfClass, littleEndian = true): KdumpHeader {
  const { status } = HEADER_LAYOUT[cls];
  const view = viewOf(bytes);
  return {
    signature: Buffer.from(bytes.subarray(0, KDUMP_SIGNATURE.length)).toString('latin1'),
    version: view.getInt32(VERSION_AT, littleEndian),
    utsname: decodeUtsname(bytes.subarray(UTSNAME_AT, UTSNAME_AT + UTSNAME_SIZE)),
    status: view.getUint32(status, littleEndian),
    blockSize: view.getUint32(status + BLOCK_SIZE_AT, littleEndian),
    subHeaderBlocks: view.getUint32(status + SUB_HDR_SIZE_AT, littleEndian),
    bitmapBlocks: view.getUint32(status + BITMAP_BLOCKS_AT, littleEndian),
    maxMapnr: view.getUint32(status + MAX_MAPNR_AT, littleEndian),
    cpus: view.getUint32(status + NR_CPUS_AT, littleEndian),
  };
}

/**
 * The class of a file, which its header does not say: that in which block_size is this machine's page size and neither
 * sub header nor bitmaps are missing. In the wrong class other members stand there: in a 64-bit header read as one of
 * 32 bits sub_hdr_size is the upper half of microseconds, which is 0. So 32 bits are tried first. A file without memory
 * may have neither; its block_size has to do.
 * @returns null when the header makes sense in neither
 */
export function kdumpClass(bytes: Uint8Array): ElfClass | null {
  const classes = [ELFCLASS32, ELFCLASS64] as const;
  const headers = classes.map((cls) => ({ cls, ...decodeKdumpHeader(bytes, cls) }));
  const ours = headers.filter(({ blockSize }) => blockSize === KDUMP_BLOCK_SIZE);
  const whole = ours.find(({ subHeaderBlocks, bitmapBlocks }) => subHeaderBlocks > 0 && bitmapBlocks > 0);
  return (whole ?? ours.at(-1))?.cls ?? null;
}

/** Encodes `struct kdump_sub_header` of version 6. */
export function encodeKdumpSubHeader(cls: ElfClass, header: KdumpSubHeader): Uint8Array {
  const bytes = new Uint8Array(SUB_HEADER_SIZE[cls]);
  const view = viewOf(bytes);
  const values = { ...header, startPfn64: header.startPfn, endPfn64: header.endPfn };
  let at = 0;
  for (const [member, type] of SUB_HEADER_MEMBERS) {
    const width = memberWidth(type, cls);
    if (width === 8) view.setBigUint64(at, BigInt.asUintN(64, BigInt(values[member])), true);
    else view.setUint32(at, Number(BigInt.asUintN(32, BigInt(values[member]))), true);
    at += width;
  }
  return bytes;
}

/**
 * Decodes `struct kdump_sub_header`; members that came after `version` are 0.
 * @param bytes        SUB_HEADER_SIZE[cls] bytes from block 1
 * @param littleEndian byte order
 */
export function decodeKdumpSubHeader(
  bytes: Uint8Array,
  cls: ElfClass,
  version: number,
  littleEndian = true,
): KdumpSubHeader {
  const view = viewOf(bytes);
  const values = new Map<SubHeaderMember, bigint>();
  let at = 0;
  for (const [member, type, since] of SUB_HEADER_MEMBERS) {
    const width = memberWidth(type, cls);
    const value = width === 8 ? view.getBigUint64(at, littleEndian) : BigInt(view.getUint32(at, littleEndian));
    values.set(member, version >= since ? value : 0n);
    at += width;
  }
  const number = (member: SubHeaderMember): number => Number(values.get(member)!);
  return {
    physBase: values.get('physBase')!,
    dumpLevel: number('dumpLevel'),
    split: number('split'),
    startPfn: number(version >= KDUMP_HEADER_VERSION ? 'startPfn64' : 'startPfn'),
    endPfn: number(version >= KDUMP_HEADER_VERSION ? 'endPfn64' : 'endPfn'),
    offsetVmcoreinfo: number('offsetVmcoreinfo'),
    sizeVmcoreinfo: number('sizeVmcoreinfo'),
    offsetNote: number('offsetNote'),
    sizeNote: number('sizeNote'),
    offsetEraseinfo: number('offsetEraseinfo'),
    sizeEraseinfo: number('sizeEraseinfo'),
    maxMapnr: number('maxMapnr'),
  };
}

function memberWidth(type: 'long' | 'u32' | 'u64', cls: ElfClass): 4 | 8 {
  if (type === 'long') return cls === ELFCLASS64 ? 8 : 4;
  return type === 'u64' ? 8 : 4;
}

/** Encodes `struct new_utsname`; what is longer than 64 characters is cut. */
export function encodeUtsname(utsname: Utsname): Uint8Array {
  const bytes = new Uint8Array(UTSNAME_SIZE);
  UTSNAME_MEMBERS.forEach((member, i) => {
    const text = Buffer.from(utsname[member], 'latin1').subarray(0, UTSNAME_MEMBER_SIZE - 1);
    bytes.set(text, i * UTSNAME_MEMBER_SIZE);
  });
  return bytes;
}

/** Decodes `struct new_utsname`; bytes are taken as Latin-1, whatever they are. */
export function decodeUtsname(bytes: Uint8Array): Utsname {
  const members = UTSNAME_MEMBERS.map((member, i) => {
    const at = i * UTSNAME_MEMBER_SIZE;
    const text = Buffer.from(bytes.subarray(at, at + UTSNAME_MEMBER_SIZE)).toString('latin1');
    return [member, text.replace(/\0.*$/s, '')] as const;
  });
  return Object.fromEntries(members) as unknown as Utsname;
}

/** Encodes `struct page_desc` at `at` of a table. */
export function encodePageDescriptor(view: DataView, at: number, offset: number, size: number, flags: number): void {
  view.setUint32(at, offset >>> 0, true);
  view.setUint32(at + 4, Math.floor(offset / 2 ** 32), true);
  view.setUint32(at + 8, size, true);
  view.setUint32(at + 12, flags, true);
  view.setUint32(at + 16, 0, true);
  view.setUint32(at + 20, 0, true);
}

/** Decodes `struct page_desc` at `at` of a table; an offset above 2^53 is rounded, and stays above it. */
export function decodePageDescriptor(view: DataView, at: number): PageDescriptor {
  return {
    offset: view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32,
    size: view.getUint32(at + 8, true),
    flags: view.getUint32(at + 12, true),
  };
}
