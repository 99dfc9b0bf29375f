// What LZO and Snappy share: both look for the latest place whose bytes hash alike, take the match if the first four of
// them are alike, too, and copy what lies between matches. Deflate spends more on its matches and has a parser of its own
// (parse.ts).

/** Bits of a place in a page. */
export const PLACE_BITS: u32 = 12;
export const PLACE_MASK: u32 = (1 << PLACE_BITS) - 1;

/** Slots of the hash table: 2^12 of them, one for each place of a page. */
const HASH_BITS: u32 = 12;
export const PLACES_BYTES: usize = 2 << HASH_BITS;

/** 2^64 divided by the golden ratio: spreads the low bytes of a product over its high bits. */
const HASH_FACTOR: u64 = 0x9e3779b97f4a7c15;

/** Bytes at the end of a page where no match is looked for, so that loads of words and their hashes stay inside. */
export const TAIL_BYTES: usize = 12;

/** An input shorter than this is all literals. */
export const SHORTEST_INPUT: usize = 16;

/**
 * How matches are searched for, at two levels. The numbers say:
 *
 * - Bytes that a place is hashed by. Four would find every match; by six, most of the short ones are passed over, which
 *   save little and cost as much time as long ones.
 * - So many bytes from the last match on, every place is looked at.
 * - Further on, every so many bytes without a match, one place fewer: data without matches is passed over ever faster.
 *
 * On the memory of a Linux guest with program files in it, level 1 takes half of liblzo2's time and makes 17 % more, level
 * 2 takes as long and makes 1 % less. Other choices lie on the line between the two: none was faster and smaller at once.
 */
export const FAST_LEVEL: u32 = 1;
const FAST_HASH_SHIFT: u64 = 64 - 8 * 6;
const FAST_NEAR_BYTES: usize = 64;
const FAST_SKIP_SHIFT: u32 = 3;
const SMALL_HASH_SHIFT: u64 = 64 - 8 * 4;
const SMALL_NEAR_BYTES: usize = 32;
const SMALL_SKIP_SHIFT: u32 = 5;

/** The slot of a place, by its bytes: the first are the lowest, as they are loaded. */
// @ts-ignore: decorator
@inline
function slotOf(places: usize, bytes: u64, isFast: bool): usize {
  const hash = ((bytes << (isFast ? FAST_HASH_SHIFT : SMALL_HASH_SHIFT)) * HASH_FACTOR) >>> (64 - HASH_BITS);
  return places + ((<usize>hash) << 1);
}

/** Remembers a place by its bytes, and gives the one that had its slot before. */
// @ts-ignore: decorator
@inline
function takeSlot(places: usize, bytes: u64, place: usize, isFast: bool): u32 {
  const slot = slotOf(places, bytes, isFast);
  const earlier = <u32>load<u16>(slot);
  store<u16>(slot, <u16>place);
  return earlier;
}

/** Whether the four bytes at an earlier place of the page are the lowest of `bytes`. */
// @ts-ignore: decorator
@inline
function isAlike(page: usize, place: u32, bytes: u64): bool {
  return load<u32>(page + place) == <u32>bytes;
}

// @ts-ignore: decorator
@inline
function found(place: usize, earlier: u32): u32 {
  return ((<u32>place) << PLACE_BITS) | earlier;
}

/**
 * The first place from `from` on, as far as `last`, whose bytes were seen at an earlier place of the page; what is looked
 * at is remembered. Near the last match one load serves two places.
 * @returns place << PLACE_BITS | earlier place; 0 when there is none
 */
// @ts-ignore: decorator
@inline
export function findMatch(places: usize, page: usize, from: usize, last: usize, isFast: bool): u32 {
  let at = from;
  let near = from + (isFast ? FAST_NEAR_BYTES : SMALL_NEAR_BYTES);
  if (near > last) near = last;
  while (at < near) {
    const bytes = load<u64>(at);
    const first = takeSlot(places, bytes, at - page, isFast);
    if (isAlike(page, first, bytes)) return found(at - page, first);
    const second = takeSlot(places, bytes >>> 8, at + 1 - page, isFast);
    if (isAlike(page, second, bytes >>> 8)) return found(at + 1 - page, second);
    at += 2;
  }
  while (at < last) {
    const bytes = load<u64>(at);
    const earlier = takeSlot(places, bytes, at - page, isFast);
    if (isAlike(page, earlier, bytes)) return found(at - page, earlier);
    at += 1 + ((at - from) >>> (isFast ? FAST_SKIP_SHIFT : SMALL_SKIP_SHIFT));
  }
  return 0;
}

/** Remembers a place within a match. One of them, the last, is worth its time: 1% of the output for 1% of the speed. */
// @ts-ignore: decorator
@inline
export function keepPlace(places: usize, page: usize, at: usize, isFast: bool): void {
  store<u16>(slotOf(places, load<u64>(at), isFast), <u16>(at - page));
}

/**
 * How many bytes from `at` equal those from `earlier`, up to `end`. Most matches end within the first 16, so that one
 * look tells. Reads up to 15 bytes past `end`.
 */
// @ts-ignore: decorator
@inline
export function matchLength(at: usize, earlier: usize, end: usize): usize {
  const distance = at - earlier;
  let p = at;
  let different = i8x16.bitmask(i8x16.ne(v128.load(p), v128.load(p - distance)));
  while (!different) {
    p += 16;
    if (p >= end) return end - at;
    different = i8x16.bitmask(i8x16.ne(v128.load(p), v128.load(p - distance)));
  }
  p += <usize>ctz(different);
  return (p < end ? p : end) - at;
}

/** Copies `count` bytes, 16 at a time: reads and writes up to 16 bytes more. Gives the end of the copy. */
// @ts-ignore: decorator
@inline
export function copyLiterals(from: usize, to: usize, count: usize): usize {
  v128.store(to, v128.load(from));
  for (let done: usize = 16; done < count; done += 16) v128.store(to + done, v128.load(from + done));
  return to + count;
}
