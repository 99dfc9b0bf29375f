/**
 * The headers of a kdump-compressed vmcore, from a file that may be anything: every number is checked before it is used
 * as an offset or as a size.
 *
 * Who writes what: makedumpfile headers of version 1 to 6, with pages of zeros and others left out; QEMU version 6, with
 * nothing left out; the older diskdump (signature DISKDUMP) a sub header that we have no use for.
 */

import { VmcoreError } from '../../model/errors.js';
import { ELFCLASS64, type ElfClass } from '../../formats/elf.js';
import {
  DISKDUMP_SIGNATURE,
  DUMP_DH_COMPRESSED_INCOMPLETE,
  decodeKdumpHeader,
  decodeKdumpSubHeader,
  KDUMP_HEADER_VERSION,
  KDUMP_SIGNATURE,
  type KdumpHeader,
  type KdumpSubHeader,
  kdumpClass,
  LARGEST_HEADER_SIZE,
  MAIN_HEADER_BLOCKS,
  SUB_HEADER_SIZE,
} from '../../formats/kdump.js';
import { NOTE_NAME_CORE, NT_PRSTATUS, parseNotes, prstatusLongMode } from '../../formats/notes.js';
import { vmcoreinfoNote } from '../../formats/vmcoreinfo.js';
import { PHYSICAL_ADDRESS_LIMIT } from '../../model/physical-memory.js';
import { foreignLayout, foreignMachine, foreignNotes } from './foreign-kdump.js';
import type { RandomFile } from '../../io/random-file.js';
import type { ElfNote } from '../../model/note.js';

/** What a kdump may make us hold. */
export interface KdumpLimits {
  /** bytes of one bitmap that are not zeros, in pieces of 64 KiB; 8 pages a byte */
  readonly maxBitmapBytes: number;
  /** bytes of all notes */
  readonly maxNoteBytes: number;
  /** runs of memory in the bitmap */
  readonly maxBlocks: number;
}

/** Enough for 32 TiB of memory, and for the notes of QEMU's 4096 CPUs (3.4 MB). */
export const DEFAULT_KDUMP_LIMITS: KdumpLimits = { maxBitmapBytes: 2 ** 30, maxNoteBytes: 2 ** 22, maxBlocks: 2 ** 20 };

/** What the headers of a kdump say; its numbers are checked. */
export interface KdumpHeaders {
  readonly class: ElfClass;
  readonly header: KdumpHeader;
  /** null for diskdump and for version 0, which have none of it */
  readonly subHeader: KdumpSubHeader | null;
  /** number of page frames */
  readonly maxMapnr: number;
  /** file offset of the bitmap of memory that exists; the same as the other where the file has one only */
  readonly memoryBitmapOffset: number;
  /** file offset of the bitmap of pages that are stored */
  readonly storedBitmapOffset: number;
  /** file offset of the first page's descriptor */
  readonly descriptorsOffset: number;
  readonly notes: readonly ElfNote[];
  /** whether the first CPU is in long mode */
  readonly longMode: boolean;
}

/** What a file without sub header has for it. */
const NO_NOTES = { offsetNote: 0, sizeNote: 0, offsetVmcoreinfo: 0, sizeVmcoreinfo: 0 } as const;

/** Whether a file begins as a kdump or diskdump does. */
export function isKdump(start: Uint8Array): boolean {
  const signature = Buffer.from(start.subarray(0, KDUMP_SIGNATURE.length)).toString('latin1');
  return signature === KDUMP_SIGNATURE || signature === DISKDUMP_SIGNATURE;
}

/**
 * Reads and checks the headers.
 * @throws VmcoreError BAD_INPUT, TRUNCATED, UNSUPPORTED (another machine, a part of a split dump), LIMIT, READ
 */
export function readKdumpHeaders(file: RandomFile, limits: KdumpLimits): KdumpHeaders {
  const { cls, header } = readMainHeader(file);
  const subHeader = readSubHeader(file, cls, header);
  const foreign = subHeader && foreignNotes(file, header, subHeader);
  if (foreign) throw notOfX86(file, foreign);
  if (subHeader && subHeader.split !== 0)
    throw new VmcoreError(
      'UNSUPPORTED',
      `${file.name} is one part of a split dump (page frames ${subHeader.startPfn} to ${subHeader.endPfn}); put the parts together with 'makedumpfile --reassemble'`,
    );
  const maxMapnr = header.version >= KDUMP_HEADER_VERSION && subHeader ? subHeader.maxMapnr : header.maxMapnr;
  const bitmaps = placeBitmaps(file, header, maxMapnr);
  const notes = readNotes(file, subHeader ?? NO_NOTES, limits);
  return { class: cls, header, subHeader, maxMapnr, ...bitmaps, notes, longMode: isLongMode(cls, header, notes) };
}

