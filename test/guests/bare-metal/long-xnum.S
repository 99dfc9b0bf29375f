# More mappings than a 16-bit e_phnum can count (PN_XNUM): all of RAM, page by page, from its end down. In this order
# QEMU finds each one's place in its list at once.
.include "guest.inc"

main:
    ENTER_LONG_MODE pml4, main64

    .code64
main64:
    LOAD_SEGMENTS fs=0, gs=0
    FINISH64

    .set TABLES, 132
    .set PAGES, TABLES * 512

TABLE pml4
TO 0, pdpt_low, P+RW
TO 256, pdpt_high, P+RW
TABLE pdpt_low
TO 0, pd_low, P+RW
TABLE pd_low
MAP 1, 0x200000, P+RW+PS
TABLE pdpt_high
TO 0, pd_high, P+RW
TABLE pd_high
    .set pd_index, 0
    .rept TABLES
    MAP pd_index, tables+pd_index*0x1000, P+RW
    .set pd_index, pd_index + 1
    .endr
    .set tables, pts - image + BASE
TABLE pts
    .set page, PAGES - 1
    .rept PAGES
    .quad page * 0x1000 + P + RW
    .set page, page - 1
    .endr
    .balign 4096, 0
