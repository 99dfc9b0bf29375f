# 32-bit Windows without PAE.
.include "guest.inc"
.set BITS, 32
.set PAE, 0
.set PROCESSORS, 1
.set KERN, 0x80400000
.set DTB, (pd_kernel - image) + BASE

main:
    call announce
    LOAD_SEGMENTS
    ENTER_PAGING pd_kernel, CR4_PSE+CR4_PGE
    FINISH32

.include "win.inc"

TABLE pd_kernel
PSE36 0, 0, P+RW
TO32 0x201, pt_kernel, P+RW
TO32 1023, pt_shared, P+RW
TABLE pt_kernel
KERNEL_PAGES MAP32
TABLE pt_shared
MAP32 0x1f0, 0x316000, P+RW
WINDOWS
