// Where the working tables of one worker lie in its scratch memory.
//
// The kernel keeps no state of its own: no global that changes and no data segment, so that many workers can run one
// compiled module over one shared memory. All that an encoder remembers, from one page to the next or within a page,
// lies behind the scratch pointer that it is called with, at the offsets below, within 64 KiB. `init` fills the
// constant tables; the rest is written before it is read, for every page, and so the bytes of a page never depend on
// the pages before it.

/** Bytes of a page, the largest input of an encoder. */
export const PAGE_BYTES: usize = 4096;

/** Last place seen of each hash: u32[4096] for deflate, u16[4096] for LZO and Snappy. */
export const HASH_TABLE: usize = 0;
export const HASH_TABLE_BYTES: usize = 16384;

/** For each place of the page, its hash table entry exclusive-ored with the entry it replaced: u32[4096]. */
export const LINKS: usize = HASH_TABLE + HASH_TABLE_BYTES;
/** Slots of the hash table, for sixteen places at a time: u32[16]. */
export const SLOTS: usize = LINKS + 4 * PAGE_BYTES;

/** What the parser found, match by match: u32[1366], a match being three bytes long at least. */
export const SEQUENCES: usize = SLOTS + 64;
/** The bytes that no match covers, back to back: u8[4096] and room to write 16 bytes at a time. */
export const LITERALS: usize = SEQUENCES + 5504;

/** How often each symbol of the three alphabets is used: u32 each. LITERAL_COUNTS_2 counts every other literal. */
export const LITERAL_COUNTS: usize = LITERALS + PAGE_BYTES + 32;
export const DISTANCE_COUNTS: usize = LITERAL_COUNTS + 4 * 288;
export const LENGTH_COUNTS: usize = DISTANCE_COUNTS + 4 * 32;
export const LITERAL_COUNTS_2: usize = LENGTH_COUNTS + 4 * 32;
export const COUNTS_BYTES: usize = LITERAL_COUNTS_2 + 4 * 256 - LITERAL_COUNTS;

/** The codes of the three alphabets, and the fixed codes of the first two (constant): u32, code << 8 | length. */
export const LITERAL_CODES: usize = LITERAL_COUNTS + COUNTS_BYTES;
export const DISTANCE_CODES: usize = LITERAL_CODES + 4 * 288;
export const LENGTH_CODES: usize = DISTANCE_CODES + 4 * 32;
export const FIXED_LITERAL_CODES: usize = LENGTH_CODES + 4 * 32;
export const FIXED_DISTANCE_CODES: usize = FIXED_LITERAL_CODES + 4 * 288;

/** Symbol and extra bits of each match length 3..258 (constant): u32[256]. */
export const LENGTH_SYMBOLS: usize = FIXED_DISTANCE_CODES + 4 * 32;

/** Code lengths of both alphabets in a row, u8[320], and the same run-length coded, u16[320]. */
export const CODE_LENGTHS: usize = LENGTH_SYMBOLS + 4 * 256;
export const CODED_LENGTHS: usize = CODE_LENGTHS + 320;

/** What the Huffman builder works on; its own offsets start here. */
export const HUFFMAN: usize = CODED_LENGTHS + 2 * 320;
export const HUFFMAN_BYTES: usize = 4 * (320 + 320 + 320 + 320 + 64 + 32 + 32);
