// zlib streams of one deflate block: a two-byte header, the block, and the Adler-32 checksum of the page.
//
// A page becomes the smallest of three blocks: stored as it is, with the fixed codes of the format, or with codes of
// its own. Which is smallest is known from the counts of the symbols before a bit is written. Codes of its own cost
// some 50 bytes to describe and much of the time to build, so they are not even considered where the fixed ones need
// less than the description would.
//
// All codes of the page's own are 14 bits at most: then four literals, or three and what was left from the byte
// before, or a match with its extra bits, fit into 64 bits, and the writers need to store no more often than that. A
// store writes eight bytes, whatever is still missing to a whole byte stays in `held`.

import { adler32 } from './adler32';
import { buildCode } from './huffman';
import {
  CODE_LENGTHS,
  CODED_LENGTHS,
  COUNTS_BYTES,
  DISTANCE_CODES,
  DISTANCE_COUNTS,
  FIXED_DISTANCE_CODES,
  FIXED_LITERAL_CODES,
  LENGTH_CODES,
  LENGTH_COUNTS,
  LENGTH_SYMBOLS,
  LITERAL_CODES,
  LITERAL_COUNTS,
  SEQUENCES,
} from './layout';
import {
  DISTANCE_SHIFT,
  distanceExtraBits,
  distanceSymbol,
  END_OF_BLOCK,
  LENGTH_SHIFT,
  parse,
  RUN_MASK,
  SHORTEST_MATCH,
} from './parse';

/** Deflate with a 32 KiB window, fastest level, no dictionary: 78 01, little endian. */
const ZLIB_HEADER: u16 = 0x0178;

/** First bits of a block: the last one, and its type. */
const STORED_BLOCK: u32 = 1;
const FIXED_BLOCK: u32 = 3;
const DYNAMIC_BLOCK: u32 = 5;
const BLOCK_START_BITS: u32 = 3;
/** Block start, rest of the byte, length and its complement: bits of a stored block but for its bytes. */
const STORED_OVERHEAD_BITS: u32 = 40;

const LITERAL_SYMBOLS: u32 = 286;
const DISTANCE_SYMBOLS: u32 = 30;
const LENGTH_SYMBOLS_COUNT: u32 = 19;
const FIRST_LENGTH_SYMBOL: u32 = 257;
const LAST_LENGTH_SYMBOL: u32 = 285;

const CODE_LIMIT: u32 = 14;
const LENGTH_CODE_LIMIT: u32 = 7;
const FIXED_DISTANCE_BITS: u32 = 5;

/** Bits below which no page has its codes described. */
const CHEAP_BITS: u32 = 200;

/** Symbols of the code of code lengths: the length before, three to six times; zeros, three to ten or more. */
const REPEAT: u32 = 16;
const ZEROS: u32 = 17;
const MANY_ZEROS: u32 = 18;
const REPEAT_LIMIT: u32 = 6;
const ZEROS_LIMIT: u32 = 10;
const MANY_ZEROS_LIMIT: u32 = 138;
const RUN_LEAST: u32 = 3;
const REPEAT_BITS: u32 = 2;
const ZEROS_BITS: u32 = 3;
const MANY_ZEROS_BITS: u32 = 7;
/** Behind a run of code lengths, and no code length. */
const NO_LENGTH: u8 = 255;
/** A run-length coded code length is symbol | extra << 5. */
const EXTRA_SHIFT: u32 = 5;

function reversed(code: u32, length: u32): u32 {
  let result: u32 = 0;
  while (length--) {
    result = (result << 1) | (code & 1);
    code >>>= 1;
  }
  return result;
}

function storeFixedCodes(codes: usize, first: u32, last: u32, firstCode: u32, length: u32): void {
  for (let symbol = first; symbol <= last; symbol++) {
    store<u32>(codes + (symbol << 2), (reversed(firstCode + symbol - first, length) << 8) | length);
  }
}

/** Extra bits of length symbol 257 + `index`. */
// @ts-ignore: decorator
@inline
function lengthExtraBits(index: u32): u32 {
  return index < 8 ? 0 : (index >>> 2) - 1;
}

/** Fills the constant tables of a scratch. */
export function initDeflate(scratch: usize): void {
  const literals = scratch + FIXED_LITERAL_CODES;
  storeFixedCodes(literals, 0, 143, 0x30, 8);
  storeFixedCodes(literals, 144, 255, 0x190, 9);
  storeFixedCodes(literals, 256, 279, 0, 7);
  storeFixedCodes(literals, 280, 287, 0xc0, 8);
  storeFixedCodes(scratch + FIXED_DISTANCE_CODES, 0, 31, 0, FIXED_DISTANCE_BITS);
  // Symbol, number of extra bits, extra bits: 16, 8 and 8 bits of a word.
  let entry = scratch + LENGTH_SYMBOLS;
  for (let symbol = FIRST_LENGTH_SYMBOL; symbol < LAST_LENGTH_SYMBOL; symbol++) {
    const bits = lengthExtraBits(symbol - FIRST_LENGTH_SYMBOL);
    for (let extra: u32 = 0; extra < (<u32>1) << bits; extra++) {
      store<u32>(entry, symbol | (bits << 16) | (extra << 24));
      entry += 4;
    }
  }
  store<u32>(entry - 4, LAST_LENGTH_SYMBOL);
}

