/** /proc/PID/pagemap: which pages of a process were ever touched (Documentation/admin-guide/mm/pagemap.rst). */

import { openSync, readSync } from 'node:fs';
import { closeRead } from '../../io/close-read.js';
import type { DataRun } from '../../model/physical-memory.js';
import { PAGE_SIZE } from '../../model/stage.js';

/** Bytes of an entry, one for each page. */
const ENTRY = 8;
/** Bits 63 and 62 of an entry, in its last byte: the page is in memory, or swapped out. */
const TOUCHED = 0xc0;
/** Entries that are read at a time. */
const BATCH = 8192;
/** Untouched pages that are fewer than this, between touched ones, count as data. */
const GAP = 16;

/** The pagemap of a process that stands still: what has been read of it stays true. */
export class Pagemap {
  readonly #entries = Buffer.alloc(BATCH * ENTRY);
  /** the pages that #entries has */
  #first = 0;
  #behind = 0;

  private constructor(private readonly fd: number) {}

  /**
   * @param path /proc/PID/pagemap
   * @returns null where it may not be read: then everything counts as data
   */
  static open(path: string): Pagemap | null {
    try {
      return new Pagemap(openSync(path, 'r'));
    } catch {
      return null;
    }
  }

  /** The first run of pages in [offset, end) that were ever touched, as addresses; null when there is none. */
  nextTouched(offset: number, end: number): DataRun | null {
    const last = Math.ceil(end / PAGE_SIZE);
    let start = -1;
    let behind = -1;
    for (let page = Math.floor(offset / PAGE_SIZE); page < last; page++) {
      if (!this.#has(page, last)) return { start: offset, end };
      if (this.#isTouched(page)) {
        if (start < 0) start = page;
        behind = page + 1;
      } else if (start >= 0 && page + 1 - behind >= GAP) break;
    }
    if (start < 0) return null;
    return { start: Math.max(offset, start * PAGE_SIZE), end: Math.min(end, behind * PAGE_SIZE) };
  }

  close(): void {
    closeRead(this.fd);
  }

  /** Reads entries from that of a page on, unless it is there. @returns false when they cannot be had */
  #has(page: number, last: number): boolean {
    if (page >= this.#first && page < this.#behind) return true;
    const bytes = Math.min(BATCH, last - page) * ENTRY;
    this.#behind = 0;
    if (this.#read(bytes, page * ENTRY) !== bytes) return false;
    this.#first = page;
    this.#behind = page + bytes / ENTRY;
    return true;
  }

  /** @returns how many bytes there were: none where they may not, or cannot, be read */
  #read(bytes: number, offset: number): number {
    try {
      return readSync(this.fd, this.#entries, 0, bytes, offset);
    } catch {
      return 0;
    }
  }

  #isTouched(page: number): boolean {
    return (this.#entries[(page - this.#first) * ENTRY + ENTRY - 1]! & TOUCHED) !== 0;
  }
}
