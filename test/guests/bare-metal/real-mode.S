# Real mode: no paging, segments whose base is their selector x 16, one of them "unreal" (it keeps its 4 GiB limit).
.include "guest.inc"

main:
    LOAD_SEGMENTS
    mov $real_code, %esi
    mov $TRAMP, %edi
    mov $real_end - real_code, %ecx
    rep movsb
    lidt ivtr
    ljmp $CODE16, $TRAMP
ivtr: .word 0x3ff
    .long 0

    .code16
real_code:
    mov $DATA16, %ax                        # limits of 64 KiB for all but ES
    mov %ax, %ds
    mov %ax, %ss
    mov %ax, %fs
    mov %ax, %gs
    mov %cr0, %eax
    and $~1, %eax
    mov %eax, %cr0
    ljmp $TRAMP >> 4, $real_here - real_code
real_here:
    mov $0x1234, %ax
    mov %ax, %ds
    mov $0x2345, %ax
    mov %ax, %es
    mov $0xffff, %ax                        # reaches past 1 MiB
    mov %ax, %fs
    mov $0x4567, %ax
    mov %ax, %gs
    mov $0x7000, %ax
    mov %ax, %ss
    mov $0x8765fffe, %esp
    FINISH32
real_end:
    .balign 4096, 0
