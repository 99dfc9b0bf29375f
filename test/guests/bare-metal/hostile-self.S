# All 512 entries of the top table refer to the top table: 2^36 mappings of one page. The table is made so while the
# CPU runs on what its TLB remembers; all the code from there on is in one page.
.include "guest.inc"

main:
    ENTER_LONG_MODE pml4, main64

    .code64
    .balign 4096, 0
main64:
    LOAD_SEGMENTS fs=0, gs=0
    mov $pml4, %edi
    mov $pml4 + P + RW, %eax
    mov $512, %ecx
    rep stosq
    FINISH64

TABLE pml4
TO 0, pdpt, P+RW
TABLE pdpt
TO 0, pd, P+RW
TABLE pd
MAP 1, 0x200000, P+RW+PS+G
    .balign 4096, 0
