import fc from 'fast-check';
import t, { type Test } from 'tap';
import { VmcoreError } from '../../lib/model/errors.js';
import { encodeNote, NOTE_NAME_VMCOREINFO } from '../../lib/formats/notes.js';
import { excludePages, type ExclusionReport } from '../../lib/linux/exclude-pages.js';
import { EXCLUDE_REASONS, type ExcludeReason } from '../../lib/model/page-exclusion.js';
import { FIRST_PFN, FLAG, MEM_MAP, PAGE, type SyntheticOptions, SyntheticKernel, TYPE } from './synthetic-kernel.js';

const LEVELS = [2, 4, 8, 16, 17, 30, 31];

/** A run of pages of one kind, what it takes to make it, and why makedumpfile leaves it out at which levels. */
interface Kind {
  readonly order: number;
  readonly make: (kernel: SyntheticKernel, pfn: number) => void;
  readonly reason: (level: number) => ExcludeReason | null;
}

const at = (bits: number, reason: ExcludeReason) => (level: number) => ((level & bits) !== 0 ? reason : null);

const KINDS: Readonly<Record<string, Kind>> = {
  kernel: { order: 0, make: () => {}, reason: () => null },
  slab: { order: 0, make: (kernel, pfn) => kernel.slab(pfn), reason: () => null },
  cache: { order: 0, make: (kernel, pfn) => kernel.cache(pfn), reason: at(6, 'cache') },
  buffers: { order: 0, make: (kernel, pfn) => kernel.cache(pfn, { buffers: true }), reason: at(4, 'cache-private') },
  folio: { order: 2, make: (kernel, pfn) => kernel.cache(pfn, { order: 2 }), reason: at(6, 'cache') },
  user: { order: 0, make: (kernel, pfn) => kernel.user(pfn), reason: at(8, 'user') },
  thp: { order: 9, make: (kernel, pfn) => kernel.user(pfn, 9), reason: at(8, 'user') },
  huge: { order: 9, make: (kernel, pfn) => kernel.huge(pfn), reason: at(8, 'user') },
  free: { order: 0, make: (kernel, pfn) => kernel.free(pfn, 0), reason: at(16, 'free') },
  block: { order: 10, make: (kernel, pfn) => kernel.free(pfn, 10), reason: at(16, 'free') },
  offline: { order: 0, make: (kernel, pfn) => kernel.offline(pfn), reason: () => 'offline' },
  poison: { order: 0, make: (kernel, pfn) => kernel.poison(pfn), reason: () => 'hwpoison' },
};

/** Puts kinds one behind the other, each where it is aligned, as far as there is memory. @returns reasons by page */
function fill(kernel: SyntheticKernel, kinds: readonly string[], level: number): Map<number, ExcludeReason> {
  const expected = new Map<number, ExcludeReason>();
  let pfn = FIRST_PFN;
  for (const name of kinds) {
    const { order, make, reason } = KINDS[name]!;
    const size = 2 ** order;
    pfn = Math.ceil(pfn / size) * size;
    if (pfn + size > kernel.pages) break;
    make(kernel, pfn);
    const why = reason(level);
    for (let page = pfn; page < pfn + size; page++) if (why) expected.set(page, why);
    pfn += size;
  }
  return expected;
}

/** What a report says, page by page. */
function excluded({ exclusion }: ExclusionReport, pages: number): number[] {
  return [...exclusion.runs(0, pages, true)].flatMap(({ start, end }) =>
    Array.from({ length: end - start }, (_, i) => start + i),
  );
}

function checkReport(t: Test, report: ExclusionReport, expected: Map<number, ExcludeReason>, pages: number): void {
  t.strictSame(excluded(report, pages), [...expected.keys()]);
  for (const reason of EXCLUDE_REASONS)
    t.equal(report.exclusion.count(reason), [...expected.values()].filter((each) => each === reason).length, reason);
  t.equal(report.undecided, 0);
}

