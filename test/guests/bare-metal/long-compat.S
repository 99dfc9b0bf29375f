# Long mode, but in a 32-bit code segment, as a 32-bit process of a 64-bit kernel is: `info registers` prints registers
# by their E-names and has nothing of R8-R15, and the machine is x86_64 all the same.
.include "guest.inc"

main:
    ENTER_LONG_MODE pml4, main64

    .code64
main64:
    WRMSR64 MSR_KERNEL_GS_BASE, 0xffffc90055667000
    movabs $0x0808080808080808, %r8
    movabs $0x1515151515151515, %r15
    mov $STACK, %esp
    pushq $CODE32
    pushq $BASE + compat - image
    lretq

    .code32
compat:
    LOAD_SEGMENTS
    FINISH32

TABLE pml4
TO 0, pdpt, P+RW
TABLE pdpt
TO 0, pd, P+RW
TABLE pd
MAP 0, 0, P+RW+PS
MAP 1, 0x200000, P+RW+PS+G
MAP 3, 0x800000, P+RW+PS
    .balign 4096, 0
