# 32-bit paging whose directory's 1024 entries all refer to the directory: 2^20 mappings of one page. Made as in
# hostile-self.S.
.include "guest.inc"

main:
    jmp here
    .balign 4096, 0
here:
    LOAD_SEGMENTS
    ENTER_PAGING pd, CR4_PSE
    mov $pd, %edi
    mov $pd + P + RW, %eax
    mov $1024, %ecx
    rep stosl
    FINISH32

TABLE pd
PSE36 0, 0, P+RW
    .balign 4096, 0
