/**
 * The pages of a kdump: descriptors found by the bitmap, data read in large pieces, each page decompressed on its own.
 *
 * What is to be read is the same whether a caller waits or not, so reading is a generator that yields what it wants to
 * have read, and goes on when that is there; `readSync` and `read` of the backing run it, each in its own way.
 */

import { VmcoreError } from '../../model/errors.js';
import { decodePageDescriptor, PAGE_DESCRIPTOR_SIZE, type PageDescriptor } from '../../formats/kdump.js';
import { lacksDecoder, pageDecoder } from '../../codecs/page-decoder.js';
import { PAGE_SIZE } from '../../model/stage.js';
import type { PageBitmap } from './page-bitmap.js';
import type { RandomFile } from '../../io/random-file.js';

/** What is to be read from the file before the generator goes on. */
export interface ReadRequest {
  readonly offset: number;
  readonly into: Uint8Array;
}

/** Reading that yields what it wants to have read. */
export type Reading = Generator<ReadRequest, void, void>;

/** Pages that are read at a time: 1 MiB of memory. */
const BATCH_PAGES = 256;
/** Descriptors that are looked at at a time to find zero pages, 64 KiB of them. */
const WINDOW_DESCRIPTORS = 2730;
/** Bytes between the data of two pages that are read along, for a system call less. */
const READ_ALONG = 16 * 1024;

/** A page to be decompressed. */
interface Page extends PageDescriptor {
  /** its place among the pages that are being read */
  readonly index: number;
}

/** Pages whose data are read at once. */
interface Span {
  readonly offset: number;
  end: number;
  readonly pages: Page[];
}

/** Stored pages by what they are in the file. */
export interface PageCensus {
  /** pages that share the one page of zeros */
  readonly zero: number;
  /** pages that are stored as they are */
  readonly plain: number;
  readonly compressed: number;
  /** bytes of all pages in the file */
  readonly bytes: number;
}

/** Reads pages by page frame number. */
export class KdumpPages {
  readonly #file: RandomFile;
  readonly #stored: PageBitmap;
  readonly #descriptorsOffset: number;
  readonly #dataOffset: number;
  /** file offset of the page that all zero pages share; null when there is none */
  readonly #zeroPage: number | null;
  readonly #window = new DataView(new ArrayBuffer(WINDOW_DESCRIPTORS * PAGE_DESCRIPTOR_SIZE));
  #windowStart = -1;

  /**
   * @param stored            the pages that have descriptors
   * @param descriptorsOffset file offset of the first descriptor
   * @throws VmcoreError TRUNCATED when the descriptors are not all there
   */
  constructor(file: RandomFile, stored: PageBitmap, descriptorsOffset: number) {
    this.#file = file;
    this.#stored = stored;
    this.#descriptorsOffset = descriptorsOffset;
    this.#dataOffset = descriptorsOffset + stored.count * PAGE_DESCRIPTOR_SIZE;
    if (this.#dataOffset > file.size)
      throw new VmcoreError(
        'TRUNCATED',
        `${file.name} ends at byte ${file.size}, but the descriptors of its ${stored.count} pages reach to byte ${this.#dataOffset}`,
      );
    this.#zeroPage = this.#findZeroPage();
  }

  /** Reads consecutive pages; those that are not stored read as zeros. */
  *read(firstPfn: number, count: number, into: Uint8Array): Reading {
    for (let done = 0; done < count; done += BATCH_PAGES) {
      const pages = Math.min(BATCH_PAGES, count - done);
      yield* this.#readBatch(firstPfn + done, into.subarray(done * PAGE_SIZE, (done + pages) * PAGE_SIZE));
    }
  }

  *#readBatch(firstPfn: number, into: Uint8Array): Reading {
    const present: number[] = [];
    for (let i = 0; i < into.length / PAGE_SIZE; i++) if (this.#stored.has(firstPfn + i)) present.push(i);
    into.fill(0);
    if (present.length === 0) return;
    const table = new Uint8Array(present.length * PAGE_DESCRIPTOR_SIZE);
    yield { offset: this.#descriptorOffset(this.#stored.rank(firstPfn)), into: table };
    const view = new DataView(table.buffer);
    const spans = this.#spansOf(view, present, firstPfn);
    for (const { offset, end, pages } of spans) {
      const data = new Uint8Array(end - offset);
      yield { offset, into: data };
      for (const page of pages) {
        const input = data.subarray(page.offset - offset, page.offset - offset + page.size);
        const output = into.subarray(page.index * PAGE_SIZE, (page.index + 1) * PAGE_SIZE);
        this.#decode(page, input, output, firstPfn);
      }
    }
  }

  /** Groups pages by where their data are; zero pages need no reading. */
  #spansOf(view: DataView, present: readonly number[], firstPfn: number): Span[] {
    const spans: Span[] = [];
    present.forEach((index, i) => {
      const page = { index, ...decodePageDescriptor(view, i * PAGE_DESCRIPTOR_SIZE) };
      if (page.offset === this.#zeroPage && page.flags === 0) return;
      this.#check(page, firstPfn + index);
      const last = spans.at(-1);
      if (last && page.offset >= last.end && page.offset - last.end <= READ_ALONG) {
        last.pages.push(page);
        last.end = page.offset + page.size;
      } else spans.push({ offset: page.offset, end: page.offset + page.size, pages: [page] });
    });
    return spans;
  }

  #check({ offset, size, flags }: PageDescriptor, pfn: number): void {
    const soundSize = flags === 0 ? size === PAGE_SIZE : size > 0 && size <= PAGE_SIZE;
    if (!soundSize) throw this.#bad(pfn, `claims ${size} bytes with flags 0x${flags.toString(16)}`);
    if (offset < this.#dataOffset) throw this.#bad(pfn, `is said to be at byte ${offset}, which is inside the headers`);
    if (offset + size > this.#file.size)
      throw new VmcoreError(
        'TRUNCATED',
        `${this.#file.name} ends at byte ${this.#file.size}, but page 0x${(pfn * PAGE_SIZE).toString(16)} reaches ${endText(offset + size)}`,
      );
  }

  #decode({ index, flags, offset }: Page, input: Uint8Array, output: Uint8Array, firstPfn: number): void {
    if (flags === 0) {
      output.set(input);
      return;
    }
    const decode = pageDecoder(flags);
    if (decode?.(input, output)) return;
    const pfn = firstPfn + index;
    if (lacksDecoder(flags))
      throw new VmcoreError(
        'UNSUPPORTED',
        `${this.#file.name} is compressed with zstd; for that, use Node 22.15 or newer, or install the package fzstd`,
      );
    if (!decode) throw this.#bad(pfn, `has flags 0x${flags.toString(16)}, which are no compression that is known`);
    throw this.#bad(pfn, `at byte ${offset} does not decompress to a page; the file is damaged`);
  }

  #bad(pfn: number, text: string): VmcoreError {
    return new VmcoreError('BAD_INPUT', `${this.#file.name}: page 0x${(pfn * PAGE_SIZE).toString(16)} ${text}`);
  }

  #descriptorOffset(index: number): number {
    return this.#descriptorsOffset + index * PAGE_DESCRIPTOR_SIZE;
  }

