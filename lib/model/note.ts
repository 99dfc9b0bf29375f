/** An ELF note: what a vmcore carries beside the memory (lib/formats/notes.ts reads and writes them). */

/** A note as it stands in a vmcore. */
export interface ElfNote {
  /** the name without its NUL */
  readonly name: string;
  /** n_type */
  readonly type: number;
  /** the descriptor */
  readonly desc: Uint8Array;
  /** the whole note: header, name, descriptor and padding, as it was found */
  readonly raw: Uint8Array;
}