const VARIETIES: Readonly<Record<string, SyntheticOptions>> = {
  'SPARSEMEM_EXTREME, compound pages as up to 6.2': {},
  '5-level tables, as in 6.3': { levels: 5, compound: 'folio' },
  'a pointer to the roots, as in 6.6': { model: 'pointer', compound: 'flags' },
  'plain SPARSEMEM, as since 6.9': { model: 'plain', compound: 'type' },
  'struct pages in 4 KiB pages': { leaf: '4 KiB' },
  'struct pages in a 1 GiB page': { leaf: '1 GiB' },
  'encrypted memory': { encryption: 1n << 47n, levels: 5 },
};

for (const [name, options] of Object.entries(VARIETIES))
  t.test(`${name}: each kind of page is left out at its levels`, async (t) => {
    for (const level of LEVELS) {
      const kernel = new SyntheticKernel(options);
      const expected = fill(kernel, Object.keys(KINDS), level);
      checkReport(t, await excludePages(kernel.guest, { level }), expected, kernel.pages);
    }
  });

t.test('any order of kinds, at any level', async () => {
  const kinds = fc.array(fc.constantFrom(...Object.keys(KINDS)), { maxLength: 120 });
  const property = fc.asyncProperty(kinds, fc.constantFrom(...LEVELS), async (kinds, level) => {
    const kernel = new SyntheticKernel();
    const expected = fill(kernel, kinds, level);
    const report = await excludePages(kernel.guest, { level });
    const pages = excluded(report, kernel.pages);
    return (
      pages.length === expected.size &&
      pages.every((pfn) => expected.has(pfn)) &&
      EXCLUDE_REASONS.every(
        (reason) => report.exclusion.count(reason) === [...expected.values()].filter((why) => why === reason).length,
      ) &&
      report.undecided === 0
    );
  });
  await fc.assert(property, { numRuns: 60 });
});

t.test('levels 0 and 1 ask nothing of the guest', async (t) => {
  const guest = new SyntheticKernel().guestWith([]);
  for (const level of [0, 1]) {
    const { exclusion, warnings } = await excludePages(guest, { level });
    t.equal(exclusion.total, 0);
    t.equal(exclusion.zeros, level === 1);
    t.strictSame(warnings, []);
  }
});

// ---------------------------------------------------------------------------------------------------------------------
// What is missing or cannot be
// ---------------------------------------------------------------------------------------------------------------------

/** A guest whose VMCOREINFO has lines changed: to another value, or left out. */
function withLines(kernel: SyntheticKernel, changes: Readonly<Record<string, string | null>>) {
  const text = kernel
    .vmcoreinfo()
    .split('\n')
    .map((line) => {
      const key = line.slice(0, line.indexOf('='));
      return key in changes ? (changes[key] === null ? '' : `${key}=${changes[key]}`) : line;
    })
    .join('\n');
  return kernel.guestWith([encodeNote(NOTE_NAME_VMCOREINFO, 0, Buffer.from(text))]);
}

const NEEDED = [
  'SIZE(page)',
  'OFFSET(page.flags)',
  'OFFSET(page._refcount)',
  'OFFSET(page.mapping)',
  'OFFSET(page.lru)',
  'OFFSET(page._mapcount)',
  'OFFSET(page.private)',
  'OFFSET(page.compound_head)',
  'OFFSET(page.compound_order)',
  'OFFSET(page.compound_dtor)',
  'NUMBER(PG_lru)',
  'NUMBER(PG_private)',
  'NUMBER(PG_swapcache)',
  'NUMBER(PG_swapbacked)',
  'NUMBER(PG_slab)',
  'NUMBER(PG_head_mask)',
  'NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)',
  'LENGTH(zone.free_area)',
  'SYMBOL(mem_section)',
  'SIZE(mem_section)',
  'OFFSET(mem_section.section_mem_map)',
  'NUMBER(phys_base)',
];

