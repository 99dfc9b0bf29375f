# Two processors. The second has debug registers and MXCSR of its own, which only the text of the monitor tells, and is
# in the kernel: its CR3 is the one that reaches everything.
.include "guest.inc"
.set BITS, 64
.set PAE, 0
.set PROCESSORS, 2
.set KERN, 0xfffff80000000000
.set DTB, (pml4_kernel - image) + BASE

main:
    call announce
    call start_second_cpu
    ENTER_LONG_MODE pml4_user, first64
.include "smp.inc"
ap32:
    mov $0x12345678, %eax
    mov %eax, %dr0
    mov $0x9abcdef0, %eax
    mov %eax, %dr3
    ENTER_LONG_MODE pml4_kernel, second64, CR4_PAE+CR4_PSE+CR4_PGE+CR4_OSFXSR
    .set CR4_OSFXSR, 1<<9

    .code64
first64:
    LOAD_SEGMENTS fs=0, gs=0
    FINISH64
second64:
    LOAD_SEGMENTS TSS2_SELECTOR, 0, 0
    ldmxcsr BASE + mxcsr - image
    FINISH64 0x11
mxcsr: .long 0x1fa0

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
TABLE pd_low
MAP 1, 0x200000, P+RW+PS
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
