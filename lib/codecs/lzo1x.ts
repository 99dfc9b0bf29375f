/**
 * LZO1X decompression, for pages that come from a file that may be anything.
 *
 * The stream is a sequence of instructions, each a match (copy `length` bytes from `distance` back) followed by up to
 * three literals that its lowest two bits count, or a longer run of literals (Linux, Documentation/staging/lzo.rst).
 * The first byte's range says which:
 *
 *   0-15     a run of literals; or, behind literals, a match: of 3 bytes at 2049-3072 back after a run of 4 and more,
 *            of 2 bytes at 1-1024 back after 1 to 3
 *   16-31    a match at 16384-49151 back; of 16384 exactly: the end
 *   32-63    a match at 1-16384 back
 *   64-255   a match of 3-8 bytes at 1-2048 back
 *
 * lzo-ts does the same, but runs on without end on input that is cut, so it is used in tests only.
 */

/** Where the first byte of a stream is above this, it counts literals that begin the stream. */
const FIRST_LITERALS = 17;

/**
 * Decompresses.
 * @param input all of a LZO1X stream
 * @param into  the output; has to be as long as what comes out
 * @returns whether the stream was sound and filled `into` exactly
 */
export function decompressLzo1x(input: Uint8Array, into: Uint8Array): boolean {
  return new Decoder(input, into).run();
}

/** What literals preceded an instruction: none, 1 to 3, or a run of 4 and more. */
type Literals = 'none' | 'few' | 'run';

class Decoder {
  #at = 0;
  #out = 0;
  #sound = true;

  constructor(
    readonly input: Uint8Array,
    readonly into: Uint8Array,
  ) {}

  run(): boolean {
    let literals = this.#begin();
    while (this.#sound) {
      const byte = this.#next();
      if (byte < 16 && literals === 'none') {
        this.#copyLiterals(this.#length(byte, 15) + 3);
        literals = 'run';
        continue;
      }
      const state = this.#match(byte, literals);
      if (state === 'end') return this.#sound && this.#at === this.input.length && this.#out === this.into.length;
      this.#copyLiterals(state);
      literals = state === 0 ? 'none' : 'few';
    }
    return false;
  }

  /** Literals that begin the stream. */
  #begin(): Literals {
    const first = this.input[0] ?? 0;
    if (first <= FIRST_LITERALS) return 'none';
    this.#at = 1;
    const count = first - FIRST_LITERALS;
    this.#copyLiterals(count);
    return count < 4 ? 'few' : 'run';
  }

  /** Copies a match. Returns how many literals follow, or that the stream has ended. */
  #match(byte: number, literals: Literals): number | 'end' {
    if (byte >= 64) {
      this.#copyMatch(((byte >> 2) & 7) + (this.#next() << 3) + 1, (byte >> 5) + 1);
      return byte & 3;
    }
    if (byte >= 32) return this.#farMatch(this.#length(byte & 31, 31) + 2, 1);
    if (byte >= 16) return this.#farMatch(this.#length(byte & 7, 7) + 2, 16384 + ((byte & 8) << 11));
    const distance = (byte >> 2) + (this.#next() << 2) + 1;
    if (literals === 'run') this.#copyMatch(distance + 2048, 3);
    else this.#copyMatch(distance, 2);
    return byte & 3;
  }

  /** A match whose distance stands in the next two bytes, above the number of literals. */
  #farMatch(length: number, base: number): number | 'end' {
    const word = this.#next() | (this.#next() << 8);
    const distance = base + (word >> 2);
    if (distance === 16384 && base === 16384) return 'end';
    this.#copyMatch(distance, length);
    return word & 3;
  }

  /** A length of `bits`, or when these are 0 of `most` and more: 255 for each zero byte, and one that is not zero. */
  #length(bits: number, most: number): number {
    if (bits !== 0) return bits;
    let length = most;
    let byte = this.#next();
    for (; byte === 0 && this.#sound; byte = this.#next()) length += 255;
    return length + byte;
  }

  #next(): number {
    const byte = this.input[this.#at++];
    if (byte === undefined) this.#sound = false;
    return byte ?? 0;
  }

  #copyLiterals(count: number): void {
    const { input, into } = this;
    if (this.#at + count > input.length || this.#out + count > into.length) {
      this.#sound = false;
      return;
    }
    for (let i = 0; i < count; i++) into[this.#out++] = input[this.#at++]!;
  }

  #copyMatch(distance: number, length: number): void {
    const { into } = this;
    if (distance > this.#out || this.#out + length > into.length) {
      this.#sound = false;
      return;
    }
    // Byte by byte: a match may reach into what it writes.
    for (let i = 0; i < length; i++, this.#out++) into[this.#out] = into[this.#out - distance]!;
  }
}
