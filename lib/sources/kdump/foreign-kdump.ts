/**
 * Which machine a kdump is of that is not of x86, so that it is refused by name.
 *
 * makedumpfile says it in utsname.machine. QEMU writes `Unknown` there, for x86 too; but its notes begin with the
 * NT_PRSTATUS of the first CPU, which has a size of its own on each machine.
 */

import { ELFCLASS32, ELFCLASS64 } from '../../formats/elf.js';
import {
  decodeKdumpHeader,
  decodeKdumpSubHeader,
  type KdumpHeader,
  type KdumpSubHeader,
  MAIN_HEADER_BLOCKS,
  SUB_HEADER_SIZE,
} from '../../formats/kdump.js';
import { NOTE_HEADER_SIZE, NOTE_NAME_CORE, NT_PRSTATUS, prstatusLongMode } from '../../formats/notes.js';
import type { RandomFile } from '../../io/random-file.js';

/** `machine` of what is no x86 but may well come along. */
const FOREIGN_MACHINE = /^(aarch64|arm|s390|ppc|mips|riscv|loongarch|ia64|sparc)/;
/** `machine` of x86, as kernels have it. */
const X86_MACHINE = /^(x86_64|i\d86)$/;

/** Bytes of NT_PRSTATUS by byte order, as QEMU's dumps have them. */
const LITTLE_ENDIAN: ReadonlyMap<number, string> = new Map([
  [148, 'arm'],
  [204, 'riscv32'],
  [376, 'riscv64'],
  [392, 'aarch64'],
  [480, 'loongarch64'],
  [504, 'ppc64le'],
]);
const BIG_ENDIAN: ReadonlyMap<number, string> = new Map([
  [328, 'ppc'],
  [336, 's390x'],
  [392, 'aarch64_be'],
  [504, 'ppc64'],
]);

/** Page sizes that machines have: from 4 KiB to 256 KiB. */
const PAGE_SIZES: readonly number[] = Array.from({ length: 7 }, (_, i) => 4096 << i);

/** The machine that a header names; null when it names none, or x86. */
export function foreignMachine({ utsname }: KdumpHeader): string | null {
  return FOREIGN_MACHINE.test(utsname.machine) ? utsname.machine : null;
}

/** The machine whose CPUs have such notes as a kdump that is laid out as on x86 has; null when it may well be x86. */
export function foreignNotes(
  file: RandomFile,
  { utsname }: KdumpHeader,
  subHeader: Pick<KdumpSubHeader, 'offsetNote' | 'sizeNote'>,
): string | null {
  const size = prstatusBytes(file, subHeader, true);
  if (size === null || prstatusLongMode(size) !== null || X86_MACHINE.test(utsname.machine)) return null;
  return LITTLE_ENDIAN.get(size) ?? unknownMachine(size);
}

/**
 * The machine that a main header is of that makes no sense as one of x86: it may be big-endian, or have larger pages.
 * @param bytes the first LARGEST_HEADER_SIZE bytes of the file
 * @returns null when it makes no sense as any other's either
 */
export function foreignLayout(file: RandomFile, bytes: Uint8Array): string | null {
  for (const littleEndian of [true, false])
    for (const cls of [ELFCLASS64, ELFCLASS32] as const) {
      const { blockSize, subHeaderBlocks, version, utsname } = decodeKdumpHeader(bytes, cls, littleEndian);
      if (X86_MACHINE.test(utsname.machine)) return null;
      const at = MAIN_HEADER_BLOCKS * blockSize;
      if (!PAGE_SIZES.includes(blockSize) || subHeaderBlocks === 0 || at + SUB_HEADER_SIZE[cls] > file.size) continue;
      const subHeader = new Uint8Array(SUB_HEADER_SIZE[cls]);
      file.readSync(at, subHeader);
      const size = prstatusBytes(file, decodeKdumpSubHeader(subHeader, cls, version, littleEndian), littleEndian);
      const name = size === null ? undefined : (littleEndian ? LITTLE_ENDIAN : BIG_ENDIAN).get(size);
      return name ?? `a ${littleEndian ? 'little' : 'big'}-endian machine with pages of ${blockSize} bytes`;
    }
  return null;
}

function unknownMachine(size: number): string {
  return `a machine whose NT_PRSTATUS has ${size} bytes`;
}

/** Bytes of the NT_PRSTATUS that the notes begin with; null when they begin with something else. */
function prstatusBytes(
  file: RandomFile,
  { offsetNote, sizeNote }: Pick<KdumpSubHeader, 'offsetNote' | 'sizeNote'>,
  littleEndian: boolean,
): number | null {
  const name = Buffer.from(`${NOTE_NAME_CORE}\0`);
  const start = Buffer.alloc(NOTE_HEADER_SIZE + name.length);
  if (sizeNote < start.length || offsetNote + start.length > file.size) return null;
  file.readSync(offsetNote, start);
  const view = new DataView(start.buffer, start.byteOffset, start.length);
  const isPrstatus =
    view.getUint32(0, littleEndian) === name.length &&
    view.getUint32(8, littleEndian) === NT_PRSTATUS &&
    start.subarray(NOTE_HEADER_SIZE).equals(name);
  return isPrstatus ? view.getUint32(4, littleEndian) : null;
}
