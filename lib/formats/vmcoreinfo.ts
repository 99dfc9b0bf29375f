/**
 * VMCOREINFO: lines of `key=value` that a Linux kernel writes about itself for whoever reads its dump
 * (kernel/vmcore_info.c, before 6.9 kernel/crash_core.c; Documentation/admin-guide/kdump/vmcoreinfo.rst).
 *
 * Watch out for the bases of numbers, which the text does not mark: SYMBOL() and KERNELOFFSET are hexadecimal without
 * 0x; OFFSET(), SIZE(), LENGTH() and NUMBER() are decimal, and NUMBER() may be negative. A few NUMBER()s are written
 * with 0x (VMALLOC_START). QEMU (7.2 and 10.0) takes NUMBER(phys_base) for hexadecimal, which it is not.
 */

import type { ElfNote } from '../model/note.js';
import { align4, encodeNote, NOTE_HEADER_SIZE, NOTE_NAME_VMCOREINFO, parseNotes } from './notes.js';

/** What is read of a text. Linux writes one page of at most 64 KiB; of a larger note QEMU takes nothing. */
export const VMCOREINFO_LIMIT = 1 << 20;

/** A line of the text. Values may be anything; what has no such keys is another file. */
const LINE = /^[!-<>-~]+=/;

const DECIMAL = /^-?[0-9]{1,20}$/;
const PREFIXED = /^0x[0-9a-f]{1,16}$/i;
const HEXADECIMAL = /^(?:0x)?[0-9a-f]{1,16}$/i;

/** What VMCOREINFO says, by key. Asking for what is not there, or is no number, gives null. */
export class Vmcoreinfo {
  /** the lines in their order; of a key that comes twice the first, as makedumpfile and crash take it */
  readonly entries: ReadonlyMap<string, string>;

  constructor(entries: ReadonlyMap<string, string>) {
    this.entries = entries;
  }

  /** The value of a key as it is written: `get('OSRELEASE')`. */
  get(key: string): string | null {
    return this.entries.get(key) ?? null;
  }

  /** Virtual address of a symbol: `symbol('init_uts_ns')` for SYMBOL(init_uts_ns). */
  symbol(name: string): bigint | null {
    return hexadecimal(this.get(`SYMBOL(${name})`));
  }

  /** A number, which may be negative: `number('phys_base')` for NUMBER(phys_base). */
  number(name: string): bigint | null {
    return decimal(this.get(`NUMBER(${name})`));
  }

  /** Offset of a member in bytes: `offset('uts_namespace.name')`. */
  offset(member: string): bigint | null {
    return decimal(this.get(`OFFSET(${member})`));
  }

  /** Size of a type in bytes: `size('page')` for SIZE(page). */
  size(type: string): bigint | null {
    return decimal(this.get(`SIZE(${type})`));
  }

  /** Number of elements of an array: `length('node_data')` for LENGTH(node_data). */
  length(array: string): bigint | null {
    return decimal(this.get(`LENGTH(${array})`));
  }
}

/** What most readers of a dump want to know first; null where VMCOREINFO does not say. */
export interface VmcoreinfoFacts {
  /** the kernel's release, as `uname -r` prints it */
  readonly osRelease: string | null;
  /** build id of vmlinux, hexadecimal */
  readonly buildId: string | null;
  /** bytes of a page */
  readonly pageSize: number | null;
  /** what is to be added to the addresses of vmlinux, because of KASLR */
  readonly kernelOffset: bigint | null;
  /** what is to be added to (address - __START_KERNEL_map) for a physical address in the kernel's image */
  readonly physBase: bigint | null;
  /** whether the kernel uses 5-level page tables */
  readonly fiveLevels: boolean | null;
  /** when the kernel crashed, in seconds since 1970; only a kernel that did says it */
  readonly crashTime: bigint | null;
}

/**
 * Reads the text of VMCOREINFO. It comes from a guest and may be anything: what is not `key=value` is left out, what
 * follows a NUL or the first MiB too.
 * @param desc descriptor of the VMCOREINFO note, or the bytes of the text
 */
