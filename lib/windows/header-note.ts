/** The dump header that the guest's driver (virtio-win's fwcfg) leaves in the note that it announces as VMCOREINFO. */

import { NOTE_HEADER_SIZE } from '../formats/notes.js';
import { WIN_DMP_HEADER_SIZE, WIN_DMP_SIGNATURE, WIN_DMP_VALID, type WinDmpBits } from '../formats/win-dmp.js';
import { VmcoreError } from '../model/errors.js';
import type { Guest } from '../model/guest.js';
import type { ElfNote } from '../model/note.js';

/** What QEMU takes a note's header and name to have, whatever the name's length: 12 + `VMCOREINFO` padded. */
const NOTE_HEADER_AND_NAME = NOTE_HEADER_SIZE + 12;

const QEMU_BAD_SIZE = 'win-dump: invalid vmcoreinfo note size';

/** Bytes of a note as QEMU reckons them: by the sizes that it announces, each padded. */
function noteSize({ raw }: ElfNote): number {
  const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  const padded = (at: number) => Math.ceil(view.getUint32(at, true) / 4) * 4;
  return NOTE_HEADER_SIZE + padded(0) + padded(4);
}

function isHeaderSize(size: number): boolean {
  return ([64, 32] as const).some((bits) => size === NOTE_HEADER_AND_NAME + WIN_DMP_HEADER_SIZE[bits]);
}

/** A note that a Windows driver left, by its size; or one that begins as a dump header does, of the wrong size. */
function findHeaderNote(notes: readonly ElfNote[]): ElfNote | undefined {
  return (
    notes.find((note) => isHeaderSize(noteSize(note))) ??
    notes.find(({ raw }) => text(raw.subarray(NOTE_HEADER_AND_NAME), 4) === WIN_DMP_SIGNATURE)
  );
}

/** Whether a guest has a note with a dump header, be it right or wrong. */
export function hasWinDmpHeader(guest: Pick<Guest, 'notes'>): boolean {
  return findHeaderNote(guest.notes) !== undefined;
}

/**
 * The dump header that the guest's driver left, as it is.
 * @throws VmcoreError BAD_INPUT, with QEMU's text, when there is none or it is none
 */
export function winDmpHeaderOf(guest: Pick<Guest, 'notes'>): Uint8Array {
  const note = findHeaderNote(guest.notes);
  if (!note || !isHeaderSize(noteSize(note))) throw new VmcoreError('BAD_INPUT', QEMU_BAD_SIZE);
  // The last note of a segment may lack its padding.
  const header = new Uint8Array(noteSize(note) - NOTE_HEADER_AND_NAME);
  header.set(note.raw.subarray(NOTE_HEADER_AND_NAME));
  return header.subarray(0, WIN_DMP_HEADER_SIZE[checkHeader(header)]);
}

/** ASCII at the front of some bytes. */
export function text(bytes: Uint8Array, length: number): string {
  return Buffer.from(bytes.subarray(0, length)).toString('latin1');
}

/** As C's `%.4s` prints it, in JSON; but a message is one line, and moves no cursor. */
export function shown(bytes: Uint8Array): string {
  const text = Buffer.from(bytes.subarray(0, 4)).toString('utf8').replace(/\0.*$/s, '');
  return text.replaceAll(/\p{Cc}/gu, '\ufffd');
}

/** Whether a header is one. @returns which it is @throws VmcoreError BAD_INPUT, in QEMU's words */
export function checkHeader(header: Uint8Array): WinDmpBits {
  const invalid = (expected: string, got: Uint8Array) =>
    new VmcoreError('BAD_INPUT', `win-dump: invalid header, expected ${expected}, got '${shown(got)}'`);
  if (text(header, 4) !== WIN_DMP_SIGNATURE) throw invalid(`'${WIN_DMP_SIGNATURE}'`, header);
  const valid = header.subarray(4);
  const bits = ([64, 32] as const).find((bits) => text(valid, 4) === WIN_DMP_VALID[bits]);
  if (!bits) throw invalid(`'${WIN_DMP_VALID[32]}' or '${WIN_DMP_VALID[64]}'`, valid);
  if (header.length < WIN_DMP_HEADER_SIZE[bits]) throw new VmcoreError('BAD_INPUT', QEMU_BAD_SIZE);
  return bits;
}
