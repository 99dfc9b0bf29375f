/**
 * Byte stream: extents that come in order, as plain bytes for any Writable: an HTTP upload, `zlib.createGzip()`, the
 * stdin of another tool.
 */

import { VmcoreError } from '../model/errors.js';
import { type Extent, Stage } from '../model/stage.js';

/** Zeros are passed on in pieces of this size. */
const ZEROS = new Uint8Array(256 * 1024);

/**
 * Extents in, `Uint8Array`s out; what is between extents comes out as zeros. The bytes are views of the slabs they
 * came in, which are never given back: nobody can tell when a foreign stream is done with them. Use it with a source
 * whose pool has no limit, as it is by default.
 */
export class ByteStream extends Stage<Extent, Uint8Array> {
  #position = 0;

  protected override async transform(extent: Extent): Promise<void> {
    if (extent.offset < this.#position)
      throw new VmcoreError(
        'UNSUPPORTED',
        `bytes at offset ${extent.offset} come after offset ${this.#position}; this format needs a seekable file`,
      );
    await this.#emitZeros(extent.offset - this.#position);
    if (extent.data) this.emitItem(extent.data);
    else await this.#emitZeros(extent.length);
    this.#position = extent.offset + extent.length;
  }

  /** As many as the reader takes: a hole can be of any length. */
  async #emitZeros(count: number): Promise<void> {
    for (let left = count; left > 0; left -= ZEROS.length)
      if (!this.emitItem(ZEROS.subarray(0, left))) await this.room();
  }
}