t.test('names the first key that is missing', async (t) => {
  const kernel = new SyntheticKernel();
  for (const key of NEEDED) {
    const refusal = excludePages(withLines(kernel, { [key]: null }), { level: 31, fallback: 'keep' });
    await t.rejects(refusal, { code: 'UNSUPPORTED', message: `has no ${key};` }, key);
  }
  const neither = withLines(kernel, { 'SYMBOL(init_top_pgt)': null, 'SYMBOL(swapper_pg_dir)': null });
  await t.rejects(excludePages(neither, { level: 2 }), { code: 'UNSUPPORTED', message: 'SYMBOL(swapper_pg_dir)' });
  const notFree = withLines(kernel, { 'NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)': null, 'LENGTH(zone.free_area)': null });
  await t.resolves(excludePages(notFree, { level: 15 }), 'what concerns free pages only, only for them');
});

t.test('refuses values that cannot be', async (t) => {
  const kernel = new SyntheticKernel();
  const values: Record<string, string> = {
    'SIZE(page)': '7',
    'OFFSET(page.flags)': '60',
    'OFFSET(page._mapcount)': '-4',
    'OFFSET(page.compound_order)': '64',
    'NUMBER(PG_lru)': '64',
    'LENGTH(zone.free_area)': '64',
    'SIZE(mem_section)': '12',
    'NUMBER(SECTION_SIZE_BITS)': '60',
    'NUMBER(MAX_PHYSMEM_BITS)': '64',
    'NUMBER(phys_base)': '4096',
    'SYMBOL(mem_section)': 'ffffffff80000000',
  };
  for (const [key, value] of Object.entries(values))
    await t.rejects(excludePages(withLines(kernel, { [key]: value }), { level: 31 }), { code: 'BAD_INPUT' }, key);
});

t.test('refuses guests that do not say enough', async (t) => {
  const kernel = new SyntheticKernel();
  const { guest } = kernel;
  await t.rejects(excludePages(kernel.guestWith([]), { level: 2 }), { code: 'UNSUPPORTED', message: '--vmcoreinfo' });
  const { name, arch, blocks, cpus, notes } = guest;
  const stream = { name, arch, blocks, cpus, notes, memory: null, chunks: () => guest.chunks(), close: () => {} };
  await t.rejects(excludePages(stream, { level: 2 }), { code: 'UNSUPPORTED', message: 'stream' });
  const small = withLines(kernel, { 'SIZE(list_head)': '8' });
  await t.rejects(excludePages(small, { level: 2 }), { code: 'BAD_INPUT', message: 'page tables' });
  const signal = AbortSignal.abort();
  await t.rejects(excludePages(guest, { level: 2, signal }), { code: 'ABORTED' });
});

// ---------------------------------------------------------------------------------------------------------------------
// Damage
// ---------------------------------------------------------------------------------------------------------------------

const MIB = 2 ** 20;
/** Pages of a section */
const SECTION = 4096;

/** A kernel with three sections and every kind of page, and what is left out of it at level 31. */
function busyKernel(options: SyntheticOptions = {}) {
  const kernel = new SyntheticKernel({ memory: 48 * MIB, ...options });
  const expected = fill(kernel, [...Object.keys(KINDS), ...Object.keys(KINDS)], 31);
  return { kernel, expected: [...expected.keys()], reasons: expected };
}

/** What makes the second section undecidable. */
const SECTION_DAMAGES: Readonly<Record<string, (kernel: SyntheticKernel) => void>> = {
  'leads nowhere': ({ bytes, sections }) => bytes.fill(0x5b, sections + 16, sections + 24),
  'has struct pages of its own': ({ bytes, sections }) => (bytes[sections + 16 + 3]! ^= 0x10),
};

