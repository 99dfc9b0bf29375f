/** 32-bit kernels, with and without PAE: FLATMEM, struct pages of 40 bytes, longs of 4. */

import t, { type Test } from 'tap';
import { encodeNote, NOTE_NAME_VMCOREINFO } from '../../lib/formats/notes.js';
import { excludePages } from '../../lib/linux/exclude-pages.js';
import { pageBits, PAGE_TABLE_MEMORY, PageTables } from './page-tables.js';

const PAGE_OFFSET = 0xc000_0000n;
const PAGE_STRUCT = 40;
const PAGES = 2048;
/** Guest physical addresses */
const NODE = 0x10_0000;
const MEM_MAP_POINTER = 0x11_0000;
const MEM_MAP = 0x20_0000;
/** Members of struct page */
const PAGE = { flags: 0, lru: 4, compoundHead: 4, mapping: 12, private: 20, mapcount: 24, refcount: 28 } as const;
const LRU = 1 << 4;
const HEAD = 1 << 16;
const OBJECT = 0xc012_3450;

const hex = (paddr: number) => (PAGE_OFFSET + BigInt(paddr)).toString(16);

/** What PAE makes different. */
interface Kind {
  readonly levels: 2 | 3;
  /** of huge pages */
  readonly order: 9 | 10;
  /** line of VMCOREINFO */
  readonly config: string;
}

const KINDS = {
  PAE: { levels: 3, order: 9, config: 'CONFIG_X86_PAE=y\n' },
  'no PAE': { levels: 2, order: 10, config: '' },
} as const satisfies Record<string, Kind>;

const VMCOREINFO = `OSRELEASE=6.1.0-686
PAGESIZE=4096
SYMBOL(swapper_pg_dir)=${hex(0)}
SYMBOL(mem_map)=${hex(MEM_MAP_POINTER)}
SYMBOL(contig_page_data)=${hex(NODE)}
SIZE(page)=${PAGE_STRUCT}
SIZE(list_head)=8
OFFSET(page.flags)=${PAGE.flags}
OFFSET(page._refcount)=${PAGE.refcount}
OFFSET(page.mapping)=${PAGE.mapping}
OFFSET(page.lru)=${PAGE.lru}
OFFSET(page._mapcount)=${PAGE.mapcount}
OFFSET(page.private)=${PAGE.private}
OFFSET(page.compound_dtor)=8
OFFSET(page.compound_order)=9
OFFSET(page.compound_head)=${PAGE.compoundHead}
OFFSET(pglist_data.node_start_pfn)=8
OFFSET(pglist_data.node_spanned_pages)=12
LENGTH(zone.free_area)=11
NUMBER(PG_lru)=4
NUMBER(PG_private)=13
NUMBER(PG_swapcache)=10
NUMBER(PG_swapbacked)=19
NUMBER(PG_slab)=9
NUMBER(PG_head_mask)=${HEAD}
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129
NUMBER(HUGETLB_PAGE_DTOR)=2
`;

function kernel({ levels }: Kind = KINDS.PAE) {
  const tables = new PageTables({ levels, encryptionMask: 0n });
  // All memory that can be written, in large pages.
  for (let paddr = 0n; paddr < PAGE_TABLE_MEMORY; paddr += 1n << pageBits({ levels }, 2))
    tables.map(PAGE_OFFSET + paddr, paddr, 2);
  const view = new DataView(tables.bytes.buffer);
  view.setUint32(MEM_MAP_POINTER, Number(PAGE_OFFSET) + MEM_MAP, true);
  view.setUint32(NODE + 12, PAGES, true);
  const set = (pfn: number, member: number, value: number) =>
    view.setUint32(MEM_MAP + pfn * PAGE_STRUCT + member, value >>> 0, true);
  for (let pfn = 0; pfn < PAGES; pfn++) {
    set(pfn, PAGE.refcount, 1);
    set(pfn, PAGE.mapcount, -1);
  }
  return { tables, set };
}

const guestOf = (tables: PageTables, { config }: Kind = KINDS.PAE, text = VMCOREINFO) =>
  tables.guest([encodeNote(NOTE_NAME_VMCOREINFO, 0, Buffer.from(text + config))]);

async function eachKindOfPage(t: Test, kind: Kind): Promise<void> {
  const { tables, set } = kernel(kind);
  set(100, PAGE.flags, LRU);
  set(100, PAGE.mapping, OBJECT);
  set(200, PAGE.flags, LRU);
  set(200, PAGE.mapping, OBJECT | 1);
  set(200, PAGE.mapcount, 0);
  for (let pfn = 304; pfn < 308; pfn++) set(pfn, PAGE.refcount, 0);
  set(304, PAGE.mapcount, -129);
  set(304, PAGE.private, 2);
  set(1024, PAGE.flags, HEAD);
  for (let pfn = 1025; pfn < 1024 + 2 ** kind.order; pfn++)
    set(pfn, PAGE.compoundHead, Number(PAGE_OFFSET) + MEM_MAP + 1024 * PAGE_STRUCT + 1);
  set(1025, 8, 2 | (kind.order << 8));
  const { exclusion, undecided } = await excludePages(guestOf(tables, kind), { level: 31 });
  t.strictSame(
    [...exclusion.runs(0, 8 * PAGES, true)],
    [
      { start: 100, end: 101 },
      { start: 200, end: 201 },
      { start: 304, end: 308 },
      { start: 1024, end: 1024 + 2 ** kind.order },
    ],
  );
  t.equal(undecided, 0);
}

for (const [name, kind] of Object.entries(KINDS)) t.test(`each kind of page, ${name}`, (t) => eachKindOfPage(t, kind));

t.test('a huge page of the other kind’s size is a contradiction', async (t) => {
  const { tables, set } = kernel(KINDS.PAE);
  set(1024, PAGE.flags, HEAD);
  set(1025, 8, 2 | (KINDS['no PAE'].order << 8));
  const { exclusion, undecided } = await excludePages(guestOf(tables), { level: 31 });
  t.equal(exclusion.total, 0);
  t.equal(undecided, 1);
});

t.test('what is no pointer of the kernel’s is a contradiction', async (t) => {
  const { tables, set } = kernel();
  set(100, PAGE.flags, LRU);
  set(100, PAGE.mapping, 0x1234_5670);
  const { exclusion, undecided } = await excludePages(guestOf(tables), { level: 31 });
  t.equal(exclusion.total, 0);
  t.equal(undecided, 1);
});

t.test('a mem_map that leads nowhere is refused', async (t) => {
  const { tables } = kernel();
  tables.bytes.fill(0, MEM_MAP_POINTER, MEM_MAP_POINTER + 4);
  await t.rejects(excludePages(guestOf(tables), { level: 31 }), { code: 'BAD_INPUT', message: 'mem_map' });
  const without = VMCOREINFO.replace(/SYMBOL\(contig_page_data\).*\n/, '');
  await t.rejects(excludePages(guestOf(tables, KINDS.PAE, without), { level: 31 }), {
    code: 'UNSUPPORTED',
    message: 'contig_page_data',
  });
});

t.test('page tables of the other kind lead nowhere', async (t) => {
  const { tables } = kernel(KINDS.PAE);
  const guest = guestOf(tables, KINDS['no PAE']);
  await t.rejects(excludePages(guest, { level: 31 }), { code: 'BAD_INPUT', message: 'page tables' });
});
