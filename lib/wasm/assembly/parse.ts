// The parser of the deflate encoder: which bytes of a page are literals, and which repeat earlier ones.
//
// It goes through the page in blocks of 64 places, in two steps that suit the processor better than one loop over
// places:
//
// 1. *Link* (`linkBlock`): every place of the block takes its slot of the hash table and learns which place had it
//    before. This has no branches and hashes four places at a time. The hash is the product of four bytes and an odd
//    constant, so it is one to one: its top 12 bits choose the slot, the slot keeps the other 20 beside the place, and
//    when they are alike the four bytes are. Nothing has to be loaded from the earlier place to know that. The result
//    is a mask, a bit for each place where a match starts.
// 2. *Choose* (`parse`): jump from bit to bit of the mask. Literals are never looked at one by one.
//
// A block that lies within a match is not linked at all, which is why pages of one pattern take next to no time.
//
// Tables of 32-bit values, of which kernels have many, repeat three bytes of each value: the hash of four bytes does
// not see it, so places that repeat three bytes from a distance of four are put into the mask as well. On such pages
// that halves the output; elsewhere, other matches of three bytes gain little, and cost time.
//
// A match is taken lazily: as long as it is short, and one that starts a byte later is longer, that byte is a literal
// and the later match it is. `effort` is how many places of the same hash are looked at.
//
// The table starts as zeros, and a zero reads as place 0 with remaining hash 0. Only a word that hashes so can take
// it for a match, and `parse` counts equal bytes from the first on, so it comes to nothing. The word 0 would hash so,
// and is in every page; INVERT_BYTE makes it a word that is rare.

import {
  DISTANCE_COUNTS,
  HASH_TABLE,
  HASH_TABLE_BYTES,
  LENGTH_SYMBOLS,
  LINKS,
  LITERAL_COUNTS,
  LITERAL_COUNTS_2,
  LITERALS,
  SEQUENCES,
  SLOTS,
} from './layout';
import { copyLiterals, matchLength, PLACE_BITS, PLACE_MASK, SHORTEST_INPUT } from './match';

/** Symbol that ends a block. */
export const END_OF_BLOCK: usize = 256;

export const SHORTEST_MATCH: usize = 3;
const LONGEST_MATCH: usize = 258;

/** A match this long is taken as it is. */
const LONG_ENOUGH: usize = 16;

/** 2^32 divided by the golden ratio: one-to-one, and spreads the low bytes of a product over its high bits. */
const HASH_FACTOR: u32 = 0x9e3779b1;

const INVERT_BYTE: i8 = -99;

const BLOCK: usize = 64;

/** Distance at which three equal bytes are a match. */
const TABLE_STRIDE: usize = 4;

/**
 * A sequence is a run of literals and a match behind it, in one word: length of the run, then 8 bits of match length
 * less three, then 12 bits of distance less one. The last word is the length of the last run.
 */
export const RUN_MASK: u32 = 0xfff;
export const LENGTH_SHIFT: u32 = 12;
export const DISTANCE_SHIFT: u32 = 20;

// @ts-ignore: decorator
@inline
function increment(counts: usize, symbol: usize): void {
  const at = counts + (symbol << 2);
  store<u32>(at, load<u32>(at) + 1);
}

/** Extra bits of a distance, less one. */
// @ts-ignore: decorator
@inline
export function distanceExtraBits(d: u32): u32 {
  return 30 - clz(d | 2);
}

/** Symbol of a distance, less one, which has `extra` extra bits. */
// @ts-ignore: decorator
@inline
export function distanceSymbol(d: u32, extra: u32): u32 {
  return (d >>> extra) + (extra << 1);
}

