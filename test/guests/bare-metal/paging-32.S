# 32-bit paging with 4 KiB and 4 MiB pages, PSE-36 among them. Booted twice: with 17 MiB of RAM, where all that is above
# 4 GiB points at nothing, and with 17 MiB more there, where it does not.
.include "guest.inc"

main:
    LOAD_SEGMENTS
    ENTER_PAGING pd, CR4_PSE+CR4_PGE
    FINISH32

TABLE pd
TO32 0, pt_first, P+RW+US+A
PSE36 1, 0x400000, P+RW+G+A+D               # continues the small pages before it
TO32 2, pt_mixed, P+RW                      # small pages between large ones
PSE36 3, 0x800000, P+RW+PATL                # PAT bit 12 is no address bit
PSE36 4, 0x1000000, P+RW                    # starts in RAM, runs past its end
PSE36 5, 0x1400000, P+RW                    # past the end of RAM: QEMU leaves it out
PSE36 6, FOUR_GIB, P+RW                     # bits 39:32 of the address: RAM in one guest, nothing in the other
PSE36 7, FOUR_GIB + 0x400000, P+RW          # joins the former
PSE36 8, FOUR_GIB + 0x1000000, P+RW         # runs past the end of the upper RAM
PSE36 9, 0x8000400000, P+RW                 # bit 39 alone
PSE36 10, 0xffc00000, P+RW                  # ends in firmware but starts in nothing: left out
PSE36 11, 0xfec00000, P+RW+PCD              # starts at the I/O APIC
PSE36 12, 0xc00000 + (1<<21), P+RW          # reserved bit 21 set: no address bit either
PSE36 13, 0x800000, P+RW                    # two large pages in reverse order
PSE36 14, 0x400000, P+RW
TO32 15, NOISE_TABLE, P+RW                  # a table that is noise
MAP32 16, 0xc0000000, P+RW                  # a table where there is nothing: reads as zeros
MAP32 17, 0xc00000, RW+PS                   # not present: a hole
TO32 511, pt_mixed, P+RW                    # one table used twice: everything in it is an alias
PSE36 768, 0, P+RW+G                        # the kernel's half, from physical 0 as in Linux
PSE36 769, 0x400000, P+RW+G
PSE36 770, 0x800000, P+RW
TO32 1022, pt_last, P+RW
TO32 1023, pd, P+RW                         # refers to itself once, as 32-bit kernels like to: the tables become pages
    .set NOISE_TABLE, image + NOISE - BASE

TABLE pt_first
MAP32 0, LABELS + 0x9000, P+RW              # vaddr 0, which QEMU's file cannot say: 0 means "as physical"
MAP32 1, LABELS + 0xa000, P+RW
MAP32 3, 0, P                               # physical 0 elsewhere than at 0
MAP32 16, 0xa0000, P+RW                     # VGA memory, but RAM where there is no VGA
MAP32 17, 0xc0000, P
MAP32 18, 0xfee00000, P+RW+PCD+PWT
MAPS32 0x200, 0x200, 0x200000, 0x1000, P+RW # this image, its stack and its tables

TABLE pt_mixed
MAPS32 0, 16, LABELS + 0xf000, -0x1000, P+RW # sixteen adjacent pages in reverse order
MAP32 16, LABELS + 0x20000, P+G
MAP32 17, LABELS + 0x21000, P+RW+US+PCD+PWT+PAT+AVL+A+D # flags do not split a mapping
MAP32 18, LABELS + 0x22000, RW              # not present: a hole
MAP32 19, LABELS + 0x23000, P
MAPS32 32, 4, LABELS + 0x30000, 0, P+RW     # one page four times in a row
MAP32 37, LABELS + 0x31000, P+RW            # touches the former physically, not virtually
MAP32 38, LABELS + 0x2f000, P+RW            # touches it from below
MAPS32 48, 8, LABELS + 0x40000, 0x2000, P+RW # adjacent virtually, with physical gaps
MAP32 60, 0x10ff000, P+RW                   # the last page of the lower RAM
MAP32 61, 0x1100000, P+RW                   # just past it
MAP32 1023, 0x7ff000, P+RW                  # continues in the large page behind it

TABLE pt_last
MAP32 0, LABELS + 0x50000, P+RW
MAP32 1023, LABELS + 0x51000, P+RW
    .balign 4096, 0
