# 32-bit Windows with PAE: its tables begin with four entries that are aligned to 32 bytes only.
.include "guest.inc"
.set BITS, 32
.set PAE, 1
.set PROCESSORS, 1
.set KERN, 0x80400000
.set DTB, (pdpt_kernel - image) + BASE

main:
    call announce
    LOAD_SEGMENTS
    ENTER_PAGING pdpt_kernel, CR4_PAE+CR4_PSE+CR4_PGE
    FINISH32

.include "win.inc"

    .balign 32
    .long 0, 0, 0, 0, 0, 0, 0, 0
pdpt_kernel:
    .quad (pd_low - image) + BASE + P, 0, (pd_kernel - image) + BASE + P, (pd_shared - image) + BASE + P

TABLE pd_low
MAP 0, 0, P+RW+PS
MAP 1, 0x200000, P+RW+PS
TABLE pd_kernel
TO 2, pt_kernel, P+RW
TABLE pt_kernel
KERNEL_PAGES MAP
TABLE pd_shared
TO 510, pt_shared, P+RW
TABLE pt_shared
MAP 0x1f0, 0x316000, P+RW
WINDOWS
