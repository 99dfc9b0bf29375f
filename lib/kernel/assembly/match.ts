// What LZO and Snappy share: both look for the latest place whose bytes hash alike, take the match if the first four of
// them are alike, too, and copy what lies between matches. Deflate spends more on its matches and has a parser of its own
// (parse.ts).

/** Slots of the hash table: 2^12 of them, one for each place of a page. */
const HASH_BITS: u32 = 12;
export const PLACES_BYTES: usize = 2 << HASH_BITS;

/** 2^64 divided by the golden ratio: spreads the low bytes of a product over its high bits. */
const HASH_FACTOR: u64 = 0x9e3779b97f4a7c15;

/**
 * Bytes that a place is hashed by. Four would find every match; by six, most of the short ones are passed over, which
 * save little and cost as much time as long ones: a third of the time for 3% of the output on the memory of a Linux
 * guest, and then about as small as liblzo2 makes it.
 */
const HASHED_BYTES: u64 = 6;

/** Bytes at the end of a page where no match is looked for, so that loads of words and their hashes stay inside. */
export const TAIL_BYTES: usize = 12;

/** An input shorter than this is all literals. */
export const SHORTEST_INPUT: usize = 16;

/** Every 32 bytes without a match, look at one place fewer: data without matches is passed over ever faster. */
export const SKIP_SHIFT: u32 = 5;

/** The slot of the place `at`. Reads 8 bytes. */
// @ts-ignore: decorator
@inline
export function placeSlot(places: usize, at: usize): usize {
  const hash = ((load<u64>(at) << (64 - 8 * HASHED_BYTES)) * HASH_FACTOR) >>> (64 - HASH_BITS);
  return places + ((<usize>hash) << 1);
}

/** Remembers a place within a match. One of them, the last, is worth its time: 1% of the output for 1% of the speed. */
// @ts-ignore: decorator
@inline
export function keepPlace(places: usize, page: usize, at: usize): void {
  store<u16>(placeSlot(places, at), <u16>(at - page));
}

/** How many bytes from `at` equal those from `earlier`, up to `end`. Reads up to 7 bytes past `end`. */
// @ts-ignore: decorator
@inline
export function equalBytes(at: usize, earlier: usize, end: usize): usize {
  const distance = at - earlier;
  let p = at;
  while (p < end) {
    const difference = load<u64>(p) ^ load<u64>(p - distance);
    if (difference) {
      p += <usize>(ctz(difference) >>> 3);
      break;
    }
    p += 8;
  }
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
