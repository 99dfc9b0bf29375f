# Honest mappings at 0, and the other 511 entries of the top table refer to the top table.
.include "guest.inc"

main:
    ENTER_LONG_MODE pml4, main64

    .code64
main64:
    LOAD_SEGMENTS fs=0, gs=0
    FINISH64

TABLE pml4
TO 0, pdpt, P+RW
TOS 1, 511, pml4, P+RW
TABLE pdpt
TO 0, pd, P+RW
TABLE pd
MAPS 0, 8, 0, 0x200000, P+RW+PS+G
    .balign 4096, 0
