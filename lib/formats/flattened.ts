/**
 * makedumpfile's flattened format: a file whose parts are written out of order, through a pipe that cannot seek.
 *
 *   header of 4096 bytes | { offset, size } data | { offset, size } data | ... | { -1, -1 }
 *
 * Each record says where in the file its data belong (makedumpfile.h: makedumpfile_header, makedumpfile_data_header;
 * QEMU: MakedumpfileHeader, MakedumpfileDataHeader). Numbers are signed, of 64 bits and big-endian, whatever the machine.
 * What no record covers is zeros. `makedumpfile -R` puts the file together again.
 */

/** makedumpfile_header.signature: these letters, then NULs up to 16 bytes */
export const FLATTENED_SIGNATURE = 'makedumpfile';
/** What the header takes (MAX_SIZE_MDF_HEADER); zeros but for its first 32 bytes */
export const FLATTENED_HEADER_SIZE = 4096;
/** sizeof(struct makedumpfile_data_header): offset, buf_size */
export const FLATTENED_RECORD_SIZE = 16;

/** makedumpfile_header.type and .version, and where they are */
const TYPE_FLAT_HEADER = 1n;
const VERSION_FLAT_HEADER = 1n;
const TYPE_AT = 16;
const VERSION_AT = 24;
/** offset and buf_size of the last record (END_FLAG_FLAT_HEADER) */
const END_FLAG = -1n;

/** `struct makedumpfile_data_header`: where the bytes behind it belong. */
export interface FlattenedRecord {
  /** offset in the file that is put together */
  readonly offset: number;
  /** number of bytes */
  readonly size: number;
}

/** The header, as bytes. */
export function encodeFlattenedHeader(): Uint8Array {
  const bytes = new Uint8Array(FLATTENED_HEADER_SIZE);
  const view = new DataView(bytes.buffer);
  bytes.set(Buffer.from(FLATTENED_SIGNATURE, 'latin1'));
  view.setBigInt64(TYPE_AT, TYPE_FLAT_HEADER);
  view.setBigInt64(VERSION_AT, VERSION_FLAT_HEADER);
  return bytes;
}

/** Whether bytes begin as a flattened file does. */
export function isFlattened(bytes: Uint8Array): boolean {
  const signature = Buffer.from(bytes.subarray(0, TYPE_AT)).toString('latin1');
  if (signature.replace(/\0.*$/s, '') !== FLATTENED_SIGNATURE || bytes.length < VERSION_AT) return false;
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getBigInt64(TYPE_AT) === TYPE_FLAT_HEADER;
}

/** Encodes what stands before the data of a record. */
export function encodeFlattenedRecord({ offset, size }: FlattenedRecord): Uint8Array {
  return encodePair(BigInt(offset), BigInt(size));
}

/** The record that ends the file. */
export function encodeFlattenedEnd(): Uint8Array {
  return encodePair(END_FLAG, END_FLAG);
}

function encodePair(first: bigint, second: bigint): Uint8Array {
  const bytes = new Uint8Array(FLATTENED_RECORD_SIZE);
  const view = new DataView(bytes.buffer);
  view.setBigInt64(0, first);
  view.setBigInt64(8, second);
  return bytes;
}

/**
 * Decodes what stands before the data of a record.
 * @returns 'end' for the last one; null for one that no writer makes: empty, negative, or beyond 2^53
 */
export function decodeFlattenedRecord(bytes: Uint8Array): FlattenedRecord | 'end' | null {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const first = view.getBigInt64(0);
  const second = view.getBigInt64(8);
  if (first === END_FLAG && second === END_FLAG) return 'end';
  const offset = Number(first);
  const size = Number(second);
  return offset >= 0 && size > 0 && Number.isSafeInteger(offset + size) ? { offset, size } : null;
}
