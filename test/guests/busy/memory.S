# Holds memory of the kinds that a shell cannot make, and sleeps. Says "ready" on standard output.
#
# Every page has its own contents but for those that the kernel is to merge. 32-bit, so that it runs on 32-bit and on
# 64-bit Linux; no C library. Numbers are those of arch/x86/entry/syscalls/syscall_32.tbl and asm-generic/mman-common.h.

    .set SYS_write, 4
    .set SYS_pause, 29
    .set SYS_mlock, 150
    .set SYS_mmap2, 192
    .set SYS_madvise, 219

    .set PROT_READ_WRITE, 3
    .set MAP_SHARED_ANONYMOUS, 0x21
    .set MAP_PRIVATE_ANONYMOUS, 0x22
    .set MAP_HUGETLB, 0x40000

    .set MADV_MERGEABLE, 12
    .set MADV_HUGEPAGE, 14
    .set MADV_NOHUGEPAGE, 15

    .set MIB, 0x100000

# Maps memory; its address is in `mapped` then.
    .macro MAP size, flags
    mov $SYS_mmap2, %eax
    xor %ebx, %ebx
    mov $\size, %ecx
    mov $PROT_READ_WRITE, %edx
    mov $\flags, %esi
    mov $-1, %edi
    xor %ebp, %ebp
    int $0x80
    cmp $-4096, %eax
    ja fail
    mov %eax, mapped
    .endm

# A call on what was mapped last.
    .macro ON_MAPPED call, size, argument
    mov $\call, %eax
    mov mapped, %ebx
    mov $\size, %ecx
    mov $\argument, %edx
    int $0x80
    test %eax, %eax
    jnz fail
    .endm

# Fills what was mapped last with words that grow by \step.
    .macro FILL size, step
    mov mapped, %edi
    mov $(\size / 4), %ecx
    mov $0x01234567, %eax
1:  mov %eax, (%edi)
    add $4, %edi
    add $\step, %eax
    dec %ecx
    jnz 1b
    .endm

    .globl _start
_start:
    # Small pages, some of them locked.
    MAP (12 * MIB), MAP_PRIVATE_ANONYMOUS
    ON_MAPPED SYS_madvise, (12 * MIB), MADV_NOHUGEPAGE
    ON_MAPPED SYS_mlock, MIB, 0
    FILL (12 * MIB), 1

    # Transparent huge pages: at least five are aligned.
    MAP (12 * MIB), MAP_PRIVATE_ANONYMOUS
    ON_MAPPED SYS_madvise, (12 * MIB), MADV_HUGEPAGE
    FILL (12 * MIB), 3

    # Huge pages of hugetlbfs, two of 2 MiB.
    MAP (4 * MIB), (MAP_PRIVATE_ANONYMOUS | MAP_HUGETLB)
    FILL (4 * MIB), 5

    # Shared memory: its pages are those of a tmpfs file.
    MAP (2 * MIB), MAP_SHARED_ANONYMOUS
    FILL (2 * MIB), 7

    # The same page over and over, which the kernel merges.
    MAP (2 * MIB), MAP_PRIVATE_ANONYMOUS
    ON_MAPPED SYS_madvise, (2 * MIB), MADV_NOHUGEPAGE
    ON_MAPPED SYS_madvise, (2 * MIB), MADV_MERGEABLE
    FILL (2 * MIB), 0

    mov $SYS_write, %eax
    mov $1, %ebx
    mov $ready, %ecx
    mov $ready_length, %edx
    int $0x80
2:  mov $SYS_pause, %eax
    int $0x80
    jmp 2b

# The kernel says where the trap was.
fail:
    ud2

    .data
ready:
    .ascii "ready\n"
    .set ready_length, . - ready

    .bss
    .lcomm mapped, 4

    .section .note.GNU-stack, "", @progbits
