# PAE: 4 KiB and 2 MiB pages, NX, RAM above 4 GiB, a top table that is 32-byte aligned only.
.include "guest.inc"

main:
    LOAD_SEGMENTS
    mov $MSR_EFER, %ecx
    rdmsr
    or $EFER_NXE, %eax
    wrmsr
    ENTER_PAGING pdpt, CR4_PAE+CR4_PSE+CR4_PGE
    mov $TEXT, %esi                         # text above 4 GiB
    mov $0x80200000, %edi
    mov $0x8000, %ecx
    rep movsb
    FINISH32

    .balign 32
    .long 0, 0, 0, 0, 0, 0, 0, 0
pdpt:                                       # bits 8:5 and 63:36 of these are reserved
    .quad (pd_0 - image) + BASE + P
    .quad (pd_1 - image) + BASE + P
    .quad (pd_2 - image) + BASE + P + PCD
    .quad (pd_3 - image) + BASE + P

TABLE pd_0
TO 0, pt_first, P+RW
MAP 1, 0x200000, P+RW+PS+G+A+D              # this image
MAP 2, 0x400000, P+RW+PS                    # joins it
TO 3, pt_mixed, P+RW
MAP 4, 0x600000 + PATL + 0x1e000, P+RW+PS   # PAT and reserved bits 20:13
MAP 5, 0x1000000, P+RW+PS                   # starts in RAM, runs past its end
MAP 6, 0x1200000, P+RW+PS
MAP 7, 0xffe00000, P+RW+PS                  # ends in ROM but starts in nothing: left out
MAP 8, 0x400000, P+RW+PS+SOFT               # bit 52 is reserved in PAE; QEMU takes it for the address
TO 9, NOISE_TABLE, P+RW                     # a table that is noise
MAP 10, 0xfffff000, P+RW                    # a table in ROM
MAP 11, 0xc0000000, P+RW                    # a table where there is nothing
MAP 511, 0xe00000, P+RW+PS                  # the last of the first GiB …
    .set NOISE_TABLE, image + NOISE - BASE

TABLE pd_1
MAP 0, 0x1000000, P+RW+PS                   # … goes on in the second
TO 1, pt_mixed, P+RW                        # aliases
MAP 2, 0xe00000, P+RW+PS+NX                 # two in reverse order
MAP 3, 0xc00000, P+RW+PS+NX

TABLE pd_2
MAP 0, FOUR_GIB, P+RW+PS                    # above 4 GiB
MAP 1, FOUR_GIB + 0x200000, P+RW+PS+NX
MAP 2, FOUR_GIB + 0x1000000, P+RW+PS        # runs past the end
MAP 3, 0xfffffe00000, P+RW+PS               # nothing there

TABLE pd_3
TO 0, pd_0, P+RW                            # a directory used as a table …
TO 508, pd_0, P+RW                          # … all four of them, as Windows maps its own
TO 509, pd_1, P+RW
TO 510, pd_2, P+RW
TO 511, pd_3, P+RW

TABLE pt_first
MAP 0, 0, P+RW+US                           # vaddr 0, paddr 0
MAP 1, 0x1000, P+RW+US
MAP 2, 0xa0000, P+RW                        # VGA memory, but RAM where there is no VGA
MAP 3, 0xc0000, P
MAP 4, 0xfee00000, P+RW
MAP 5, 0xfffff000, P                        # the last page of ROM …
MAP 6, FOUR_GIB, P+RW                       # … and the first RAM above 4 GiB: joined

TABLE pt_mixed
MAPS 0, 16, LABELS + 0xf000, -0x1000, P+RW+NX # sixteen adjacent pages in reverse order
MAPS 16, 4, LABELS + 0x20000, 0x1000, P+RW
MAPS 20, 4, LABELS + 0x24000, 0x1000, P+US+G+PAT+NX # flags do not split a mapping
MAPS 32, 3, LABELS + 0x30000, 0, P+RW       # one page three times in a row
MAPS 48, 8, LABELS + 0x40000, 0x2000, P+RW  # adjacent virtually, with physical gaps
MAP 60, FOUR_GIB + 0x10ff000, P+RW          # the last page of all
MAP 61, FOUR_GIB + 0x1100000, P+RW
MAP 511, 0x5ff000, P+RW                     # continues in the large page behind it
    .balign 4096, 0