export function parseVmcoreinfo(desc: Uint8Array): Vmcoreinfo {
  const bounded = desc.subarray(0, VMCOREINFO_LIMIT);
  const nul = bounded.indexOf(0);
  const text = Buffer.from(nul < 0 ? bounded : bounded.subarray(0, nul)).toString('latin1');
  const entries = new Map<string, string>();
  for (const line of text.split(/\r?\n/)) {
    const equals = line.indexOf('=');
    const key = line.slice(0, Math.max(equals, 0));
    if (key !== '' && !entries.has(key)) entries.set(key, line.slice(equals + 1));
  }
  return new Vmcoreinfo(entries);
}

/** VMCOREINFO among the notes of a guest, or null. */
export function findVmcoreinfo(notes: readonly ElfNote[]): Vmcoreinfo | null {
  const note = notes.find(({ name }) => name === NOTE_NAME_VMCOREINFO);
  return note ? parseVmcoreinfo(note.desc) : null;
}

/** The main facts. */
export function vmcoreinfoFacts(info: Vmcoreinfo): VmcoreinfoFacts {
  const pageSize = decimal(info.get('PAGESIZE'));
  const levels = info.number('pgtable_l5_enabled');
  return {
    osRelease: info.get('OSRELEASE'),
    buildId: info.get('BUILD-ID'),
    pageSize: pageSize === null ? null : Number(pageSize),
    kernelOffset: hexadecimal(info.get('KERNELOFFSET')),
    physBase: info.number('phys_base'),
    fiveLevels: levels === null ? null : levels !== 0n,
    crashTime: decimal(info.get('CRASHTIME')),
  };
}

/**
 * The note that bytes are which stand where VMCOREINFO should be: the whole note, whatever its name (a Windows guest's
 * differs), or the text alone, which becomes a note of that name.
 */
export function vmcoreinfoNote(bytes: Uint8Array): ElfNote {
  return wholeNote(bytes) ?? encodeNote(NOTE_NAME_VMCOREINFO, 0, bytes);
}

/**
 * The same of bytes that may be something else altogether, as those of a file that a user names may.
 * @returns null when they are neither a note from end to end nor the text
 */
export function fileNote(bytes: Uint8Array): ElfNote | null {
  return wholeNote(bytes) ?? (isText(bytes) ? encodeNote(NOTE_NAME_VMCOREINFO, 0, bytes) : null);
}

/** Whether bytes are lines of `key=value`, the kernel's release among them. Zeros may follow: Linux has a page for it. */
function isText(bytes: Uint8Array): boolean {
  const text = Buffer.from(bytes).toString('latin1').replace(/\0+$/, '');
  const lines = text.split(/\r?\n/).filter((line) => line !== '');
  return !text.includes('\0') && lines.every((line) => LINE.test(line)) && /^OSRELEASE=./m.test(text);
}

function wholeNote(bytes: Uint8Array): ElfNote | null {
  const size = wholeNoteSize(bytes);
  if (size === null) return null;
  const padded = new Uint8Array(align4(size));
  padded.set(bytes.subarray(0, size));
  return parseNotes(padded, 'note')[0]!;
}

/**
 * Bytes of the one ELF note that `bytes` is from end to end, without its padding; null when it is none. Zeros may
 * follow: Linux ends its notes with a header of zeros. No text is a note, its first letters are a size of gigabytes.
 */
function wholeNoteSize(bytes: Uint8Array): number | null {
  if (bytes.length < NOTE_HEADER_SIZE) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const nameSize = view.getUint32(0, true);
  const descSize = view.getUint32(4, true);
  const size = NOTE_HEADER_SIZE + align4(nameSize) + descSize;
  const isNote = nameSize > 0 && descSize > 0 && size <= bytes.length;
  return isNote && bytes.subarray(size).every((byte) => byte === 0) ? size : null;
}

function decimal(text: string | null): bigint | null {
  return text !== null && (DECIMAL.test(text) || PREFIXED.test(text)) ? BigInt(text) : null;
}

function hexadecimal(text: string | null): bigint | null {
  return text !== null && HEXADECIMAL.test(text) ? BigInt(`0x${text.replace(/^0x/i, '')}`) : null;
}
