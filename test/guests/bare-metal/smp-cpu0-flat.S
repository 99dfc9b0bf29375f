# The first CPU in protected mode without paging, the second in long mode: QEMU takes the architecture from the first
# and the mappings from the second.
.include "guest.inc"

main:
    call start_second_cpu
    LOAD_SEGMENTS
    FINISH32
.include "smp.inc"
ap32:
    ENTER_LONG_MODE pml4, second64

    .code64
second64:
    LOAD_SEGMENTS TSS2_SELECTOR, 0, 0
    FINISH64 0x11

TABLE pml4
TO 0, pdpt, P+RW
TO 511, pdpt, P+RW
TABLE pdpt
TO 0, pd, P+RW
TO 511, pd, P+RW
TABLE pd
MAP 0, 0, P+RW+PS
MAP 1, 0x200000, P+RW+PS+G
MAP 2, 0x600000, P+RW+PS
MAP 3, 0x400000, P+RW+PS
MAP 511, 0x1000000, P+RW+PS
    .balign 4096, 0
