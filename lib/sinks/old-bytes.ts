/**
 * What a file had in it before a vmcore came, as far as it is still there. A vmcore that is written by offsets leaves
 * zeros out, and in such a file what is left out would not be zeros.
 */

/** A range of bytes of a file. */
export interface ByteRange {
  readonly start: number;
  readonly end: number;
}

/** The old bytes of a file that nothing has been written to. */
export class OldBytes {
  #ranges: readonly ByteRange[];

  /** @param size of the file, in bytes; of a new one 0 */
  constructor(size: number) {
    this.#ranges = nonEmpty([{ start: 0, end: size }]);
  }

  /** Notes that something was written there. */
  overwrite(start: number, end: number): void {
    const touched = ({ start: from, end: to }: ByteRange) => from < end && start < to;
    if (!this.#ranges.some(touched)) return;
    this.#ranges = this.#ranges.flatMap((range) =>
      touched(range)
        ? nonEmpty([
            { start: range.start, end: start },
            { start: end, end: range.end },
          ])
        : [range],
    );
  }

  /** What is left between two offsets, in ascending order. */
  within(start: number, end: number): readonly ByteRange[] {
    return nonEmpty(
      this.#ranges.map((range) => ({ start: Math.max(start, range.start), end: Math.min(end, range.end) })),
    );
  }
}

function nonEmpty(ranges: readonly ByteRange[]): ByteRange[] {
  return ranges.filter(({ start, end }) => start < end);
}
