# Long mode with 5-level tables. The segment registers have descriptors whose base is not the base any more: what
# `info registers` prints of their flags is not all there is. The second CPU is left where the firmware has put it.
.include "guest.inc"

main:
    ENTER_LONG_MODE pml5, main64, CR4_PAE+CR4_PSE+CR4_PGE+CR4_LA57

    .code64
main64:
    LOAD_SEGMENTS
    FINISH64

# QEMU gives every address the prefix 0xfe00….
TABLE pml5
TO 0, pml4_low, P+RW+US
TO 1, pml4_shared, P+RW
TO 2, pml4_shared, P+RW+NX                  # one table used twice
MAP 3, 0xc0000000, P+RW                     # a table where there is nothing
TO 4, pdpt_giant, P+RW                      # a table of the wrong level: large pages here are but tables
TO 255, pml4_canonical_end, P+RW            # the last page of the low half …
TO 256, pml4_high, P+RW                     # … and the first of the high half: QEMU joins them across the hole
TO 400, pml5, P+RW+NX                       # refers to itself once
TO 511, pml4_kernel, P+RW

TABLE pml4_low
TO 0, pdpt_low, P+RW+US
TO 511, pdpt_giant, P+RW
TABLE pdpt_low
TO 0, pd_low, P+RW+US
TABLE pd_low
MAP 0, 0, P+RW+PS+A+D                       # vaddr 0
MAP 1, 0x200000, P+RW+PS+G+A+D              # this image
TO 2, pt_mixed, P+RW
MAP 3, 0x600000, P+RW+PS
MAP 5, 0xe00000, P+RW+PS                    # reverse order
MAP 6, 0xc00000, P+RW+PS
MAP 8, 0x1000000, P+RW+PS                   # runs past the end of RAM
MAP 9, FOUR_GIB + 0x1000000, P+RW+PS        # and of the upper RAM
TABLE pt_mixed
MAPS 0, 8, LABELS + 0x7000, -0x1000, P+RW
MAPS 8, 8, LABELS + 0x10000, 0x1000, P+RW+G+NX
MAPS 16, 4, LABELS + 0x20000, 0, P+RW
MAP 32, 0xffff4000, P                       # ROM
MAP 33, 0x10000000000000, P+RW              # bit 52

TABLE pml4_shared
TO 0, pdpt_shared, P+RW
TO 511, pdpt_shared, P+RW
TABLE pdpt_shared
TO 0, pd_shared, P+RW
TO 511, pd_shared, P+RW
TABLE pd_shared
MAP 0, 0x800000, P+RW+PS
MAP 511, 0xa00000, P+RW+PS

TABLE pdpt_giant
MAP 0, 0, P+RW+PS
MAP 2, FOUR_GIB, P+RW+PS+NX
MAP 511, 0, P+RW+PS

TABLE pml4_canonical_end
TO 511, pdpt_canonical_end, P+RW
TABLE pdpt_canonical_end
TO 511, pd_canonical_end, P+RW
TABLE pd_canonical_end
TO 511, pt_canonical_end, P+RW
TABLE pt_canonical_end
MAP 511, LABELS + 0x70000, P+RW

TABLE pml4_high
TO 0, pdpt_high, P+RW
TABLE pdpt_high
TO 0, pd_high, P+RW
TABLE pd_high
TO 0, pt_high, P+RW
TABLE pt_high
MAP 0, LABELS + 0x71000, P+RW
MAP 1, LABELS + 0x72000, P+RW

TABLE pml4_kernel
TO 511, pdpt_kernel, P+RW
TABLE pdpt_kernel
TO 510, pd_kernel, P+RW
TO 511, pd_last, P+RW
TABLE pd_kernel
MAP 0, 0x200000, P+PS+G
MAPS 2, 4, FOUR_GIB, 0x200000, P+RW+PS+NX
TABLE pd_last
MAP 511, 0xe00000, P+RW+PS                  # its end wraps to 0
    .balign 4096, 0
