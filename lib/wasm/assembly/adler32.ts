// Adler-32, the checksum that ends a zlib stream.
//
// It is two sums, a = 1 + all bytes, and b = the sum of a after every byte, both modulo 65521. Unrolled over a block
// of 16 bytes, b grows by 16 times the a before the block plus the bytes weighted 16, 15, … 1. Neither sum overflows
// 32 bits within a page, so one modulo at the end does.

/** Largest prime below 2^16. */
const MODULUS: u32 = 65521;

// @ts-ignore: decorator
@inline
function laneSum(lanes: v128): u32 {
  const pairs = i32x4.add(lanes, i8x16.shuffle(lanes, lanes, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  return i32x4.extract_lane(pairs, 0) + i32x4.extract_lane(pairs, 1);
}

export function adler32(page: usize, length: usize): u32 {
  const firstWeights = i16x8(16, 15, 14, 13, 12, 11, 10, 9);
  const lastWeights = i16x8(8, 7, 6, 5, 4, 3, 2, 1);
  const blocksLength = length & ~15;
  const blocksEnd = page + blocksLength;
  const end = page + length;
  let sums = i32x4.splat(0);
  let earlier = i32x4.splat(0);
  let weighted = i32x4.splat(0);
  while (page < blocksEnd) {
    const bytes = v128.load(page);
    earlier = i32x4.add(earlier, sums);
    sums = i32x4.add(sums, i32x4.extadd_pairwise_i16x8_u(i16x8.extadd_pairwise_i8x16_u(bytes)));
    weighted = i32x4.add(weighted, i32x4.dot_i16x8_s(i16x8.extend_low_i8x16_u(bytes), firstWeights));
    weighted = i32x4.add(weighted, i32x4.dot_i16x8_s(i16x8.extend_high_i8x16_u(bytes), lastWeights));
    page += 16;
  }
  let a: u32 = 1 + laneSum(sums);
  let b: u32 = <u32>blocksLength + (laneSum(earlier) << 4) + laneSum(weighted);
  while (page < end) {
    a += load<u8>(page++);
    b += a;
  }
  return ((b % MODULUS) << 16) | (a % MODULUS);
}