for (const [name, damage] of Object.entries(SECTION_DAMAGES))
  t.test(`a section that ${name} is refused, or kept`, async (t) => {
    const { kernel, expected } = busyKernel();
    damage(kernel);
    await t.rejects(excludePages(kernel.guest, { level: 31 }), { code: 'BAD_INPUT', message: 'mem_section 1' });
    const report = await excludePages(kernel.guest, { level: 31, fallback: 'keep' });
    t.equal(report.undecided, SECTION);
    t.strictSame(
      excluded(report, kernel.pages),
      expected.filter((pfn) => Math.floor(pfn / SECTION) !== 1),
    );
    t.match(report.warnings[0], /mem_section 1 .*kept for that: 4096$/);
  });

t.test('struct pages that are not mapped are refused, or kept', async (t) => {
  const { kernel, expected } = busyKernel({ leaf: '4 KiB' });
  // The last of the tables maps the struct pages, 64 a page.
  kernel.bytes[kernel.lastTable + 8 * 100]! &= ~1;
  await t.rejects(excludePages(kernel.guest, { level: 31 }), {
    code: 'BAD_INPUT',
    message: 'are not mapped to memory',
  });
  const report = await excludePages(kernel.guest, { level: 31, fallback: 'keep' });
  t.equal(report.undecided, SECTION);
  t.strictSame(
    excluded(report, kernel.pages),
    expected.filter((pfn) => Math.floor(pfn / SECTION) !== 1),
  );
});

t.test('a page table that leads to the same struct pages twice is refused, or both are kept', async (t) => {
  const { kernel, expected } = busyKernel({ leaf: '4 KiB' });
  const entry = (index: number) => kernel.lastTable + 8 * index;
  kernel.bytes.copyWithin(entry(100), entry(20), entry(21));
  const refusal = { code: 'BAD_INPUT', message: 'are in memory that has another use' };
  await t.rejects(excludePages(kernel.guest, { level: 31 }), refusal);
  const report = await excludePages(kernel.guest, { level: 31, fallback: 'keep' });
  t.equal(report.undecided, 2 * SECTION);
  t.strictSame(
    excluded(report, kernel.pages),
    expected.filter((pfn) => Math.floor(pfn / SECTION) === 2),
  );
});

t.test('a page table that leads to a page that is left out is refused', async (t) => {
  const { kernel } = busyKernel({ leaf: '4 KiB' });
  const user = 3 * SECTION - 1;
  kernel.user(user);
  new DataView(kernel.bytes.buffer).setBigUint64(kernel.lastTable + 8 * 100, BigInt(user * 4096) | 0x63n, true);
  const refusal = { code: 'BAD_INPUT', message: 'are in memory that has another use' };
  await t.rejects(excludePages(kernel.guest, { level: 31 }), refusal);
  t.equal((await excludePages(kernel.guest, { level: 31, fallback: 'keep' })).undecided, SECTION);
});

/** Makes noise of the struct pages of a section. */
function putNoise(kernel: SyntheticKernel, section: number): void {
  const words = new Uint32Array(kernel.bytes.buffer, MEM_MAP + section * SECTION * 64, (SECTION * 64) / 4);
  let seed = 1;
  for (let i = 0; i < words.length; i++) words[i] = seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
}

t.test('struct pages of noise are refused, or kept', async (t) => {
  const { kernel } = busyKernel();
  putNoise(kernel, 1);
  const refusal = { code: 'BAD_INPUT', message: 'contradict themselves too often' };
  await t.rejects(excludePages(kernel.guest, { level: 31 }), refusal);
  const report = await excludePages(kernel.guest, { level: 31, fallback: 'keep' });
  t.equal(report.undecided, SECTION);
});

/** A kernel to which a third section was added whose struct pages nobody has written, and what is left out of the others. */
function pluggedKernel(flags: readonly [number, number, number]) {
  const kernel = new SyntheticKernel({ memory: 48 * MIB });
  const expected = fill(kernel, Object.keys(KINDS), 31);
  putNoise(kernel, 2);
  for (const [section, bits] of flags.entries()) kernel.bytes[kernel.sections + section * 16] = bits;
  return { kernel, expected: [...expected.keys()] };
}

