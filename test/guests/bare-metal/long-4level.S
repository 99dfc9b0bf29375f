# Long mode with 4-level tables: 4 KiB, 2 MiB and 1 GiB pages in everything that has made dumpers stumble.
# RAM: 17 MiB at 0 (not a multiple of 2 MiB: pages span its end) and 17 MiB from 4 GiB on.
.include "guest.inc"

main:
    ENTER_LONG_MODE pml4, main64

    .code64
main64:
    LOAD_SEGMENTS fs=0, gs=0
    # Text above 4 GiB, through the mapping that is there to be dumped.
    mov $TEXT, %esi
    movabs $0xffffffff80400000, %rdi
    mov $0x8000, %ecx
    rep movsb
    FINISH64

# QEMU gives every address the prefix 0xffff, so the low half comes out as 0xffff0000….
TABLE pml4
TO 0, pdpt_low, P+RW+US+A
TO 1, pdpt_giant, P+RW+PS                   # bit 7 is reserved here; QEMU ignores it
MAP 2, 0xc0000000, P+RW                     # its table lies where there is nothing: reads as zeros
TO 255, pdpt_canonical_end, P+RW            # the last page of the low half …
TO 256, pdpt_high, P+RW                     # … and the first of the high half: QEMU joins them across the hole
TO 257, pdpt_high, P+RW+NX                  # one table used twice: everything in it is an alias
TO 493, pml4, P+RW+NX                       # refers to itself once, as Windows does: the tables become pages
TO 511, pdpt_kernel, P+RW

TABLE pdpt_low
TO 0, pd_low, P+RW+US
TO 3, pd_rom, P+RW

# Identity for this image, then large and small pages side by side.
TABLE pd_low
MAP 0, 0, P+RW+PS+A+D                       # vaddr 0; starts in RAM, spans the VGA hole and more RAM
MAP 1, 0x200000, P+RW+PS+G+A+D              # this image
TO 2, pt_mixed, P+RW+A                      # small pages between large ones
MAP 3, 0x600000, P+RW+PS+PATL               # PAT bit 12 is no address bit
MAP 4, 0x800000 + 0x1e000, P+RW+PS          # reserved bits 20:13 set: no address bits either
MAP 5, 0xe00000, P+RW+PS                    # two large pages in reverse order
MAP 6, 0xc00000, P+RW+PS
MAP 8, 0x1000000, P+RW+PS                   # starts in RAM, runs past its end
MAP 9, 0x1200000, P+RW+PS                   # past the end of RAM: QEMU leaves it out
MAP 10, 0xfee00000, P+RW+PS+PCD             # the local APIC: left out
MAP 11, 0xffe00000, P+RW+PS                 # ends in ROM but starts in nothing: left out
MAP 12, FOUR_GIB, P+RW+PS+NX+G
MAP 13, FOUR_GIB + 0x1000000, P+RW+PS       # runs past the end of the upper RAM
TO 14, NOISE_TABLE, P+RW                    # a table that is noise
MAP 15, 0xfffff000, P+RW                    # a table in ROM: whatever the firmware's last page means as entries
MAP 511, 0x400000, P+RW+PS+SOFT             # bit 52 is the kernel's own; QEMU takes it for the address, leaves it out
    .set NOISE_TABLE, image + NOISE - BASE