  // Zero pages -------------------------------------------------------------------------------------------------------

  /** The page that all zero pages share comes first of all, if there is one. */
  #findZeroPage(): number | null {
    if (this.#dataOffset + PAGE_SIZE > this.#file.size) return null;
    const page = new Uint8Array(PAGE_SIZE);
    this.#file.readSync(this.#dataOffset, page);
    return page.every((byte) => byte === 0) ? this.#dataOffset : null;
  }

  /** The first page in [from, to) that is stored; `to` when none is. */
  nextStored(from: number, to: number): number {
    return this.#stored.nextSet(from, to);
  }

  /** The first page in [from, to) that may hold anything but zeros; `to` when none does. */
  nextData(from: number, to: number): number {
    for (let pfn = this.#stored.nextSet(from, to); pfn < to;) {
      let index = this.#stored.rank(pfn);
      // As long as pages are stored, so are their descriptors side by side.
      for (; pfn < to && this.#stored.has(pfn); pfn++, index++) if (!this.#isZero(index)) return pfn;
      pfn = this.#stored.nextSet(pfn, to);
    }
    return to;
  }

  /** The first page in [from, to) that is known to be zeros; `to` when none is. */
  nextZero(from: number, to: number): number {
    let index = this.#stored.rank(from);
    for (let pfn = from; pfn < to; pfn++, index++) if (!this.#stored.has(pfn) || this.#isZero(index)) return pfn;
    return to;
  }

  #isZero(index: number): boolean {
    if (this.#zeroPage === null) return false;
    const { offset, flags } = this.descriptorAt(index);
    return offset === this.#zeroPage && flags === 0;
  }

  /** The descriptor of the `index`-th stored page, unchecked. */
  descriptorAt(index: number): PageDescriptor {
    if (this.#windowStart < 0 || index < this.#windowStart || index >= this.#windowStart + WINDOW_DESCRIPTORS) {
      const count = Math.min(WINDOW_DESCRIPTORS, this.#stored.count - index);
      this.#file.readSync(
        this.#descriptorOffset(index),
        new Uint8Array(this.#window.buffer, 0, count * PAGE_DESCRIPTOR_SIZE),
      );
      this.#windowStart = index;
    }
    return decodePageDescriptor(this.#window, (index - this.#windowStart) * PAGE_DESCRIPTOR_SIZE);
  }

  /** Looks at all descriptors. */
  census(): PageCensus {
    let [zero, plain, compressed, bytes] = [0, 0, 0, 0];
    for (let index = 0; index < this.#stored.count; index++) {
      const { offset, size, flags } = this.descriptorAt(index);
      if (offset === this.#zeroPage && flags === 0) {
        zero++;
        continue;
      }
      if (flags === 0) plain++;
      else compressed++;
      bytes += size;
    }
    return { zero, plain, compressed, bytes: bytes + (zero > 0 ? PAGE_SIZE : 0) };
  }
}

/** A number above 2^53 is not what the file says, but rounded. */
function endText(end: number): string {
  return Number.isSafeInteger(end) ? `to byte ${end}` : 'beyond byte 2^53';
}
