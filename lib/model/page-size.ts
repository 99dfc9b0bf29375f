/** Size of an x86 page and of everything that is counted in pages, in bytes. */
export const PAGE_SIZE = 4096;
