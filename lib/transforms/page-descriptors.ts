/**
 * The table of page descriptors of a kdump as it grows: 24 bytes a page, handed on in pieces of 64 KiB.
 *
 * Most pages of a guest are zero, and all zero pages have the same descriptor. A long run of them is not encoded: it is
 * handed on as views of one buffer that holds that descriptor again and again.
 */

import { encodePageDescriptor, PAGE_DESCRIPTOR_SIZE } from '../formats/kdump.js';
import { PAGE_COMPRESSED, PAGE_SIZE, PAGE_ZERO } from '../model/stage.js';

/** Descriptors in a piece, 64 KiB of them. */
const PIECE = Math.floor((64 * 1024) / PAGE_DESCRIPTOR_SIZE);
/** Zero descriptors in the shared buffer, 1 MiB of them. */
const ZERO_PIECE = 16 * PIECE;

/** Pages of a batch that has data: see PageBatch. */
interface EncodedPages {
  readonly kinds: Uint8Array;
  readonly sizes: Uint16Array;
}

/** Takes a piece of the table. */
export type TakePiece = (offset: number, bytes: Uint8Array) => void;

/** Descriptors of consecutive pages. */
export class PageDescriptors {
  readonly #take: TakePiece;
  readonly #zeroPage: number;
  #zeros: Uint8Array | null = null;
  #piece = new Uint8Array(PIECE * PAGE_DESCRIPTOR_SIZE);
  #view = new DataView(this.#piece.buffer);
  #held = 0;
  /** file offset of the first descriptor that is held */
  #offset: number;

  /**
   * @param offset   file offset of the table
   * @param zeroPage file offset of the page of zeros
   * @param take     is given each piece, to keep: the bytes are not written any more
   */
  constructor(offset: number, zeroPage: number, take: TakePiece) {
    this.#offset = offset;
    this.#zeroPage = zeroPage;
    this.#take = take;
  }

  /** Adds the descriptor of a page. */
  add(offset: number, size: number, flags: number): void {
    encodePageDescriptor(this.#view, this.#held * PAGE_DESCRIPTOR_SIZE, offset, size, flags);
    if (++this.#held === PIECE) this.flush();
  }

  /**
   * Adds the descriptors of the pages [start, end) of a batch whose encodings lie back to back from `offset` on.
   * @param flags of pages that are compressed
   * @returns where the encodings end
   */
  addPages({ kinds, sizes }: EncodedPages, start: number, end: number, offset: number, flags: number): number {
    let at = offset;
    for (let i = start; i < end; i++) {
      const kind = kinds[i]!;
      const size = sizes[i]!;
      if (kind === PAGE_ZERO) this.add(this.#zeroPage, PAGE_SIZE, 0);
      else this.add(at, size, kind === PAGE_COMPRESSED ? flags : 0);
      at += size;
    }
    return at;
  }

  /** Adds the descriptors of zero pages. */
  addZeros(count: number): void {
    let left = count;
    if (left >= PIECE) {
      this.flush();
      for (; left >= PIECE; left -= Math.min(left, ZERO_PIECE)) this.#hand(this.#zeroPiece(Math.min(left, ZERO_PIECE)));
    }
    for (; left > 0; left--) this.add(this.#zeroPage, PAGE_SIZE, 0);
  }

  /** Hands on what is held. */
  flush(): void {
    if (this.#held === 0) return;
    const bytes = this.#piece.subarray(0, this.#held * PAGE_DESCRIPTOR_SIZE);
    this.#piece = new Uint8Array(PIECE * PAGE_DESCRIPTOR_SIZE);
    this.#view = new DataView(this.#piece.buffer);
    this.#held = 0;
    this.#hand(bytes);
  }

  #hand(bytes: Uint8Array): void {
    this.#take(this.#offset, bytes);
    this.#offset += bytes.length;
  }

  #zeroPiece(count: number): Uint8Array {
    if (!this.#zeros) {
      const one = new Uint8Array(PAGE_DESCRIPTOR_SIZE);
      encodePageDescriptor(new DataView(one.buffer), 0, this.#zeroPage, PAGE_SIZE, 0);
      this.#zeros = Buffer.alloc(ZERO_PIECE * PAGE_DESCRIPTOR_SIZE, one);
    }
    return this.#zeros.subarray(0, count * PAGE_DESCRIPTOR_SIZE);
  }
}
