# Two CPUs in long mode, each with tables of its own. QEMU merges the second's mappings into the first's, and only here
# does a mapping come late that lies below or across one that is there: what becomes of it is QEMU's own way.
.include "guest.inc"

main:
    call start_second_cpu
    ENTER_LONG_MODE pml4_first, first64
.include "smp.inc"
ap32:
    ENTER_LONG_MODE pml4_second, second64

    .code64
first64:
    LOAD_SEGMENTS fs=0, gs=0
    FINISH64
second64:
    LOAD_SEGMENTS TSS2_SELECTOR, 0, 0
    FINISH64 0x11

TABLE pml4_first
TO 0, pdpt_first, P+RW
TO 511, pdpt_kernel, P+RW
TABLE pml4_second
TO 0, pdpt_second, P+RW
TO 256, pdpt_second, P+RW                   # aliases
TO 511, pdpt_kernel_2, P+RW

TABLE pdpt_first
TO 0, pd_identity, P+RW
TO 1, pd_first, P+RW
TABLE pdpt_second
TO 0, pd_identity, P+RW                     # the same table: nothing new
TO 1, pd_second, P+RW

TABLE pd_identity
MAP 1, 0x200000, P+RW+PS
MAP 2, 0x400000, P+RW+PS

TABLE pd_first
TO 0, pt_first, P+RW
TO 2, pt_first_inner, P+RW
MAP 4, 0x600000, P+RW+PS
TABLE pd_second
TO 0, pt_second, P+RW
MAP 2, 0xc00000, P+RW+PS                    # a large page around small ones of the first CPU, same distance
TO 4, pt_second_inner, P+RW                 # small pages within a large one of the first CPU, same distance

TABLE pt_first
MAPS 16, 4, LABELS + 0x10000, 0x1000, P+RW
MAP 32, LABELS + 0x20000, P+RW
MAP 34, LABELS + 0x22000, P+RW
MAPS 48, 4, LABELS + 0x30000, 0x1000, P+RW
MAPS 64, 4, LABELS + 0x43000, -0x1000, P+RW
MAP 80, LABELS + 0x50000, P+RW
TABLE pt_second
MAP 15, LABELS + 0xf000, P+RW               # touches from below: QEMU moves vaddr down, but not paddr
MAP 17, LABELS + 0x11000, P+RW              # within
MAP 20, LABELS + 0x14000, P+RW              # touches from above
MAP 33, LABELS + 0x21000, P+RW              # fills a gap: joins the one before, and the one behind stays
MAP 34, LABELS + 0x24000, P+RW              # another page at a used address
MAP 35, LABELS + 0x23000, P+RW
MAPS 47, 2, LABELS + 0x2f000, 0x1000, P+RW  # overlaps from below
MAPS 51, 3, LABELS + 0x33000, 0x1000, P+RW  # overlaps from above
MAPS 64, 4, LABELS + 0x40000, 0x1000, P+RW  # the reverse of the reverse
MAP 79, LABELS + 0x4e000, P+RW              # near, but not touching
MAP 82, LABELS + 0x52000, P+RW

TABLE pt_first_inner
MAPS 48, 3, 0xc30000, 0x1000, P+RW
MAPS 100, 2, 0xc64000, 0x1000, P+RW
TABLE pt_second_inner
MAPS 7, 2, 0x607000, 0x1000, P+RW
MAPS 510, 2, 0x7fe000, 0x1000, P+RW

TABLE pdpt_kernel
TO 510, pd_kernel, P+RW
TO 511, pd_last, P+RW
TABLE pdpt_kernel_2
TO 510, pd_kernel, P+RW                     # shared, as kernels do
TO 511, pd_last_2, P+RW
TABLE pd_kernel
MAPS 0, 2, 0x200000, 0x200000, P+PS+G
MAP 8, 0xe00000, P+RW+PS
TABLE pd_last
MAP 510, 0xa00000, P+RW+PS
MAP 511, 0xe00000, P+RW+PS                  # its end wraps to 0 …
TABLE pd_last_2
TO 510, pt_last_2, P+RW
TO 511, pt_last_2, P+RW
TABLE pt_last_2
MAP 0, 0xe00000, P+RW                       # … so that a part of it seems to reach further: the mapping shrinks
MAP 1, 0xe01000, P+RW
MAP 511, 0xfff000, P+RW
    .balign 4096, 0
