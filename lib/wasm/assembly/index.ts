// The encoder module: one call encodes a batch of pages.
//
// All pointers are into the imported memory, which workers share; each worker has a scratch of its own (layout.ts),
// pages and outputs that nobody else writes meanwhile. Around them there has to be room: encoders read up to 16 bytes
// past the end of the pages, and write up to 64 past the last byte that a full output could have.

import { encodeZlib, initDeflate } from './deflate';
import { HASH_TABLE, PAGE_BYTES } from './layout';
import { encodeLzo } from './lzo';
import { encodeSnappy } from './snappy';
import { isZeroPage } from './zero';

/** Codecs by number; any other is Snappy. */
const ZLIB: u32 = 1;
const LZO: u32 = 2;

/** Kinds of pages. */
const ZERO: u8 = 0;
const STORED: u8 = 1;
const COMPRESSED: u8 = 2;

/** Makes a scratch ready for use, once. */
export function init(scratch: usize): void {
  initDeflate(scratch);
}

/**
 * Encodes 0 to 4096 bytes, whether that makes them shorter or not, and gives the size of the encoding.
 * @param level zlib: how many earlier places to compare with, 1 or more. LZO and Snappy: 1 is fast, 2 or more is small
 */
export function encodePage(codec: u32, page: usize, length: usize, out: usize, scratch: usize, level: u32): usize {
  if (codec == ZLIB) return encodeZlib(page, length, out, level, scratch);
  if (codec == LZO) return encodeLzo(page, length, out, level, scratch + HASH_TABLE);
  return encodeSnappy(page, length, out, level, scratch + HASH_TABLE);
}

/**
 * Encodes pages. Their encodings go to `out` back to back, as they are where they do not shrink; a zero page has
 * none. `sizes` gets the sizes of the encodings, u16 each, and `kinds` the kinds of the pages, u8 each. Gives the size
 * of all encodings.
 */
export function encodeBatch(
  codec: u32,
  pages: usize,
  count: usize,
  out: usize,
  sizes: usize,
  kinds: usize,
  scratch: usize,
  level: u32,
): usize {
  const start = out;
  const pagesEnd = pages + count * PAGE_BYTES;
  for (let page = pages; page < pagesEnd; page += PAGE_BYTES) {
    let kind = ZERO;
    let size: usize = 0;
    if (!isZeroPage(page)) {
      kind = COMPRESSED;
      size = encodePage(codec, page, PAGE_BYTES, out, scratch, level);
      if (size >= PAGE_BYTES) {
        kind = STORED;
        size = PAGE_BYTES;
        memory.copy(out, page, PAGE_BYTES);
      }
    }
    store<u16>(sizes, <u16>size);
    store<u8>(kinds, kind);
    sizes += 2;
    kinds += 1;
    out += size;
  }
  return out - start;
}
