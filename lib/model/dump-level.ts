/** Dump levels: which pages a vmcore leaves out. */

/**
 * Bits of kdump_sub_header.dump_level, what was left out (makedumpfile.h). QEMU sets the first and leaves nothing out.
 */
export const DL_EXCLUDE_ZERO = 0x1;
/** page cache that is not private */
export const DL_EXCLUDE_CACHE = 0x2;
/** page cache that is private: the file system has data of its own with it */
export const DL_EXCLUDE_CACHE_PRI = 0x4;
/** memory of user processes */
export const DL_EXCLUDE_USER_DATA = 0x8;
/** pages that nobody uses */
export const DL_EXCLUDE_FREE = 0x10;

/** All bits of a dump level. */
export const ALL_LEVELS = 31;
