# 32-bit paging without PSE, and with the A20 gate closed: QEMU clears bit 20 of the addresses of tables (CR3 and
# directory entries) but not of the pages. So this image must not need bit 20 itself.
.include "guest.inc"

main:
    LOAD_SEGMENTS                           # the LDT is where bit 20 is set: read it while it can be
    inb $0x92, %al
    and $~2, %al
    outb %al, $0x92
    ENTER_PAGING pd + 0x100000, 0           # CR3 says 0x30…, means 0x20…
    FINISH32

TABLE pd
TO32 0, pt_first + 0x100000, P+RW           # likewise
MAP32 1, TABLE_OF_PAGES, P+RW+PS            # without CR4.PSE, bit 7 means nothing: it is a table
TO32 2, NOISE_TABLE, P+RW                   # the table is not the noise but, without bit 20, the text
MAP32 3, 0x10ff000, P+RW                    # a table in the last page of RAM: bit 20 is clear there
MAP32 4, 0x1100000, P+RW                    # past the end, which without bit 20 is not past the end
TO32 1023, pd, P+RW
    .set NOISE_TABLE, image + NOISE - BASE
    .set TABLE_OF_PAGES, pt_pages - image + BASE

TABLE pt_first
MAPS32 0x200, 0x100, 0x200000, 0x1000, P+RW # this image
MAP32 0x300, 0x300000, P+RW                 # bit 20 of a page: what the CPU does not see, QEMU's dump does
MAP32 0x302, 0x302000, P+RW

TABLE pt_pages
MAP32 0, LABELS, P+RW
MAP32 1, LABELS + 0x1000, P+RW
MAP32 2, LABELS + 0x100000, P+RW
MAP32 3, LABELS + 0x101000, P+RW
    .balign 4096, 0
