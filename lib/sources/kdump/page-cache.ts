/** A bounded cache of pages: the ones that were asked for last. */

/** Pages by page frame number. */
export class PageCache {
  readonly #pages = new Map<number, Uint8Array>();

  /** @param limit how many pages are kept */
  constructor(readonly limit: number) {}

  /** The page, or undefined. */
  get(pfn: number): Uint8Array | undefined {
    const page = this.#pages.get(pfn);
    if (page) {
      // A Map keeps the order of insertion: the one that was used last is to be the last.
      this.#pages.delete(pfn);
      this.#pages.set(pfn, page);
    }
    return page;
  }

  /** Keeps a page, which is not to be written any more. */
  set(pfn: number, page: Uint8Array): void {
    this.#pages.set(pfn, page);
    if (this.#pages.size > this.limit) this.#pages.delete(this.#pages.keys().next().value!);
  }

  /** Forgets all pages. */
  clear(): void {
    this.#pages.clear();
  }
}
