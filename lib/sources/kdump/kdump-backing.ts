/** The memory of a kdump as a backing whose offsets are guest physical addresses. */

import type { Backing, DataRun } from '../../model/physical-memory.js';
import { PAGE_SIZE } from '../../model/stage.js';
import type { KdumpPages, Reading } from './kdump-pages.js';
import { PageCache } from './page-cache.js';
import type { RandomFile } from '../../io/random-file.js';

/** Pages that are kept decompressed, for reads that are smaller than a few pages: 4 MiB. */
const CACHED_PAGES = 1024;
/** Reads of more pages than this are a stream, and leave the cache alone. */
const LARGEST_CACHED_READ = 4 * PAGE_SIZE;
/** Pages that one search for data looks at; what is behind them may be data: a bound on how long a caller waits. */
const SEARCH_PAGES = 2 ** 20;

/** Decompresses pages on demand. */
export class KdumpBacking implements Backing {
  readonly name: string;
  readonly #file: RandomFile;
  readonly #pages: KdumpPages;
  readonly #cache = new PageCache(CACHED_PAGES);

  /** @param file what the pages are read from; closed with the backing */
  constructor(file: RandomFile, pages: KdumpPages) {
    this.name = file.name;
    this.#file = file;
    this.#pages = pages;
  }

  readSync(paddr: number, into: Uint8Array): void {
    for (const { offset, into: bytes } of this.#fill(paddr, into)) this.#file.readSync(offset, bytes);
  }

  async read(paddr: number, into: Uint8Array): Promise<void> {
    for (const { offset, into: bytes } of this.#fill(paddr, into)) await this.#file.read(offset, bytes);
  }

  nextData(from: number, to: number): DataRun | null {
    const first = Math.floor(from / PAGE_SIZE);
    const end = Math.ceil(to / PAGE_SIZE);
    const limit = Math.min(end, first + SEARCH_PAGES);
    const data = this.#pages.nextData(first, limit);
    if (data === end) return null;
    const stop = data === limit ? limit + 1 : this.#pages.nextZero(data, Math.min(end, data + SEARCH_PAGES));
    return { start: Math.max(data * PAGE_SIZE, from), end: Math.min(stop * PAGE_SIZE, to) };
  }

  close(): void {
    this.#cache.clear();
    this.#file.close();
  }

  /** Whole pages straight into place; what is smaller through the cache. */
  *#fill(paddr: number, into: Uint8Array): Reading {
    const isStream = into.length > LARGEST_CACHED_READ;
    for (let done = 0; done < into.length;) {
      const at = paddr + done;
      const pfn = Math.floor(at / PAGE_SIZE);
      const start = at % PAGE_SIZE;
      const whole = Math.floor((into.length - done) / PAGE_SIZE);
      if (isStream && start === 0 && whole > 0) {
        yield* this.#pages.read(pfn, whole, into.subarray(done, done + whole * PAGE_SIZE));
        done += whole * PAGE_SIZE;
      } else {
        const page = this.#cache.get(pfn) ?? (yield* this.#load(pfn));
        const part = page.subarray(start, start + into.length - done);
        into.set(part, done);
        done += part.length;
      }
    }
  }

  *#load(pfn: number): Generator<{ offset: number; into: Uint8Array }, Uint8Array, void> {
    const page = new Uint8Array(PAGE_SIZE);
    yield* this.#pages.read(pfn, 1, page);
    this.#cache.set(pfn, page);
    return page;
  }
}
