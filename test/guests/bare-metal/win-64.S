# 64-bit Windows as a dumper sees it. The CPU is in a process whose tables have nothing of the kernel (as since Meltdown):
# DirectoryTableBase of the header has, and so has the block that processors start from, in low memory.
.include "guest.inc"
.set BITS, 64
.set PAE, 0
.set PROCESSORS, 1
.set KERN, 0xfffff80000000000
.set DTB, (pml4_kernel - image) + BASE + 2

main:
    call announce
    movl $0x000600e9, LOW_STUB              # PROCESSOR_START_BLOCK: a jump …
    movl $0x00000001, LOW_STUB + 4
    movl $0x1000, LOW_STUB + 0x70           # … to here, in the kernel …
    movl $0xfffff800, LOW_STUB + 0x74
    movl $pml4_kernel, LOW_STUB + 0xa0      # … with this CR3
    ENTER_LONG_MODE pml4_user, main64
    .set LOW_STUB, 0x13000

    .code64
main64:
    LOAD_SEGMENTS fs=0, gs=0
    # So that the memory above 4 GiB is not zeros only.
    movabs $0x100200000, %rdi
    mov $TEXT, %esi
    mov $0x8000, %ecx
    rep movsb
    FINISH64

    .code32
.include "win.inc"

TABLE pml4_user
TO 0, pdpt_low, P+RW
TABLE pml4_kernel
TO 0, pdpt_low, P+RW
TO 495, pdpt_shared, P+RW
TO 496, pdpt_kernel, P+RW
TABLE pdpt_low
TO 0, pd_low, P+RW
TO 4, pd_high, P+RW
TABLE pd_low
MAP 1, 0x200000, P+RW+PS
MAP 2, 0x400000, P+RW+PS
TABLE pd_high
MAP 1, 0x100200000, P+RW+PS
TABLE pdpt_shared
TO 0, pd_shared, P+RW
TABLE pd_shared
TO 0, pt_shared, P+RW
TABLE pt_shared
MAP 0, 0x316000, P+RW
TABLE pdpt_kernel
TO 0, pd_kernel, P+RW
TABLE pd_kernel
TO 0, pt_kernel, P+RW
TABLE pt_kernel
KERNEL_PAGES MAP
WINDOWS
