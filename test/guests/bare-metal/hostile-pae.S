# PAE whose directories all refer to themselves: 2^20 mappings of one page. Made as in hostile-self.S.
.include "guest.inc"

main:
    jmp here
    .balign 4096, 0
here:
    LOAD_SEGMENTS
    ENTER_PAGING pdpt, CR4_PAE
    mov $pd, %edi
    mov $512, %ecx
1:  movl $pd + P + RW, (%edi)
    movl $0, 4(%edi)
    add $8, %edi
    loop 1b
    FINISH32

TABLE pdpt
TO 0, pd, P
TO 1, pd, P
TO 2, pd, P
TO 3, pd, P
TABLE pd
MAP 1, 0x200000, P+RW+PS
    .balign 4096, 0
