# Half of the address space, 128 TiB, in 1 GiB pages that all are the same physical GiB: 2^17 mappings of which each
# claims far more than there is.
.include "guest.inc"

main:
    ENTER_LONG_MODE pml4, main64

    .code64
main64:
    LOAD_SEGMENTS fs=0, gs=0
    FINISH64

TABLE pml4
TO 0, pdpt, P+RW
TOS 256, 256, pdpt_giant, P+RW
TABLE pdpt
TO 0, pd, P+RW
TABLE pd
MAPS 0, 8, 0, 0x200000, P+RW+PS+G
TABLE pdpt_giant
MAPS 0, 512, 0, 0, P+RW+PS
    .balign 4096, 0