/** Bits of a page's symbols beside their codes. */
function extraBits(scratch: usize): u32 {
  const lengths = scratch + LITERAL_COUNTS + 4 * FIRST_LENGTH_SYMBOL;
  const distances = scratch + DISTANCE_COUNTS;
  let bits: u32 = 0;
  for (let index: u32 = 8; index < 28; index++) bits += load<u32>(lengths + (index << 2)) * lengthExtraBits(index);
  for (let symbol: u32 = 4; symbol < DISTANCE_SYMBOLS; symbol++) {
    bits += load<u32>(distances + (symbol << 2)) * ((symbol >>> 1) - 1);
  }
  return bits;
}

/** Bits of a page's symbols in the fixed codes. */
function fixedBits(matches: u32, scratch: usize): u32 {
  const mask = i32x4.splat(255);
  let sums = i32x4.splat(0);
  for (let done: usize = 0; done < 4 * 288; done += 16) {
    const lengths = v128.and(v128.load(scratch + FIXED_LITERAL_CODES + done), mask);
    sums = i32x4.add(sums, i32x4.mul(lengths, v128.load(scratch + LITERAL_COUNTS + done)));
  }
  const literalBits =
    i32x4.extract_lane(sums, 0) +
    i32x4.extract_lane(sums, 1) +
    i32x4.extract_lane(sums, 2) +
    i32x4.extract_lane(sums, 3);
  return literalBits + matches * FIXED_DISTANCE_BITS;
}

/** Writes the code lengths of an alphabet as bytes, but for unused symbols at its end. Gives how many. */
function collectLengths(codes: usize, symbols: u32, least: u32, to: usize): u32 {
  while (symbols > least && !load<u32>(codes + ((symbols - 1) << 2))) symbols--;
  for (let symbol: u32 = 0; symbol < symbols; symbol++) store<u8>(to + symbol, load<u8>(codes + (symbol << 2)));
  return symbols;
}

// @ts-ignore: decorator
@inline
function codeLength(symbol: u32, extra: u32, to: usize, counts: usize): usize {
  const count = counts + (symbol << 2);
  store<u32>(count, load<u32>(count) + 1);
  store<u16>(to, <u16>(symbol | (extra << EXTRA_SHIFT)));
  return to + 2;
}

/** Run-length codes the code lengths, and counts the symbols of that. Gives the end of the symbols. */
function runLengthCode(lengthsEnd: usize, scratch: usize): usize {
  const counts = scratch + LENGTH_COUNTS;
  let to = scratch + CODED_LENGTHS;
  let p = scratch + CODE_LENGTHS;
  store<u8>(lengthsEnd, NO_LENGTH);
  while (p < lengthsEnd) {
    const length = <u32>load<u8>(p);
    const runStart = p;
    do p++;
    while (load<u8>(p) == length);
    let run = <u32>(p - runStart);
    if (length == 0) {
      while (run > ZEROS_LIMIT) {
        const part = run < MANY_ZEROS_LIMIT ? run : MANY_ZEROS_LIMIT;
        to = codeLength(MANY_ZEROS, part - ZEROS_LIMIT - 1, to, counts);
        run -= part;
      }
      if (run >= RUN_LEAST) {
        to = codeLength(ZEROS, run - RUN_LEAST, to, counts);
        run = 0;
      }
    } else {
      to = codeLength(length, 0, to, counts);
      run--;
      while (run >= RUN_LEAST) {
        const part = run < REPEAT_LIMIT ? run : REPEAT_LIMIT;
        to = codeLength(REPEAT, part - RUN_LEAST, to, counts);
        run -= part;
      }
    }
    while (run--) to = codeLength(length, 0, to, counts);
  }
  return to;
}

/** Order in which the lengths of the code of code lengths are told: 16 17 18 0 8 7 9 6 10 5 11 4 12 3 13 2 14 1 15. */
// @ts-ignore: decorator
@inline
function lengthOrder(index: u32): u32 {
  if (index < 3) return index + REPEAT;
  if (index == 3) return 0;
  const half = (index - 2) >>> 1;
  return index & 1 ? 8 - half : 7 + half;
}