t.test('memory that is not online is kept, and that is no damage', async (t) => {
  // Present, has a map, is online, early. What is added later is never early.
  const releases = { '6.1.0-synthetic': [0xf, 0xf, 0x3], '4.19.0-synthetic': [0x7, 0x7, 0x3] } as const;
  for (const [release, flags] of Object.entries(releases)) {
    const { kernel, expected } = pluggedKernel(flags);
    const report = await excludePages(withLines(kernel, { OSRELEASE: release }), { level: 31 });
    t.strictSame(excluded(report, kernel.pages), expected, release);
    t.equal(report.undecided, SECTION);
    t.match(report.warnings[0], /not online.*kept for that: 4096$/);
  }
});

t.test('the struct pages of memory that was added and brought online count', async (t) => {
  const { kernel } = pluggedKernel([0xf, 0xf, 0x7]);
  const refusal = { code: 'BAD_INPUT', message: 'contradict themselves too often' };
  await t.rejects(excludePages(kernel.guest, { level: 31 }), refusal);
  const unknown = pluggedKernel([0x7, 0x7, 0x3]);
  await t.rejects(excludePages(unknown.kernel.guest, { level: 31 }), refusal, 'where the flags are not known, too');
});

/** Pages whose struct page contradicts itself: what is changed of which kind. */
const CONTRADICTIONS: readonly [string, keyof typeof KINDS, (kernel: SyntheticKernel, pfn: number) => void][] = [
  ['a free page with references', 'free', (kernel, pfn) => kernel.set(pfn, PAGE.refcount, 1n, 4)],
  ['a free block of no known order', 'free', (kernel, pfn) => kernel.set(pfn, PAGE.private, 11n)],

  [
    'a free page in no free list',
    'kernel',
    (kernel, pfn) => {
      kernel.set(pfn, PAGE.mapcount, BigInt(TYPE.buddy), 4);
      kernel.set(pfn, PAGE.refcount, 0n, 4);
    },
  ],
  [
    'a page of the cache that is in no list and of no file',
    'kernel',
    (kernel, pfn) => kernel.set(pfn, PAGE.flags, 1n << BigInt(FLAG.lru)),
  ],
  ['a page of the cache without references', 'cache', (kernel, pfn) => kernel.set(pfn, PAGE.refcount, 0n, 4)],
  [
    'a page of the slab allocator in the cache',
    'slab',
    (kernel, pfn) => kernel.set(pfn, PAGE.flags, (1n << BigInt(FLAG.slab)) | (1n << BigInt(FLAG.lru))),
  ],
  ['a page of a process without a mapping', 'kernel', (kernel, pfn) => kernel.set(pfn, PAGE.mapping, 1n)],
  ['a page type on a page of a process', 'user', (kernel, pfn) => kernel.set(pfn, PAGE.mapcount, BigInt(TYPE.huge), 4)],
  [
    'a compound page of no order',
    'user',
    (kernel, pfn) => {
      kernel.set(pfn, PAGE.flags, (1n << BigInt(FLAG.lru)) | (1n << BigInt(FLAG.head)));
      kernel.set(pfn + 1, 17, 0n, 1);
    },
  ],
];

t.test('a page whose struct page contradicts itself is kept and counted', async (t) => {
  for (const [name, kind, change] of CONTRADICTIONS) {
    const kernel = new SyntheticKernel();
    const expected = fill(kernel, [kind, 'kernel', 'user', 'cache'], 31);
    change(kernel, FIRST_PFN);
    const report = await excludePages(kernel.guest, { level: 31 });
    t.strictSame(
      excluded(report, kernel.pages),
      [...expected.keys()].filter((pfn) => pfn !== FIRST_PFN),
      name,
    );
    t.equal(report.undecided, 1, name);
    t.match(report.warnings[0], /kept for that: 1$/);
  }
});