/** Puts four places into the hash table, and gives a mask of those whose words were there. */
// @ts-ignore: decorator
@inline
function linkFour(from: usize, places: v128, table: v128, slots: usize, links: usize): v128 {
  const bytes = v128.xor(v128.load(from), i8x16.splat(INVERT_BYTE));
  const words = i8x16.shuffle(bytes, bytes, 0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6);
  const hashes = i32x4.mul(words, i32x4.splat(HASH_FACTOR));
  const entries = v128.or(i32x4.shl(hashes, PLACE_BITS), places);
  v128.store(slots, i32x4.add(table, i32x4.shl(i32x4.shr_u(hashes, 32 - PLACE_BITS), 2)));
  let slot = <usize>load<u32>(slots);
  let replaced = v128.load32_zero(slot);
  v128.store_lane<u32>(slot, entries, 0);
  slot = <usize>load<u32>(slots, 4);
  replaced = v128.load_lane<u32>(slot, replaced, 1);
  v128.store_lane<u32>(slot, entries, 1);
  slot = <usize>load<u32>(slots, 8);
  replaced = v128.load_lane<u32>(slot, replaced, 2);
  v128.store_lane<u32>(slot, entries, 2);
  slot = <usize>load<u32>(slots, 12);
  replaced = v128.load_lane<u32>(slot, replaced, 3);
  v128.store_lane<u32>(slot, entries, 3);
  const link = v128.xor(entries, replaced);
  v128.store(links, link);
  return i32x4.lt_u(link, i32x4.splat(1 << PLACE_BITS));
}

/** Sixteen places: mask of those whose three bytes are those at TABLE_STRIDE before them. */
// @ts-ignore: decorator
@inline
function repeatsTable(from: usize): v128 {
  const before = from - TABLE_STRIDE;
  const first = i8x16.eq(v128.load(from), v128.load(before));
  const second = i8x16.eq(v128.load(from, 1), v128.load(before, 1));
  const third = i8x16.eq(v128.load(from, 2), v128.load(before, 2));
  return v128.and(v128.and(first, second), third);
}

/** Links the places of a block, and gives the mask of those where matches start. */
function linkBlock(page: usize, block: usize, scratch: usize): u64 {
  const table = i32x4.splat(<u32>(scratch + HASH_TABLE));
  const slots = scratch + SLOTS;
  const four = i32x4.splat(4);
  let links = scratch + LINKS + (block << 2);
  let places = i32x4.add(i32x4.splat(<u32>block), i32x4(0, 1, 2, 3));
  let starts: u64 = 0;
  for (let done: usize = 0; done < BLOCK; done += 16) {
    const from = page + block + done;
    const a = linkFour(from, places, table, slots, links);
    places = i32x4.add(places, four);
    const b = linkFour(from + 4, places, table, slots + 16, links + 16);
    places = i32x4.add(places, four);
    const c = linkFour(from + 8, places, table, slots + 32, links + 32);
    places = i32x4.add(places, four);
    const d = linkFour(from + 12, places, table, slots + 48, links + 48);
    places = i32x4.add(places, four);
    let mask = i8x16.narrow_i16x8_s(i16x8.narrow_i32x4_s(a, b), i16x8.narrow_i32x4_s(c, d));
    if (from > page) mask = v128.or(mask, repeatsTable(from));
    starts |= (<u64>i8x16.bitmask(mask)) << done;
    links += 64;
  }
  return block ? starts : starts & ~1;
}

/** The earlier place that a place in the mask repeats. */
// @ts-ignore: decorator
@inline
function earlierPlace(links: usize, place: usize): usize {
  const link = load<u32>(links + (place << 2));
  const linked = <usize>link ^ place;
  const inTable = place - TABLE_STRIDE;
  return link <= PLACE_MASK ? linked : inTable;
}

/**
 * Follows the links from a place to `effort` places of the same hash for a longer match than the one that is known. Gives
 * length << PLACE_BITS | place. Only places that this page has linked lead on, so the scratch's past does not matter.
 */
function longestMatch(
  page: usize,
  end: usize,
  place: usize,
  earlier: usize,
  size: usize,
  effort: u32,
  links: usize,
): u32 {
  const at = page + place;
  let older = place;
  while (effort--) {
    const link = load<u32>(links + (older << 2));
    if (link > PLACE_MASK) break;
    older ^= <usize>link;
    if (load<u8>(page + older + size) != load<u8>(at + size)) continue;
    const olderSize = matchLength(at, page + older, end);
    if (olderSize > size) {
      size = olderSize;
      earlier = older;
    }
  }
  return ((<u32>size) << PLACE_BITS) | <u32>earlier;
}

