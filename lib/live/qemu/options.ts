/** How a live QEMU is to be read. */

/** Ways to read the memory that can be asked for. */
export const MEMORY_PATHS = ['auto', 'file', 'proc', 'stream'] as const;
/** One of MEMORY_PATHS. */
export type MemoryPath = (typeof MEMORY_PATHS)[number];

/** How to read a live machine. */
export interface OpenQemuOptions {
  /** how to read the memory; by default (`auto`) the best way that is to be had */
  readonly memoryPath?: MemoryPath | undefined;
  /** QEMU's process, where the connection does not tell it */
  readonly pid?: number | undefined;
  /** copy the memory that is not zero, let the machine run on, and only then give the guest */
  readonly pauseOnlyForCopy?: boolean | undefined;
  /** most bytes of memory that the copy may have; half of the memory that is available by default */
  readonly copyLimit?: number | undefined;
  /** folder of a temporary file that takes what does not fit there; by default such a copy is given up */
  readonly copySpool?: string | undefined;
  /** gives up; the machine then runs on if it ran */
  readonly signal?: AbortSignal | undefined;
  /** is told what a user should know: why the best way could not be taken */
  onWarning?(text: string): void;
}