t.test('a compound page goes as far as its pages refer to its first', async (t) => {
  const { kernel, expected } = busyKernel();
  const first = 1024 * 10;
  for (let pfn = first; pfn < first + 1024; pfn++) kernel.kernelPage(pfn);
  kernel.user(first, 4);
  // Order 4 becomes 6: the pages behind it are the kernel's.
  kernel.set(first + 1, 17, 6n, 1);
  const report = await excludePages(kernel.guest, { level: 31 });
  const own = Array.from({ length: 16 }, (_, i) => first + i);
  t.strictSame(
    excluded(report, kernel.pages),
    [...expected.filter((pfn) => pfn < first || pfn >= first + 1024), ...own].sort((a, b) => a - b),
  );
  t.equal(report.undecided, 1);
});

t.test('a free block that claims to be larger than the list that it is in', async (t) => {
  const kernel = new SyntheticKernel();
  const pfn = FIRST_PFN;
  kernel.free(pfn, 0);
  kernel.free(pfn + 2, 1);
  kernel.set(pfn, PAGE.private, 1n);
  const report = await excludePages(kernel.guest, { level: 16 });
  t.strictSame(excluded(report, kernel.pages), [pfn + 2, pfn + 3]);
  t.ok(report.undecided > 0);
  t.match(report.warnings.at(-1), /order 0, 1/);
});

/** Bits that matter to the decision: of the tables that are used, of mem_section, and of struct page. */
function bitsOf(kernel: SyntheticKernel): fc.Arbitrary<number> {
  const bytes = (from: number, length: number) => fc.integer({ min: 8 * from, max: 8 * (from + length) - 1 });
  const tables = fc.nat({ max: (kernel.lastTable - kernel.root) / 4096 }).chain((table) => {
    const base = kernel.root + table * 4096;
    const used = Array.from({ length: 512 }, (_, i) => base + 8 * i).filter((at) => kernel.bytes[at] !== 0);
    return fc.constantFrom(...used).chain((at) => bytes(at, 8));
  });
  return fc.oneof(
    tables,
    bytes(kernel.sections, 3 * 16),
    bytes(kernel.root + 32 * 4096, 8),
    bytes(MEM_MAP, kernel.pages * 64),
  );
}

t.test('a bit that flips leads to a refusal or shows in the report; no page is left out in silence', async () => {
  for (const leaf of ['2 MiB', '4 KiB'] as const) {
    const { kernel, reasons } = busyKernel({ leaf });
    const untouched = await excludePages(kernel.guest, { level: 31 });
    const told = new Set(untouched.warnings);
    const property = fc.asyncProperty(bitsOf(kernel), fc.constantFrom('refuse', 'keep'), async (bit, fallback) => {
      kernel.bytes[bit >>> 3]! ^= 1 << (bit & 7);
      try {
        const report = await excludePages(kernel.guest, { level: 31, fallback });
        const silent = report.undecided === 0 && report.warnings.every((text) => told.has(text));
        return !silent || excluded(report, kernel.pages).every((pfn) => reasons.has(pfn));
      } catch (error) {
        return error instanceof VmcoreError && error.code === 'BAD_INPUT';
      } finally {
        kernel.bytes[bit >>> 3]! ^= 1 << (bit & 7);
      }
    });
    await fc.assert(property, { numRuns: 500 });
  }
});

t.test('what no kernel tells twice cannot be seen to be wrong: a process’s page becomes one of a file', async (t) => {
  const kernel = new SyntheticKernel();
  kernel.user(FIRST_PFN);
  kernel.set(FIRST_PFN, PAGE.mapping, 0xffff_8880_0123_4560n);
  const { exclusion, undecided } = await excludePages(kernel.guest, { level: 2 });
  t.equal(exclusion.count('cache'), 1);
  t.equal(undecided, 0);
});