/** How many lengths of the code of code lengths have to be told. */
function lengthCodesTold(scratch: usize): u32 {
  let told = LENGTH_SYMBOLS_COUNT;
  while (!load<u32>(scratch + LENGTH_CODES + (lengthOrder(told - 1) << 2))) told--;
  return told < 4 ? 4 : told;
}

/** Writes a block's start and the description of its codes. Gives the bits written. */
function writeCodes(
  out: usize,
  literalCodes: u32,
  distanceCodes: u32,
  lengthCodes: u32,
  codedEnd: usize,
  scratch: usize,
): usize {
  const start = out;
  const codes = scratch + LENGTH_CODES;
  let held: u64 = DYNAMIC_BLOCK | ((literalCodes - 257) << 3) | ((distanceCodes - 1) << 8) | ((lengthCodes - 4) << 13);
  let bits: u64 = 17;
  for (let index: u32 = 0; index < lengthCodes; index++) {
    // Fifteen of them, at most, fit behind the 17 bits; then what is held is stored.
    if (index == 15) {
      store<u64>(out, held);
      out += <usize>(bits >>> 3);
      held >>= bits & ~7;
      bits &= 7;
    }
    held |= (<u64>load<u8>(codes + (lengthOrder(index) << 2))) << bits;
    bits += 3;
  }
  store<u64>(out, held);
  out += <usize>(bits >>> 3);
  held >>= bits & ~7;
  bits &= 7;
  for (let coded = scratch + CODED_LENGTHS; coded < codedEnd; coded += 2) {
    const entry = <u32>load<u16>(coded);
    const symbol = entry & ((1 << EXTRA_SHIFT) - 1);
    const code = load<u32>(codes + (symbol << 2));
    held |= (<u64>(code >>> 8)) << bits;
    bits += code & 255;
    held |= (<u64>(entry >>> EXTRA_SHIFT)) << bits;
    bits += symbol < REPEAT ? 0 : symbol == REPEAT ? REPEAT_BITS : symbol == ZEROS ? ZEROS_BITS : MANY_ZEROS_BITS;
    store<u64>(out, held);
    out += <usize>(bits >>> 3);
    held >>= bits & ~7;
    bits &= 7;
  }
  return ((out - start) << 3) + <usize>bits;
}

/**
 * Writes the symbols of a block behind the `bits` bits that are at `out`, and its end. Gives the end of the output. A
 * code is added to `bits` as it is, since only the low six bits of a shift count.
 */
function writeSymbols(
  page: usize,
  out: usize,
  bitsBefore: usize,
  literalCodes: usize,
  distanceCodes: usize,
  sequencesEnd: usize,
  scratch: usize,
): usize {
  const lengthSymbols = scratch + LENGTH_SYMBOLS;
  let sequence = scratch + SEQUENCES;
  out += bitsBefore >>> 3;
  let bits: u64 = bitsBefore & 7;
  let held: u64 = load<u8>(out);
  while (true) {
    const word = load<u32>(sequence);
    const isLast = sequence == sequencesEnd;
    let run = isLast ? word : word & RUN_MASK;
    while (run > 3) {
      const four = load<u32>(page);
      const a: u64 = load<u32>(literalCodes + ((four & 255) << 2));
      const b: u64 = load<u32>(literalCodes + (((four >>> 8) & 255) << 2));
      const c: u64 = load<u32>(literalCodes + (((four >>> 16) & 255) << 2));
      const d: u64 = load<u32>(literalCodes + ((four >>> 24) << 2));
      held |= (a >> 8) << bits;
      bits += a;
      held |= (b >> 8) << bits;
      bits += b;
      held |= (c >> 8) << bits;
      bits += c;
      held |= (d >> 8) << bits;
      bits = (bits + d) & 63;
      store<u64>(out, held);
      out += <usize>(bits >>> 3);
      held >>= bits & ~7;
      bits &= 7;
      page += 4;
      run -= 4;
    }
    // The rest of the run, without branches: those of three literals that are not there take no bits.
    const three = load<u32>(page);
    const first: u64 = load<u32>(literalCodes + ((three & 255) << 2));
    const second: u64 = load<u32>(literalCodes + (((three >>> 8) & 255) << 2));
    const third: u64 = load<u32>(literalCodes + (((three >>> 16) & 255) << 2));
    const a = run > 0 ? first : 0;
    const b = run > 1 ? second : 0;
    const c = run > 2 ? third : 0;
    held |= (a >> 8) << bits;
    bits += a;
    held |= (b >> 8) << bits;
    bits += b;
    held |= (c >> 8) << bits;
    bits = (bits + c) & 63;
    store<u64>(out, held);
    out += <usize>(bits >>> 3);
    held >>= bits & ~7;
    bits &= 7;
    if (isLast) break;
    page += run;
    const l = (word >>> LENGTH_SHIFT) & 255;
    const lengthSymbol = load<u32>(lengthSymbols + (l << 2));
    const lengthCode: u64 = load<u32>(literalCodes + ((lengthSymbol & 0xffff) << 2));
    held |= (lengthCode >> 8) << bits;
    bits += lengthCode;
    held |= (<u64>(lengthSymbol >>> 24)) << bits;
    bits += (lengthSymbol >>> 16) & 255;
    const d = word >>> DISTANCE_SHIFT;
    const extra = distanceExtraBits(d);
    const distanceCode: u64 = load<u32>(distanceCodes + (distanceSymbol(d, extra) << 2));
    held |= (distanceCode >> 8) << bits;
    bits += distanceCode;
    held |= (<u64>(d & (((<u32>1) << extra) - 1))) << bits;
    bits = (bits + extra) & 63;
    store<u64>(out, held);
    out += <usize>(bits >>> 3);
    held >>= bits & ~7;
    bits &= 7;
    page += <usize>l + SHORTEST_MATCH;
    sequence += 4;
  }
  const endCode: u64 = load<u32>(literalCodes + (END_OF_BLOCK << 2));
  held |= (endCode >> 8) << bits;
  bits += endCode & 255;
  store<u64>(out, held);
  return out + <usize>((bits + 7) >>> 3);
}

