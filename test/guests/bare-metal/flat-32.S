# Protected mode without paging.
.include "guest.inc"

main:
    LOAD_SEGMENTS
    FINISH32
    .balign 4096, 0
