/**
 * The bitmaps of a kdump, piece by piece: a bit for each page frame number, the lowest bit of a byte first.
 *
 * A guest with memory at high addresses has large bitmaps (32 MiB for 1 TiB), nearly all of them all zeros or all ones.
 * So they are made in pieces, on demand; zeros are skipped and ones are a shared buffer.
 */

import type { PageExclusion } from '../model/page-exclusion.js';
import type { Extent } from '../model/stage.js';
import { type KdumpLayout, type PageRun, runEnd } from './kdump-layout.js';

/** Bytes of a piece: the bits of 2 GiB. */
const PIECE_BYTES = 64 * 1024;
const PIECE_PAGES = PIECE_BYTES * 8;

/** A piece whose pages are all there; shared, never written. */
const ONES = new Uint8Array(PIECE_BYTES).fill(0xff);

/** Extents of both bitmaps: of the pages that are memory, and of those that are stored. Pieces of zeros are left out. */
export function* bitmapExtents({
  runs,
  exclusion,
  bitmapOffset,
  bitmapBytes,
}: KdumpLayout): Generator<Extent, undefined> {
  for (const { start, bytes } of bitmapPieces(runs, bitmapBytes)) {
    yield pieceExtent(bitmapOffset + start, bytes);
    const stored = exclusion ? withoutExcluded(bytes, start * 8, exclusion) : bytes;
    if (stored) yield pieceExtent(bitmapOffset + bitmapBytes + start, stored);
  }
}

function pieceExtent(offset: number, bytes: Uint8Array): Extent {
  return { offset, length: bytes.length, data: bytes, memory: 0 };
}

/** A piece without the pages that are left out; null when no page is left. `bytes` may be shared and stays as it is. */
function withoutExcluded(bytes: Uint8Array, firstPfn: number, exclusion: PageExclusion): Uint8Array | null {
  const end = firstPfn + bytes.length * 8;
  if (exclusion.next(firstPfn, end, true) === end) return bytes;
  const stored = bytes.slice();
  for (const run of exclusion.runs(firstPfn, end, true)) clearBits(stored, run.start - firstPfn, run.end - firstPfn);
  return stored.some((byte) => byte !== 0) ? stored : null;
}

/** Pieces of one bitmap, in order, those of zeros left out. */
function* bitmapPieces(
  runs: readonly PageRun[],
  size: number,
): Generator<{ start: number; bytes: Uint8Array }, undefined> {
  let next = 0;
  for (let index = 0; index < runs.length;) {
    const run = runs[index]!;
    const piece = Math.max(next, Math.floor(run.firstPfn / PIECE_PAGES));
    const start = piece * PIECE_BYTES;
    yield { start, bytes: encodePiece(runs, index, piece * PIECE_PAGES, Math.min(PIECE_BYTES, size - start)) };
    next = piece + 1;
    while (index < runs.length && runEnd(runs[index]!) <= next * PIECE_PAGES) index++;
  }
}

/** The bits of the pages from `firstPfn` on; `index` is the first run that reaches there. */
function encodePiece(runs: readonly PageRun[], index: number, firstPfn: number, length: number): Uint8Array {
  const end = firstPfn + length * 8;
  const first = runs[index]!;
  if (first.firstPfn <= firstPfn && runEnd(first) >= end) return ONES.subarray(0, length);
  const bytes = new Uint8Array(length);
  for (let i = index; i < runs.length && runs[i]!.firstPfn < end; i++) {
    const run = runs[i]!;
    setBits(bytes, Math.max(run.firstPfn, firstPfn) - firstPfn, Math.min(runEnd(run), end) - firstPfn);
  }
  return bytes;
}

/** Sets the bits [from, to). */
function setBits(bytes: Uint8Array, from: number, to: number): void {
  const { firstByte, lastByte, head, tail } = places(from, to);
  if (firstByte === lastByte) {
    bytes[firstByte]! |= head & tail;
    return;
  }
  bytes[firstByte]! |= head;
  bytes.fill(0xff, firstByte + 1, lastByte);
  if (tail !== 0) bytes[lastByte]! |= tail;
}

/** Clears the bits [from, to). */
function clearBits(bytes: Uint8Array, from: number, to: number): void {
  const { firstByte, lastByte, head, tail } = places(from, to);
  if (firstByte === lastByte) {
    bytes[firstByte]! &= ~(head & tail);
    return;
  }
  bytes[firstByte]! &= ~head;
  bytes.fill(0, firstByte + 1, lastByte);
  if (tail !== 0) bytes[lastByte]! &= ~tail;
}

/** The bytes that the bits [from, to) begin and end in, and which of their bits these are; with tail 0 there is none. */
function places(from: number, to: number): { firstByte: number; lastByte: number; head: number; tail: number } {
  return {
    firstByte: from >>> 3,
    lastByte: to >>> 3,
    head: (0xff << (from & 7)) & 0xff,
    tail: (1 << (to & 7)) - 1,
  };
}
