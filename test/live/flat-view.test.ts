/** `info mtree -f`, as QEMU 7.2 and 10 print it. */

import t from 'tap';
import { parseFlatView, placeOf } from '../../lib/live/qemu/flat-view.js';

const TEXT = `FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-00000000000bffff (prio 0, ram): ram KVM
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom KVM
  00000000000e0000-00000000000fffff (prio 0, rom): ram @00000000000e0000 KVM
  0000000000100000-000000007fffffff (prio 0, ram): ram @0000000000100000
  00000000fd000000-00000000fdffffff (prio 1, ram): 0000:00:02.0/vga.vram @0000000000001000
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  0000000100000000-000000017fffffff (prio 0, ram): ram @0000000080000000

FlatView #2
 AS "cpu-smm-0", root: memory
  0000000000000000-ffffffffffffffff (prio 0, ram): other
`;

t.test('the ranges of system memory', async (t) => {
  const ranges = parseFlatView(TEXT);
  t.equal(ranges.length, 7);
  t.same(ranges[1], { base: 0xc0000, length: 0x20000, region: 'pc.rom', offset: 0 });
  t.same(ranges[4], { base: 0xfd000000, length: 0x1000000, region: '0000:00:02.0/vga.vram', offset: 0x1000 });
  t.same(ranges[6], { base: 2 ** 32, length: 2 ** 31, region: 'ram', offset: 2 ** 31 });
});

t.test('where a block is', async (t) => {
  const ranges = parseFlatView(TEXT);
  const place = (base: number, length: number) => placeOf({ base, length }, ranges);
  t.same(place(0, 0xc0000), { region: 'ram', offset: 0 });
  t.same(place(0x1000, 0x1000), { region: 'ram', offset: 0x1000 }, 'within a range');
  t.same(place(0xe0000, 0x7ff20000), { region: 'ram', offset: 0xe0000 }, 'over two ranges that adjoin in the region');
  t.equal(place(0, 0x100000), null, 'over two regions');
  t.equal(place(0x7ffff000, 0x2000), null, 'beyond the end');
  t.equal(place(0x80000000, 0x1000), null, 'nowhere');
  t.equal(place(0x100000, 2 ** 33), null, 'over a hole');
});

t.test('what is no flat view', async (t) => {
  for (const text of ['', "unknown command: 'info mtree -f'\n", 'AS "memory"\n'.repeat(10), TEXT.replaceAll('-', '+')])
    t.same(parseFlatView(text), []);
});