function readMainHeader(file: RandomFile): { cls: ElfClass; header: KdumpHeader } {
  const bytes = readPart(file, 0, LARGEST_HEADER_SIZE, 'the main header');
  if (!isKdump(bytes)) throw bad(file, 'is not a kdump-compressed vmcore');
  const cls = kdumpClass(bytes);
  const header = decodeKdumpHeader(bytes, cls ?? ELFCLASS64);
  // Where the names are, is the same in both classes and byte orders.
  const foreign = foreignMachine(header) ?? (cls === null ? foreignLayout(file, bytes) : null);
  if (foreign !== null) throw notOfX86(file, foreign);
  if (cls === null) throw bad(file, 'has a kdump header that is damaged or not that of an x86 machine');
  const { version, status, bitmapBlocks } = header;
  if (version < 0 || version > KDUMP_HEADER_VERSION)
    throw new VmcoreError('UNSUPPORTED', `${file.name} has a kdump header of version ${version}, newer than 6 or none`);
  if (bitmapBlocks === 0) throw bad(file, 'holds no memory: it has no bitmap');
  if (header.signature === KDUMP_SIGNATURE && (status & DUMP_DH_COMPRESSED_INCOMPLETE) !== 0)
    throw new VmcoreError(
      'TRUNCATED',
      `${file.name} is marked as incomplete: makedumpfile ran out of space; its last pages are missing`,
    );
  return { cls, header };
}

function notOfX86(file: RandomFile, machine: string): VmcoreError {
  return new VmcoreError('UNSUPPORTED', `${file.name} is a kdump of ${machine}, not of x86`);
}

function readSubHeader(file: RandomFile, cls: ElfClass, header: KdumpHeader): KdumpSubHeader | null {
  if (header.signature === DISKDUMP_SIGNATURE || header.version === 0) return null;
  const bytes = readPart(file, MAIN_HEADER_BLOCKS * header.blockSize, SUB_HEADER_SIZE[cls], 'the sub header');
  return decodeKdumpSubHeader(bytes, cls, header.version);
}

/** Two bitmaps when they have room for all page frames in half of their blocks, else one (makedumpfile, crash). */
function placeBitmaps(
  file: RandomFile,
  { blockSize, subHeaderBlocks, bitmapBlocks }: KdumpHeader,
  maxMapnr: number,
): Pick<KdumpHeaders, 'memoryBitmapOffset' | 'storedBitmapOffset' | 'descriptorsOffset'> {
  const offset = (MAIN_HEADER_BLOCKS + subHeaderBlocks) * blockSize;
  const both = bitmapBlocks * blockSize;
  const half = Math.floor(bitmapBlocks / 2) * blockSize;
  const needed = Math.ceil(maxMapnr / 8);
  if (maxMapnr === 0 || maxMapnr > PHYSICAL_ADDRESS_LIMIT / blockSize || needed > both)
    throw bad(file, `claims ${maxMapnr} page frames, but its bitmaps have ${both} bytes`);
  if (offset + both > file.size)
    throw new VmcoreError(
      'TRUNCATED',
      `${file.name} ends at byte ${file.size}, but its bitmaps reach to byte ${offset + both}`,
    );
  return {
    memoryBitmapOffset: offset,
    storedBitmapOffset: needed <= half ? offset + half : offset,
    descriptorsOffset: offset + both,
  };
}

type NotePlaces = Pick<KdumpSubHeader, keyof typeof NO_NOTES>;

/** The notes; before version 4 there are none, but from 3 on the text of VMCOREINFO. */
function readNotes(file: RandomFile, places: NotePlaces, limits: KdumpLimits): readonly ElfNote[] {
  const { offsetNote, sizeNote, offsetVmcoreinfo, sizeVmcoreinfo } = places;
  if (sizeNote > 0) return parseNotes(readBounded(file, offsetNote, sizeNote, 'notes', limits), `${file.name}, notes`);
  if (sizeVmcoreinfo === 0) return [];
  return [vmcoreinfoNote(readBounded(file, offsetVmcoreinfo, sizeVmcoreinfo, 'VMCOREINFO', limits))];
}

function readBounded(file: RandomFile, offset: number, size: number, what: string, limits: KdumpLimits): Uint8Array {
  if (size > limits.maxNoteBytes)
    throw new VmcoreError(
      'LIMIT',
      `${file.name}: ${what} of ${size} bytes are more than maxNoteBytes = ${limits.maxNoteBytes}`,
    );
  return readPart(file, offset, size, what);
}

function readPart(file: RandomFile, offset: number, size: number, what: string): Uint8Array {
  if (offset + size > file.size)
    throw new VmcoreError(
      'TRUNCATED',
      `${file.name} ends at byte ${file.size}, but ${what} reach${/s$/.test(what) ? '' : 'es'} to byte ${offset + size}`,
    );
  const bytes = new Uint8Array(size);
  file.readSync(offset, bytes);
  return bytes;
}

/** NT_PRSTATUS is in the first CPU's layout; a file without any tells by its machine or, in the end, by its class. */
function isLongMode(cls: ElfClass, { utsname }: KdumpHeader, notes: readonly ElfNote[]): boolean {
  const prstatus = notes.find(({ name, type }) => name === NOTE_NAME_CORE && type === NT_PRSTATUS);
  const byLayout = prstatus ? prstatusLongMode(prstatus.desc.length) : null;
  if (byLayout !== null) return byLayout;
  return utsname.machine === 'x86_64' || (cls === ELFCLASS64 && !/^i\d86$/.test(utsname.machine));
}

function bad(file: RandomFile, text: string): VmcoreError {
  return new VmcoreError('BAD_INPUT', `${file.name} ${text}`);
}