# 4 KiB pages of 0x400000-0x5fffff.
TABLE pt_mixed
MAPS 0, 8, 0x400000, 0x1000, P+RW           # joins the large page before it
MAPS 8, 1, 0x408000, 0, P+G+NX              # flags do not split a mapping
MAPS 9, 1, 0x409000, 0, P+RW+US+PCD+PWT+PAT+AVL+A+D
MAPS 10, 1, 0x40a000, 0, RW                 # not present: a hole
MAPS 11, 1, 0x40b000, 0, P
MAPS 16, 16, LABELS + 0xf000, -0x1000, P+RW # sixteen adjacent pages in reverse order
MAPS 40, 4, LABELS + 0x20000, 0, P+RW       # one page four times in a row
MAP 45, LABELS + 0x21000, P+RW              # touches the former physically, not virtually
MAP 46, LABELS + 0x1f000, P+RW              # touches it from below
MAPS 48, 8, LABELS + 0x30000, 0x2000, P+RW  # adjacent virtually, with physical gaps
MAP 60, LABELS + 0x40000, P                 # virtual gap, physical gap of the same size: one distance, two mappings
MAP 62, LABELS + 0x42000, P
MAP 64, 0xa0000, P+RW+PCD                   # VGA memory by way of its registers: not RAM
MAP 65, 0xc0000, P                          # option ROM, wherever that is RAM
MAP 66, 0xf0000, P                          # the BIOS below 1 MiB
MAP 67, 0xfee00000, P+RW+PCD+PWT
MAP 68, 0xfffc0000, P                       # the BIOS below 4 GiB
MAP 69, 0xfffff000, P                       # its last page
MAP 70, FOUR_GIB, P                         # physically next to it: virtually, too
MAP 71, 0x10ff000, P+RW                     # the last page of the lower RAM
MAP 72, 0x1100000, P+RW                     # just past it
MAP 73, FOUR_GIB + 0x10ff000, P+RW          # the last page of all
MAP 74, FOUR_GIB + 0x1100000, P+RW
MAP 75, 0x8000000000000, P+RW               # bit 51: no memory there
MAP 76, LABELS + 0x50000, P+RW+SOFT         # bit 52, as above
MAP 77, LABELS + 0x51000, P+RW+(0xf<<59)    # protection key bits
MAP 78, LABELS + 0x52000, P+RW+NX           # NX is known to be none
MAP 79, LABELS + 0x53000, P+RW+NX
MAP 80, 0xfea00000, P+RW+PCD                # VGA memory where its BAR has it: RAM to QEMU
MAP 81, 0xfea00000, P+RW+PCD
MAP 511, LABELS + 0x60000, P+RW             # the last small page, before a large one

TABLE pd_rom                                # 3 GiB up
TO 511, pt_rom, P+RW
TABLE pt_rom
MAPS 500, 12, 0xffff4000, 0x1000, P         # ROM at its own address up to 4 GiB

TABLE pdpt_giant                            # 1 GiB pages
MAP 0, 0, P+RW+PS                           # all of the lower RAM and the holes: one entry far larger than its bytes
MAP 1, 0x40000000, P+RW+PS                  # nothing there
MAP 3, 0xc0000000, P+RW+PS                  # ROM in its last bytes, nothing at its start: left out
MAP 4, FOUR_GIB, P+RW+PS+G+NX
MAP 6, FOUR_GIB + PATL + 0x3fffe000, P+RW+PS # PAT and the reserved bits 29:13

TABLE pdpt_canonical_end
TO 511, pd_canonical_end, P+RW
TABLE pd_canonical_end
TO 511, pt_canonical_end, P+RW
TABLE pt_canonical_end
MAP 511, LABELS + 0x70000, P+RW

TABLE pdpt_high
TO 0, pd_high, P+RW
MAP 1, FOUR_GIB, P+RW+PS                    # 1 GiB …
TO 2, pd_high_2, P+RW                       # … and 2 MiB beside it, physically as far on: joined
TABLE pd_high
TO 0, pt_high, P+RW
MAP 1, 0x800000 + 0x200000, P+RW+PS
TABLE pt_high
MAP 0, LABELS + 0x71000, P+RW               # continues the last page of the low half
MAPS 1, 3, LABELS + 0x74000, 0x1000, P+RW
MAPS 256, 256, LABELS + 0x100000, 0x1000, P+RW # joins the 2 MiB page behind it
TABLE pd_high_2
MAP 0, 0x200000, P+RW+PS

TABLE pdpt_kernel
TO 510, pd_kernel, P+RW
TO 511, pd_last, P+RW
TABLE pd_kernel                             # -2 GiB, where Linux puts its text
MAP 0, 0x200000, P+PS+G
MAP 1, 0x200000, P+RW+PS+G+NX               # the same once more
MAP 2, FOUR_GIB + 0x200000, P+RW+PS+NX
MAPS 3, 4, 0x800000, 0x200000, P+RW+PS
TABLE pd_last
TO 511, pt_last, P+RW
TABLE pt_last
MAP 0, LABELS + 0x81000, P+RW
MAP 510, LABELS + 0x82000, P+RW             # the last two pages there are: the end of the mapping wraps to 0
MAP 511, LABELS + 0x83000, P+RW
    .balign 4096, 0
