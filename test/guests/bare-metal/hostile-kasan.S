# What a KASAN kernel does, and is honest: 16 TiB of shadow memory that is one page of zeros, through one page table,
# one directory and one directory-pointer table, all of whose entries are the same.
.include "guest.inc"

main:
    ENTER_LONG_MODE pml4, main64

    .code64
main64:
    LOAD_SEGMENTS fs=0, gs=0
    FINISH64

TABLE pml4
TO 0, pdpt, P+RW
TOS 472, 32, shadow_pdpt, P+RW              # 0xffffec0000000000 up
TO 511, pdpt, P+RW
TABLE pdpt
TO 0, pd, P+RW
TABLE pd
MAPS 0, 8, 0, 0x200000, P+RW+PS+G
TABLE shadow_pdpt
TOS 0, 512, shadow_pd, P+RW
TABLE shadow_pd
TOS 0, 512, shadow_pt, P+RW
TABLE shadow_pt
MAPS 0, 512, 0x700000, 0, P+NX+A
    .balign 4096, 0
