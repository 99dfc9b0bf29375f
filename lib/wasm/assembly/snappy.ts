// Snappy's raw format: no frame, no checksum.
//
// The length of the input as a little-endian base-128 number, then elements. The low two bits of an element's first
// byte tell its kind:
//
//   LLLLLL00                 L + 1 literals, if L < 60; else L - 59 bytes follow that hold their number less one
//   DDDLLL01 + 8 bits        copy of 4 + L bytes, distance D * 256 + the second byte < 2048
//   LLLLLL10 + 16 bits       copy of 1 + L bytes, any distance that a page knows
//
// A longer match is several copies.

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

const LITERAL_ONE_BYTE: u32 = 60 << 2;
const LITERAL_TWO_BYTES: u32 = 61 << 2;
const SHORT_COPY: u32 = 1;
const LONG_COPY: u32 = 2;

const SHORT_LENGTH_LEAST: usize = 4;
const SHORT_LENGTH_LIMIT: usize = 11;
const SHORT_DISTANCE_LIMIT: usize = 2047;
const LONG_LENGTH_LIMIT: usize = 64;

// @ts-ignore: decorator
@inline
function writeLength(out: usize, length: u32): usize {
  if (length < 128) {
    store<u8>(out, <u8>length);
    return out + 1;
  }
  store<u16>(out, <u16>((length & 127) | 128 | ((length >>> 7) << 8)));
  return out + 2;
}

// @ts-ignore: decorator
@inline
function writeRun(out: usize, from: usize, count: usize): usize {
  const n = <u32>count - 1;
  if (n < 60) {
    store<u8>(out++, <u8>(n << 2));
  } else if (n < 256) {
    store<u16>(out, <u16>(LITERAL_ONE_BYTE | (n << 8)));
    out += 2;
  } else {
    store<u32>(out, LITERAL_TWO_BYTES | (n << 8));
    out += 3;
  }
  return copyLiterals(from, out, count);
}

// @ts-ignore: decorator
@inline
function writeLongCopy(out: usize, distance: usize, size: usize): usize {
  store<u32>(out, LONG_COPY | ((<u32>size - 1) << 2) | ((<u32>distance) << 8));
  return out + 3;
}

// @ts-ignore: decorator
@inline
function writeMatch(out: usize, distance: usize, size: usize): usize {
  while (size > LONG_LENGTH_LIMIT) {
    out = writeLongCopy(out, distance, LONG_LENGTH_LIMIT);
    size -= LONG_LENGTH_LIMIT;
  }
  if (size < SHORT_LENGTH_LEAST || size > SHORT_LENGTH_LIMIT || distance > SHORT_DISTANCE_LIMIT) {
    return writeLongCopy(out, distance, size);
  }
  const d = <u32>distance;
  store<u16>(out, <u16>(SHORT_COPY | ((<u32>(size - SHORT_LENGTH_LEAST)) << 2) | ((d >>> 8) << 5) | (d << 8)));
  return out + 2;
}

// @ts-ignore: decorator
@inline
function encode(page: usize, length: usize, out: usize, places: usize, isFast: bool): usize {
  const start = out;
  const end = page + length;
  let anchor = page;
  out = writeLength(out, <u32>length);
  if (length >= SHORTEST_INPUT) {
    memory.fill(places, 0, PLACES_BYTES);
    const last = end - TAIL_BYTES;
    let from = page + 1;
    while (from < last) {
      const match = findMatch(places, page, from, last, isFast);
      if (!match) break;
      const at = page + <usize>(match >>> PLACE_BITS);
      const earlier = page + <usize>(match & PLACE_MASK);
      if (at > anchor) out = writeRun(out, anchor, at - anchor);
      const size = matchLength(at, earlier, end);
      out = writeMatch(out, at - earlier, size);
      from = at + size;
      anchor = from;
      keepPlace(places, page, from - 1, isFast);
    }
  }
  if (end > anchor) out = writeRun(out, anchor, end - anchor);
  return out - start;
}

/** Encodes `length` bytes at `page`, and gives the size of the encoding: 4107 for a page at most. */
export function encodeSnappy(page: usize, length: usize, out: usize, level: u32, places: usize): usize {
  // Two copies of one loop: its numbers are constants in each.
  if (level == FAST_LEVEL) return encode(page, length, out, places, true);
  return encode(page, length, out, places, false);
}
