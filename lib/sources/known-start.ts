/** What a file is, by its first bytes: what we read, and what else is known. */

import { CONTAINER_START_BYTES, describeContainer } from '../formats/containers.js';
import { ELFMAG } from '../formats/elf.js';
import { FLATTENED_SIGNATURE } from '../formats/flattened.js';
import { DISKDUMP_SIGNATURE, KDUMP_SIGNATURE } from '../formats/kdump.js';
import { winDmpBits } from '../formats/win-dmp.js';

/** Bytes that tell what a file is. */
export const START_BYTES = CONTAINER_START_BYTES;

export function isElf(start: Uint8Array): boolean {
  return ELFMAG.every((byte, i) => start[i] === byte);
}

export function isKdumpFile(start: Uint8Array): boolean {
  const text = Buffer.from(start).toString('latin1');
  return [KDUMP_SIGNATURE, DISKDUMP_SIGNATURE, FLATTENED_SIGNATURE].some((signature) => text.startsWith(signature));
}

/**
 * What a file is that is no raw memory, as a sentence without its subject: `is an ELF file; say …`.
 * @returns null when it may be
 */
export function notRawMemory(path: string, start: Uint8Array): string | null {
  const kind = isElf(start)
    ? 'an ELF file'
    : isKdumpFile(start)
      ? 'a kdump-compressed vmcore'
      : winDmpBits(start)
        ? 'a Windows crash dump'
        : null;
  return kind === null ? describeContainer(path, start) : `is ${kind}; say ${path} without raw:`;
}
