/**
 * A reader of ELF cores that shares no line with lib/: the tests compare QEMU's files with ours through it. It believes
 * what it reads (the files are QEMU's or ours), and holds the headers and notes only.
 */
import { closeSync, openSync, readSync } from 'node:fs';

const PT_LOAD = 1;
const PT_NOTE = 4;
const PN_XNUM = 0xffff;

export interface ElfSegment {
  readonly type: number;
  readonly flags: number;
  /** 2^64-1 (2^32-1 in ELF32) in QEMU's files where nothing of the mapping is in the file. */
  readonly offset: bigint;
  readonly vaddr: bigint;
  readonly paddr: bigint;
  readonly filesz: bigint;
  readonly memsz: bigint;
  readonly align: bigint;
}

export interface ElfNote {
  readonly name: string;
  readonly type: number;
  readonly desc: Buffer;
  /** Header, name and descriptor with their padding. */
  readonly raw: Buffer;
}

export interface ElfOracle {
  readonly path: string;
  readonly class: 32 | 64;
  /** 62 = EM_X86_64, 3 = EM_386 */
  readonly machine: number;
  readonly type: number;
  readonly phoff: number;
  readonly shoff: number;
  /** As in the header: PN_XNUM when the number is in section header 0. */
  readonly phnum: number;
  readonly shnum: number;
  readonly segments: readonly ElfSegment[];
  readonly loads: readonly ElfSegment[];
  readonly notes: readonly ElfNote[];
}

export function readElf(path: string): ElfOracle {
  const fd = openSync(path, 'r');
  try {
    const header = readAt(fd, 0, 64);
    if (header.toString('latin1', 0, 4) !== '\x7fELF') throw new Error(`${path} is not ELF`);
    const wide = header[4] === 2;
    const word = (at32: number, at64: number) =>
      wide ? Number(header.readBigUInt64LE(at64)) : header.readUInt32LE(at32);
    const half = (at32: number, at64: number) => header.readUInt16LE(wide ? at64 : at32);
    const phoff = word(28, 32);
    const shoff = word(32, 40);
    const phentsize = half(42, 54);
    const phnum = half(44, 56);
    const shentsize = half(46, 58);
    const shnum = half(48, 60);
    const count = phnum === PN_XNUM ? readAt(fd, shoff, shentsize).readUInt32LE(wide ? 44 : 28) : phnum;
    const table = readAt(fd, phoff, count * phentsize);
    const segments = Array.from({ length: count }, (_, i) =>
      segment(table.subarray(i * phentsize, (i + 1) * phentsize), wide),
    );
    const notes = segments
      .filter(({ type }) => type === PT_NOTE)
      .flatMap(({ offset, filesz }) => readNotes(readAt(fd, Number(offset), Number(filesz))));
    return {
      path,
      class: wide ? 64 : 32,
      machine: header.readUInt16LE(18),
      type: header.readUInt16LE(16),
      phoff,
      shoff,
      phnum,
      shnum,
      segments,
      loads: segments.filter(({ type }) => type === PT_LOAD),
      notes,
    };
  } finally {
    closeSync(fd);
  }
}

/** The file's bytes of a physical range that one PT_LOAD holds, or undefined. */
export function readPhysical(elf: ElfOracle, paddr: number, length: number): Buffer | undefined {
  const at = BigInt(paddr);
  const end = at + BigInt(length);
  const load = elf.loads.find((load) => load.paddr <= at && end <= load.paddr + load.filesz);
  if (load === undefined) return undefined;
  const fd = openSync(elf.path, 'r');
  try {
    return readAt(fd, Number(load.offset + at - load.paddr), length);
  } finally {
    closeSync(fd);
  }
}

/** KERNEL_GS_BASE of each CPU: the last field of its `QEMU` note. */
export function kernelGsBases(elf: ElfOracle): bigint[] {
  return elf.notes.filter(({ name }) => name === 'QEMU').map(({ desc }) => desc.readBigUInt64LE(desc.length - 8));
}

function segment(entry: Buffer, wide: boolean): ElfSegment {
  const u32 = (at: number) => BigInt(entry.readUInt32LE(at));
  const u64 = (at: number) => entry.readBigUInt64LE(at);
  return wide
    ? {
        type: entry.readUInt32LE(0),
        flags: entry.readUInt32LE(4),
        offset: u64(8),
        vaddr: u64(16),
        paddr: u64(24),
        filesz: u64(32),
        memsz: u64(40),
        align: u64(48),
      }
    : {
        type: entry.readUInt32LE(0),
        offset: u32(4),
        vaddr: u32(8),
        paddr: u32(12),
        filesz: u32(16),
        memsz: u32(20),
        flags: entry.readUInt32LE(24),
        align: u32(28),
      };
}

function readNotes(bytes: Buffer): ElfNote[] {
  const notes: ElfNote[] = [];
  const padded = (length: number) => Math.ceil(length / 4) * 4;
  for (let at = 0; at + 12 <= bytes.length;) {
    const nameLength = bytes.readUInt32LE(at);
    const descLength = bytes.readUInt32LE(at + 4);
    const desc = at + 12 + padded(nameLength);
    const end = desc + padded(descLength);
    notes.push({
      name: bytes.toString('latin1', at + 12, at + 12 + nameLength).replace(/\0.*$/s, ''),
      type: bytes.readUInt32LE(at + 8),
      desc: bytes.subarray(desc, desc + descLength),
      raw: bytes.subarray(at, end),
    });
    at = end;
  }
  return notes;
}

function readAt(fd: number, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let done = 0; done < length;) {
    const n = readSync(fd, bytes, done, length - done, offset + done);
    if (n === 0) throw new Error(`end of file at ${offset + done}, ${length - done} bytes short`);
    done += n;
  }
  return bytes;
}
