// LZO1X-1, as lzo1x_decompress_safe reads it.
//
// A stream alternates runs of literals and matches. The first byte of an instruction tells which:
//
//   0000LLLL                 a run of 3 + L literals (L = 0: 18 + an extension), only where no literals went before
//   001LLLLL + 16 bits       match of 2 + L bytes (L = 0: 33 + an extension), distance D + 1, from DDDDDDDD DDDDDDSS
//   LLLDDDSS + 8 bits        match of 1 + L = 3..8 bytes, distance H * 8 + D + 1 <= 2048, H being the second byte
//   00010001 00000000 twice  end of the stream
//
// A run of one to three literals has no instruction: its length is in the SS bits of the match before it. The first
// run of a stream may be the byte 17 + length. An extension is a zero byte for each 255 and a byte for what is left,
// which is never zero.
//
// Further distances and shorter matches exist in the format, but a page is too small for the first, and the second gain
// nothing when a match is four bytes at least.

import {
  copyLiterals,
  FAST_LEVEL,
  findMatch,
  keepPlace,
  matchLength,
  PLACE_BITS,
  PLACE_MASK,
  PLACES_BYTES,
  SHORTEST_INPUT,
  TAIL_BYTES,
} from './match';

/** Longest run that the first byte of a stream can tell. */
const FIRST_RUN_LIMIT: usize = 238;
const FIRST_RUN: usize = 17;
/** Longest runs without an instruction, and without an extension. */
const QUIET_RUN_LIMIT: usize = 3;
const SHORT_RUN_LIMIT: usize = 18;

const NEAR_LENGTH_LIMIT: usize = 8;
const NEAR_DISTANCE_LIMIT: usize = 2048;
const FAR_MATCH: u8 = 0x20;
const FAR_LENGTH_LIMIT: usize = 33;

/** End of the stream, little endian; its third byte is zero. */
const END_MARK: u16 = 0x0011;

// @ts-ignore: decorator
@inline
function writeExtension(out: usize, rest: usize): usize {
  while (rest > 255) {
    store<u8>(out++, 0);
    rest -= 255;
  }
  store<u8>(out, <u8>rest);
  return out + 1;
}

/** The first run of a stream, which has a form of its own. */
// @ts-ignore: decorator
@inline
function writeFirstRun(out: usize, from: usize, count: usize): usize {
  if (count <= FIRST_RUN_LIMIT) {
    store<u8>(out, <u8>(count + FIRST_RUN));
    return copyLiterals(from, out + 1, count);
  }
  return writeLongRun(out, from, count);
}

// @ts-ignore: decorator
@inline
function writeLongRun(out: usize, from: usize, count: usize): usize {
  store<u8>(out++, 0);
  out = writeExtension(out, count - SHORT_RUN_LIMIT);
  return copyLiterals(from, out, count);
}

/** A run behind a match. Its length is as good as random, so the two short forms are written without a branch. */
// @ts-ignore: decorator
@inline
function writeRun(out: usize, from: usize, count: usize): usize {
  if (count > SHORT_RUN_LIMIT) return writeLongRun(out, from, count);
  const isLoud = <usize>u32(count > QUIET_RUN_LIMIT);
  store<u8>(out - 2, load<u8>(out - 2) | <u8>(count & (isLoud - 1)));
  store<u8>(out, <u8>(count - QUIET_RUN_LIMIT));
  return copyLiterals(from, out + isLoud, count);
}

/** Near or far is as good as random, too. */
// @ts-ignore: decorator
@inline
function writeMatch(out: usize, distance: usize, size: usize): usize {
  const d = <u32>distance - 1;
  if (size > FAR_LENGTH_LIMIT) {
    store<u8>(out++, FAR_MATCH);
    out = writeExtension(out, size - FAR_LENGTH_LIMIT);
    store<u16>(out, <u16>(d << 2));
    return out + 2;
  }
  const near = ((<u32>size - 1) << 5) | ((d & 7) << 2) | ((d >>> 3) << 8);
  const far = <u32>FAR_MATCH | (<u32>size - 2) | (d << 10);
  const isNear = u32(size <= NEAR_LENGTH_LIMIT) & u32(distance <= NEAR_DISTANCE_LIMIT);
  store<u32>(out, far ^ ((near ^ far) & (0 - isNear)));
  return out + 3 - <usize>isNear;
}

// @ts-ignore: decorator
@inline
function encode(page: usize, length: usize, out: usize, places: usize, isFast: bool): usize {
  const start = out;
  const end = page + length;
  let anchor = page;
  if (length >= SHORTEST_INPUT) {
    memory.fill(places, 0, PLACES_BYTES);
    const last = end - TAIL_BYTES;
    let from = page + 1;
    while (from < last) {
      const match = findMatch(places, page, from, last, isFast);
      if (!match) break;
      const at = page + <usize>(match >>> PLACE_BITS);
      const earlier = page + <usize>(match & PLACE_MASK);
      if (anchor == page) out = writeFirstRun(out, anchor, at - anchor);
      else out = writeRun(out, anchor, at - anchor);
      const size = matchLength(at, earlier, end);
      out = writeMatch(out, at - earlier, size);
      from = at + size;
      anchor = from;
      keepPlace(places, page, from - 1, isFast);
    }
  }
  if (anchor > page) out = writeRun(out, anchor, end - anchor);
  else if (length) out = writeFirstRun(out, page, length);
  store<u16>(out, END_MARK);
  store<u8>(out, 0, 2);
  return out + 3 - start;
}

/** Encodes `length` bytes at `page`, and gives the size of the encoding: 4118 for a page at most. */
export function encodeLzo(page: usize, length: usize, out: usize, level: u32, places: usize): usize {
  // Two copies of one loop: its numbers are constants in each.
  if (level == FAST_LEVEL) return encode(page, length, out, places, true);
  return encode(page, length, out, places, false);
}
