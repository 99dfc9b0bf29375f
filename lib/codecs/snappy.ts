/**
 * Snappy decompression, for pages that come from a file that may be anything (google/snappy, format_description.txt).
 *
 * The length of what comes out, as a varint; then elements, each a byte whose lowest two bits say what it is: literals,
 * or a copy from up to 2^11, 2^16 or 2^32 bytes back. snappyjs trusts the lengths in the stream, so it is used in tests
 * only.
 */

/** The two lowest bits of an element's first byte. */
const LITERAL = 0;
const COPY_1_BYTE_OFFSET = 1;
const COPY_2_BYTE_OFFSET = 2;

/** Longest literals whose length stands in the first byte itself; above it, 1 to 4 more bytes hold it. */
const SHORT_LITERAL = 60;

/**
 * Decompresses.
 * @param input all of a Snappy stream
 * @param into  the output; has to be as long as what comes out
 * @returns whether the stream was sound and filled `into` exactly
 */
export function decompressSnappy(input: Uint8Array, into: Uint8Array): boolean {
  let at = 0;
  let out = 0;
  /** A little-endian number of `count` bytes. Beyond the end it is NaN, which no comparison below lets pass. */
  const number = (count: number): number => {
    let value = 0;
    for (let i = 0; i < count; i++) value += (input[at++] ?? Number.NaN) * 2 ** (8 * i);
    return value;
  };

  const length = varint(input);
  if (length?.value !== into.length) return false;
  at = length.size;
  while (at < input.length) {
    const tag = input[at++]!;
    const kind = tag & 3;
    if (kind === LITERAL) {
      const size = tag >> 2 < SHORT_LITERAL ? (tag >> 2) + 1 : number((tag >> 2) - SHORT_LITERAL + 1) + 1;
      if (!(at + size <= input.length && out + size <= into.length)) return false;
      for (let i = 0; i < size; i++) into[out++] = input[at++]!;
      continue;
    }
    const size = kind === COPY_1_BYTE_OFFSET ? ((tag >> 2) & 7) + 4 : (tag >> 2) + 1;
    const distance =
      kind === COPY_1_BYTE_OFFSET ? ((tag >> 5) << 8) + number(1) : number(kind === COPY_2_BYTE_OFFSET ? 2 : 4);
    if (!(distance > 0 && distance <= out && out + size <= into.length)) return false;
    // Byte by byte: a copy may reach into what it writes.
    for (let i = 0; i < size; i++, out++) into[out] = into[out - distance]!;
  }
  return out === into.length;
}

/** A little-endian base-128 number at the front, and how many bytes it takes; null when it has no end within 32 bits. */
function varint(input: Uint8Array): { value: number; size: number } | null {
  let value = 0;
  for (let size = 1; size <= 5; size++) {
    const byte = input[size - 1];
    if (byte === undefined) return null;
    value += (byte & 0x7f) * 2 ** (7 * (size - 1));
    if (byte < 0x80) return { value, size };
  }
  return null;
}