function writeStored(page: usize, length: usize, out: usize): usize {
  store<u8>(out, <u8>STORED_BLOCK);
  store<u16>(out, <u16>length, 1);
  store<u16>(out, ~(<u16>length), 3);
  memory.copy(out + 5, page, length);
  return out + 5 + length;
}

/** Writes the smallest block for a page. Gives its end. */
function writeBlock(page: usize, length: usize, out: usize, effort: u32, scratch: usize): usize {
  memory.fill(scratch + LITERAL_COUNTS, 0, COUNTS_BYTES);
  const sequencesEnd = parse(page, length, effort, scratch);
  const matches = <u32>(sequencesEnd - scratch - SEQUENCES) >>> 2;
  const extra = extraBits(scratch);
  const fixed = fixedBits(matches, scratch) + extra;
  const storedBits = STORED_OVERHEAD_BITS + ((<u32>length) << 3);
  if (fixed > CHEAP_BITS) {
    const literalCodes = scratch + LITERAL_CODES;
    const distanceCodes = scratch + DISTANCE_CODES;
    const lengths = scratch + CODE_LENGTHS;
    let dynamic = extra;
    dynamic += buildCode(scratch + LITERAL_COUNTS, LITERAL_SYMBOLS, CODE_LIMIT, literalCodes, scratch);
    dynamic += buildCode(scratch + DISTANCE_COUNTS, DISTANCE_SYMBOLS, CODE_LIMIT, distanceCodes, scratch);
    if (dynamic < (fixed < storedBits ? fixed : storedBits)) {
      const literals = collectLengths(literalCodes, LITERAL_SYMBOLS, FIRST_LENGTH_SYMBOL, lengths);
      const distances = collectLengths(distanceCodes, DISTANCE_SYMBOLS, 1, lengths + literals);
      const codedEnd = runLengthCode(lengths + literals + distances, scratch);
      buildCode(scratch + LENGTH_COUNTS, LENGTH_SYMBOLS_COUNT, LENGTH_CODE_LIMIT, scratch + LENGTH_CODES, scratch);
      const described = writeCodes(out, literals, distances, lengthCodesTold(scratch), codedEnd, scratch);
      dynamic += <u32>described;
      if (dynamic < fixed + BLOCK_START_BITS && dynamic < storedBits) {
        return writeSymbols(page, out, described, literalCodes, distanceCodes, sequencesEnd, scratch);
      }
    }
  }
  if (fixed + BLOCK_START_BITS > storedBits) return writeStored(page, length, out);
  store<u8>(out, <u8>FIXED_BLOCK);
  const literalCodes = scratch + FIXED_LITERAL_CODES;
  const distanceCodes = scratch + FIXED_DISTANCE_CODES;
  return writeSymbols(page, out, BLOCK_START_BITS, literalCodes, distanceCodes, sequencesEnd, scratch);
}

/** Encodes `length` bytes at `page` as a zlib stream, and gives its size: 4107 for a page at most. */
export function encodeZlib(page: usize, length: usize, out: usize, effort: u32, scratch: usize): usize {
  store<u16>(out, ZLIB_HEADER);
  const blockEnd = writeBlock(page, length, out + 2, effort, scratch);
  store<u32>(blockEnd, bswap(adler32(page, length)));
  return blockEnd + 4 - out;
}