/** Counts the literals, in two tables by turns, since the next often is the same, and would wait for the one before. */
function countLiterals(literals: usize, literalsEnd: usize, counts: usize, otherCounts: usize): void {
  const wordsEnd = literals + ((literalsEnd - literals) & ~3);
  while (literals < wordsEnd) {
    const word = load<u32>(literals);
    increment(counts, word & 255);
    increment(otherCounts, (word >>> 8) & 255);
    increment(counts, (word >>> 16) & 255);
    increment(otherCounts, word >>> 24);
    literals += 4;
  }
  while (literals < literalsEnd) increment(counts, load<u8>(literals++));
  for (let done: usize = 0; done < 4 * 256; done += 16) {
    v128.store(counts + done, i32x4.add(v128.load(counts + done), v128.load(otherCounts + done)));
  }
}

/**
 * Parses a page into sequences and counts its symbols; the counts are zero before. Gives the end of the sequences,
 * where the length of the last run is.
 */
export function parse(page: usize, length: usize, effort: u32, scratch: usize): usize {
  const links = scratch + LINKS;
  const literalCounts = scratch + LITERAL_COUNTS;
  const distanceCounts = scratch + DISTANCE_COUNTS;
  const end = page + length;
  let sequence = scratch + SEQUENCES;
  let literals = scratch + LITERALS;
  let anchor: usize = 0;
  let place: usize = 0;
  // A place is hashed by four bytes, and what follows the page must not decide: no match starts in the last three.
  const placesEnd: usize = length < SHORTEST_INPUT ? <usize>0 : length - SHORTEST_MATCH;
  if (placesEnd) memory.fill(scratch + HASH_TABLE, 0, HASH_TABLE_BYTES);
  while (place < placesEnd) {
    const block = place & ~(BLOCK - 1);
    const blockEnd = block + BLOCK;
    let starts = linkBlock(page, block, scratch) & (~(<u64>0) << (place - block));
    if (blockEnd > placesEnd) {
      const placesLeft: u64 = placesEnd - block;
      starts &= ((<u64>1) << placesLeft) - 1;
    }
    place = blockEnd;
    while (starts) {
      let start = block + <usize>ctz(starts);
      let earlier = earlierPlace(links, start);
      let size = matchLength(page + start, page + earlier, end);
      if (size < SHORTEST_MATCH) {
        starts &= starts - 1;
        continue;
      }
      if (effort > 1) {
        const best = longestMatch(page, end, start, earlier, size, effort, links);
        size = best >>> PLACE_BITS;
        earlier = best & PLACE_MASK;
      }
      while (true) {
        let nextEarlier = earlierPlace(links, start + 1);
        const isStart = bool(((starts >> (start - block)) >> 1) & 1);
        // The match that goes on from this one is a byte shorter, and not worth a look.
        const isOther = nextEarlier != earlier + 1;
        if (!(isStart && isOther && size < LONG_ENOUGH)) break;
        let nextSize = matchLength(page + start + 1, page + nextEarlier, end);
        if (effort > 1) {
          const best = longestMatch(page, end, start + 1, nextEarlier, nextSize, effort, links);
          nextSize = best >>> PLACE_BITS;
          nextEarlier = best & PLACE_MASK;
        }
        if (nextSize <= size) break;
        start++;
        size = nextSize;
        earlier = nextEarlier;
      }
      let run = <u32>(start - anchor);
      literals = copyLiterals(page + anchor, literals, run);
      const d = <u32>(start - earlier) - 1;
      const symbol = distanceSymbol(d, distanceExtraBits(d));
      place = start;
      do {
        const part = size < LONGEST_MATCH ? size : LONGEST_MATCH;
        const l = part - SHORTEST_MATCH;
        store<u32>(sequence, run | ((<u32>l) << LENGTH_SHIFT) | (d << DISTANCE_SHIFT));
        sequence += 4;
        increment(literalCounts, load<u16>(scratch + LENGTH_SYMBOLS + (l << 2)));
        increment(distanceCounts, symbol);
        place += part;
        size -= part;
        run = 0;
      } while (size >= SHORTEST_MATCH);
      anchor = place;
      if (place >= blockEnd) break;
      starts &= ~(<u64>0) << (place - block);
      place = blockEnd;
    }
  }
  store<u32>(sequence, <u32>(length - anchor));
  if (anchor < length) literals = copyLiterals(page + anchor, literals, length - anchor);
  countLiterals(scratch + LITERALS, literals, literalCounts, scratch + LITERAL_COUNTS_2);
  increment(literalCounts, END_OF_BLOCK);
  return sequence;
}
