/**
 * Zeros, found at memory speed. Most of a guest's memory is zero pages, and none of it need be written.
 */

import { PAGE_SIZE } from './stage.js';

/** A page of zeros to compare with; shared, never written. */
const ZERO_PAGE = Buffer.alloc(PAGE_SIZE);

/** A run of bytes that are not all zero: [start, end) within the data. */
export interface Run {
  readonly start: number;
  readonly end: number;
}

/** Whether all bytes are zero; at most a page of them. */
function isZeroPage(bytes: Buffer, start: number, end: number): boolean {
  // The first bytes settle most pages that are not zero, without a call into native code.
  if (bytes[start] !== 0 || bytes[end - 1] !== 0) return false;
  return bytes.compare(ZERO_PAGE, 0, end - start, start, end) === 0;
}

/**
 * The runs of whole pages that are not zero.
 * @param data  bytes whose first one is at a page boundary of the output; the last page may be short
 * @param merge zeros between two runs that are fewer than this count as data: a write less is worth some zeros
 */
export function nonZeroRuns(data: Uint8Array, merge: number): Run[] {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  const runs: { start: number; end: number }[] = [];
  let last: { start: number; end: number } | undefined;
  for (let start = 0; start < bytes.length; start += PAGE_SIZE) {
    const end = Math.min(start + PAGE_SIZE, bytes.length);
    if (isZeroPage(bytes, start, end)) continue;
    if (last && start - last.end < merge) last.end = end;
    else {
      last = { start, end };
      runs.push(last);
    }
  }
  return runs;
}
