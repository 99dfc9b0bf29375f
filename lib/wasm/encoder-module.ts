/**
 * The encoder module as the rest of the program sees it: WebAssembly that encodes a batch of pages in one call.
 *
 * Its source is in assembly/, in AssemblyScript. It keeps no state but what lies behind the addresses that it is given,
 * so one compiled module serves all threads: each makes an instance over the same shared memory, and has a scratch of its
 * own there. Whoever makes the memory decides what lies where; the constants below say how much room each thing takes. A
 * module and a shared memory can be sent to a thread in its `workerData`.
 */

import { readFileSync } from 'node:fs';

/** Numbers that the module knows the codecs by: those of the kdump formats. */
export const WASM_CODECS = { zlib: 1, lzo: 2, snappy: 3 } as const;

/** Bytes that have to be there behind the pages of a batch; they are read, and do not matter. */
export const INPUT_SLACK = 16;

/** Bytes of output that a page takes at most: it is stored as it is when it does not shrink. */
export const MAX_ENCODED_PAGE = 4096;

/** Bytes that have to be there behind a full output; they are written, and do not matter. */
export const OUTPUT_SLACK = 64;

/** What is told of each page: the size of its encoding, u16 at an even address, and its kind, u8. */
export const SIZE_BYTES = 2;
export const KIND_BYTES = 1;
export const TABLE_ENTRY_BYTES = SIZE_BYTES + KIND_BYTES;

/** Bytes of a thread's scratch. */
export const SCRATCH_BYTES = 65_536;

/** An instance of the module. All its arguments but counts are addresses in the shared memory; calls are synchronous. */
export interface EncoderModule {
  /** Makes a scratch ready for use, once. Any instance over the memory may use it then, one at a time. */
  init(scratch: number): void;
  /**
   * Encodes pages of 4096 bytes. Their encodings are written back to back; a zero page has none, and one that does not
   * shrink is stored as it is. `sizes` and `kinds` get the size and the kind (PAGE_ZERO, PAGE_STORED, PAGE_COMPRESSED)
   * of each.
   * The bytes depend on the pages, the codec and the level alone.
   * @param codec one of WASM_CODECS
   * @param level zlib: how many earlier places a match is looked for at, 1 or more. 1 is fast and about as small as
   *              zlib's own level 1; each further one takes time and makes pages a little smaller. LZO and Snappy: 1 is
   *              fast, any other about as small as the libraries make it
   * @returns bytes of all encodings
   */
  encodeBatch(
    codec: number,
    pages: number,
    count: number,
    out: number,
    sizes: number,
    kinds: number,
    scratch: number,
    level: number,
  ): number;
  /**
   * Encodes 0 to 4096 bytes, zero or not, whether that makes them shorter or longer. For tests.
   * @returns bytes of the encoding
   */
  encodePage(codec: number, page: number, length: number, out: number, scratch: number, level: number): number;
}

/** Compiles the module. Once is enough for a process. */
export function compileEncoder(): WebAssembly.Module {
  return new WebAssembly.Module(readFileSync(new URL('encoder.wasm', import.meta.url)));
}

/** Makes an instance of the module over a shared memory. */
export function instantiateEncoder(module: WebAssembly.Module, memory: WebAssembly.Memory): EncoderModule {
  return new WebAssembly.Instance(module, { env: { memory } }).exports as unknown as EncoderModule;
}
