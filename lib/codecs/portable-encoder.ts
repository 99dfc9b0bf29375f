/**
 * Portable codec: fflate, lzo-ts and snappyjs, in plain JavaScript and in this thread. Slow, and there where
 * WebAssembly or workers are not to be had; also the independent check of the fast one.
 */

import { zlibSync } from 'fflate';
import { LZO } from 'lzo-ts';
import snappy from 'snappyjs';
import {
  chunkBytes,
  PAGE_COMPRESSED,
  PAGE_SIZE,
  PAGE_STORED,
  PAGE_ZERO,
  type PageBatch,
  releaseChunk,
} from '../model/stage.js';
import { nonZeroRuns } from '../model/zeros.js';
import type { EncodableChunk, PageCodecName, PageEncoder } from './page-encoder.js';

type Compress = (page: Uint8Array) => Uint8Array;

/** zlib levels of fflate are zlib's own: 1 is fast, 9 is small. */
function compressorOf(codec: PageCodecName, level: number): Compress {
  switch (codec) {
    case 'zlib':
      return (page) => zlibSync(page, { level: Math.min(Math.max(level, 1), 9) as 1 });
    case 'lzo':
      return (page) => LZO.compress(page);
    case 'snappy':
      return (page) => snappy.compress(page);
  }
}

/** Encodes in this thread. */
export class PortableEncoder implements PageEncoder {
  readonly concurrency = 1;
  readonly pool = null;
  readonly readsFiles = false;
  busySeconds = 0;
  readonly #compress: Compress;

  /** @param level zlib only: 1 to 9 */
  constructor(codec: PageCodecName, level = 1) {
    this.#compress = compressorOf(codec, level);
  }

  async encode(chunk: EncodableChunk): Promise<PageBatch> {
    try {
      return this.#encode(chunk, chunkBytes(chunk)!);
    } finally {
      releaseChunk(chunk);
    }
  }

  #encode({ paddr, length, memory }: EncodableChunk, data: Uint8Array): PageBatch {
    const started = performance.now();
    const count = length / PAGE_SIZE;
    const kinds = new Uint8Array(count).fill(PAGE_ZERO);
    const sizes = new Uint16Array(count);
    const out = new Uint8Array(length);
    let at = 0;
    for (const { start, end } of nonZeroRuns(data, 0))
      for (let offset = start; offset < end; offset += PAGE_SIZE) {
        // The packages hand slices of shared memory to calls that refuse them; a page of our own is safe.
        const page = Uint8Array.from(data.subarray(offset, offset + PAGE_SIZE));
        const encoded = this.#compress(page);
        const shrinks = encoded.length < PAGE_SIZE;
        kinds[offset / PAGE_SIZE] = shrinks ? PAGE_COMPRESSED : PAGE_STORED;
        const bytes = shrinks ? encoded : page;
        sizes[offset / PAGE_SIZE] = bytes.length;
        out.set(bytes, at);
        at += bytes.length;
      }
    this.busySeconds += (performance.now() - started) / 1000;
    return { paddr, count, kinds, sizes, data: out.subarray(0, at), memory: memory ?? length };
  }

  /** Nothing is ever under way. */
  cancel(): void {}

  async close(): Promise<void> {}
}
