import assert from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import {
  type CpuState,
  CR0_PG,
  GENERAL_REGISTERS,
  type GeneralRegister,
  type Guest,
  NULL_SEGMENT,
  SEGMENT_REGISTERS,
  type SegmentRegister,
  SYSTEM_SEGMENTS,
  type SystemSegment,
} from '../../lib/model/guest.js';
import { type MemoryBlock, PhysicalMemory } from '../../lib/model/physical-memory.js';
import { MemoryGuest } from '../../lib/sources/memory-guest.js';
import { MappingList } from '../../lib/paging/mapping-list.js';
import {
  type Mapping,
  type PagingMode,
  pagingMode,
  type ResolveOptions,
  resolveMappings,
  translate,
} from '../../lib/paging/mapping-resolver.js';
import { BufferBacking } from '../guest-fixture.js';

const P = 1n;
const RW = 2n;
const PS = 1n << 7n;
const GLOBAL = 1n << 8n;
const NX = 1n << 63n;
const CR4_PSE = 1n << 4n;
const CR4_PAE = 1n << 5n;
const CR4_LA57 = 1n << 12n;

const KIB = 1024n;
const MIB = 1024n * KIB;
const GIB = 1024n * MIB;

/** Where QEMU puts the addresses of 4-level and 5-level paging. */
const PREFIX = { '4-level': 0xffffn << 48n, '5-level': 0x7fn << 57n };

const MODES: Record<Exclude<PagingMode, 'none'>, { cr4: bigint; longMode: boolean }> = {
  '32-bit': { cr4: CR4_PSE, longMode: false },
  PAE: { cr4: CR4_PAE, longMode: false },
  '4-level': { cr4: CR4_PAE, longMode: true },
  '5-level': { cr4: CR4_PAE | CR4_LA57, longMode: true },
};

function record<K extends string, V>(keys: readonly K[], value: V): Record<K, V> {
  return Object.fromEntries(keys.map((key) => [key, value])) as Record<K, V>;
}

/** A CPU with its tables at `cr3`. */
function cpu(mode: PagingMode, cr3: bigint | number, cr4?: bigint): CpuState {
  const { longMode, ...control } = mode === 'none' ? { cr4: 0n, longMode: false } : MODES[mode];
  const system = {
    ...record<SystemSegment, typeof NULL_SEGMENT>(SYSTEM_SEGMENTS, NULL_SEGMENT),
    cr0: mode === 'none' ? 1n : 1n | CR0_PG,
    cr1: 0n,
    cr2: 0n,
    cr3: BigInt(cr3),
    cr4: cr4 ?? control.cr4,
    kernelGsBase: 0n,
  };
  return {
    ...record<GeneralRegister, bigint>(GENERAL_REGISTERS, 0n),
    ...record<SegmentRegister, typeof NULL_SEGMENT>(SEGMENT_REGISTERS, NULL_SEGMENT),
    longMode,
    system,
  };
}

/** Entries of a table by index, or for each index. */
type Entries = Record<number, bigint> | ((index: number) => bigint);

/** Memory that holds tables, and more memory that is all zeros. */
class Tables {
  readonly #bytes: Uint8Array;
  readonly #words: DataView;
  readonly #more: readonly MemoryBlock[];

  constructor(size: bigint | number = MIB, more: readonly MemoryBlock[] = []) {
    this.#bytes = new Uint8Array(Number(size));
    this.#words = new DataView(this.#bytes.buffer);
    this.#more = more;
  }

  /** Fills a table of 8-byte entries. */
  wide(address: number | bigint, entries: Entries, count = 512): this {
    return this.#fill(entries, count, (i, entry) => this.#words.setBigUint64(Number(address) + i * 8, entry, true));
  }

  /** Fills a table of 4-byte entries. */
  narrow(address: number | bigint, entries: Entries): this {
    return this.#fill(entries, 1024, (i, entry) => this.#words.setUint32(Number(address) + i * 4, Number(entry), true));
  }

  guest(...cpus: CpuState[]): MemoryGuest {
    const backing = new BufferBacking(this.#bytes);
    const tables = { base: 0, length: this.#bytes.length, backing, offset: 0 };
    const more = this.#more.map((block) => ({ ...block, backing: null, offset: 0 }));
    return new MemoryGuest({ name: 'test', arch: 'x86_64', regions: [tables, ...more], cpus, notes: [] });
  }

  #fill(entries: Entries, count: number, set: (index: number, entry: bigint) => void): this {
    if (typeof entries === 'function') for (let i = 0; i < count; i++) set(i, entries(i));
    else for (const [index, entry] of Object.entries(entries)) set(Number(index), entry);
    return this;
  }
}

function hex({ vaddr, paddr, length }: Mapping): string {
  return `${vaddr.toString(16)}->${paddr.toString(16)}+${length.toString(16)}`;
}

/** Mappings as text. */
async function resolved(guest: Guest, options?: ResolveOptions): Promise<string[]> {
  return (await resolveMappings(guest, options)).map(hex);
}

/** Physical memory of `length` at `base`. */
function block(base: bigint, length: bigint): MemoryBlock {
  return { base: Number(base), length: Number(length) };
}

t.test('modes', async (t) => {
  t.equal(pagingMode(cpu('none', 0)), 'none');
  for (const mode of ['32-bit', 'PAE', '4-level', '5-level'] as const) t.equal(pagingMode(cpu(mode, 0)), mode);
  t.equal(pagingMode(cpu('32-bit', 0, CR4_LA57)), '32-bit', 'LA57 without PAE');
  t.equal(pagingMode(cpu('PAE', 0, CR4_PAE | CR4_LA57)), 'PAE', 'LA57 without long mode');
});

t.test('no paging: every block at its address', async (t) => {
  const tables = new Tables(MIB, [block(4n * GIB, MIB)]);
  t.strictSame(await resolved(tables.guest(cpu('none', 0), cpu('none', 0))), [
    '0->0+100000',
    '100000000->100000000+100000',
  ]);
});

t.test('32-bit paging', async (t) => {
  const tables = new Tables(16n * MIB, [block(36n * GIB, 8n * MIB)])
    .narrow(0x1000, {
      0: 0x2000n | P,
      1: 0x400000n | PS | GLOBAL | P,
      // PSE-36: 36 GiB is bit 35 and bit 32 of the address, which are bits 16 and 13 of the entry
      2: (0x9n << 13n) | PS | P,
      3: 0x2000n, // not present
      1023: 0x1000n | P, // the directory maps itself
    })
    .narrow(0x2000, { 0: 0x5000n | P, 1: 0x6000n | P | RW, 2: 0x4000n | P, 1023: 0x7000n | P, 5: 0xfff0_0000n | P });

  t.strictSame(await resolved(tables.guest(cpu('32-bit', 0x1000))), [
    'fffff000->1000+1000',
    'ffc00000->2000+1000',
    '2000->4000+1000',
    '0->5000+2000',
    '3ff000->7000+1000',
    'ffc02000->12000+1000', // the PSE-36 entry, taken for one of a page by way of the self-map
    'ffc01000->400000+1000',
    '400000->400000+400000',
    '800000->900000000+400000',
  ]);
  t.ok(
    (await resolved(tables.guest(cpu('32-bit', 0x1000, 0n)))).every(
      (text) => text.endsWith('+1000') || text.endsWith('+2000'),
    ),
    'without CR4.PSE, PS means nothing',
  );
});

t.test('PAE', async (t) => {
  const tables = new Tables(4n * MIB, [block(8n * GIB, 4n * MIB)])
    .wide(0x1020, { 0: 0x2000n | P, 3: 0x3000n | P, 1: (1n << 52n) | 0x2000n | P }, 4)
    .wide(0x2000, { 0: 0x4000n | P, 511: (8n * GIB) | PS | P | NX | GLOBAL })
    .wide(0x3000, { 511: 0x4000n | P })
    .wide(0x4000, { 0: 0x10000n | P | NX, 511: (8n * GIB + 2n * MIB) | P });
  t.strictSame(
    await resolved(tables.guest(cpu('PAE', 0x1020))),
    [
      'ffe00000->10000+1000',
      '0->10000+1000',
      '3fe00000->200000000+200000',
      'fffff000->200200000+1000',
      '1ff000->200200000+1000',
    ],
    'a PDPT need not be page-aligned, and one with upper bits is nowhere',
  );
});

for (const mode of ['4-level', '5-level'] as const) {
  t.test(mode, async (t) => {
    const top = mode === '4-level' ? 0x1000 : 0x8000;
    const tables = new Tables(4n * MIB, [block(4n * GIB, 2n * GIB)])
      .wide(0x8000, { 1: 0x1000n | P })
      .wide(0x1000, { 0: 0x2000n | P, 256: 0x2000n | P })
      .wide(0x2000, { 0: 0x3000n | P, 2: (4n * GIB) | PS | P | NX, 3: (4n * GIB) | PS | P })
      .wide(0x3000, { 0: 0x4000n | P, 1: 0x200000n | PS | P })
      .wide(0x4000, { 0: 0x10000n | P | NX, 1: 0x11000n | P | GLOBAL | NX, 2: 0x12000n });
    const base = PREFIX[mode] + (mode === '5-level' ? 1n << 48n : 0n);
    const at = (offset: bigint) => (base + offset).toString(16);
    t.strictSame(
      await resolved(tables.guest(cpu(mode, top))),
      [
        `${at(1n << 47n)}->10000+2000`,
        `${at(0n)}->10000+2000`,
        `${at((1n << 47n) + 2n * MIB)}->200000+200000`,
        `${at(2n * MIB)}->200000+200000`,
        `${at((1n << 47n) + 3n * GIB)}->100000000+40000000`,
        `${at((1n << 47n) + 2n * GIB)}->100000000+40000000`,
        `${at(3n * GIB)}->100000000+40000000`,
        `${at(2n * GIB)}->100000000+40000000`,
      ],
      'lower halves have the prefix of the upper ones',
    );
  });
}

t.test('a page is memory when its first byte is', async (t) => {
  const tables = new Tables(2n * MIB - 4n * KIB, [block(4n * MIB + 4n * KIB, 4n * MIB)])
    .wide(0x1000, { 0: 0x2000n | P })
    .wide(0x2000, { 0: 0x3000n | P })
    .wide(0x3000, { 0: PS | P, 1: (2n * MIB) | PS | P, 2: (4n * MIB) | PS | P, 3: (6n * MIB) | PS | P })
    .wide(0x3000, { 9: (1n << 52n) | PS | P, 10: (1n << 62n) | PS | P, 11: 0x4000n | P })
    .wide(0x4000, { 0: 0x9000n | P | (1n << 57n), 1: 0xa000n | P | NX });
  const at = (offset: bigint) => (PREFIX['4-level'] + offset).toString(16);
  t.strictSame(await resolved(tables.guest(cpu('4-level', 0x1000))), [
    `${at(0n)}->0+200000`,
    `${at(22n * MIB + 4n * KIB)}->a000+1000`,
    `${at(6n * MIB)}->600000+200000`,
  ]);
});

t.test('tables outside memory are empty', async (t) => {
  const tables = new Tables()
    .wide(0x1000, { 0: 0x2000n | P, 1: (1n << 40n) | P, 2: 0xf_ffff_ffff_f000n | P })
    .wide(0x2000, { 0: 0x3000n | P })
    .wide(0x3000, { 0: 0x4000n | P, 1: (1n << 39n) | P })
    .wide(0x4000, { 0: 0x5000n | P });
  t.equal((await resolved(tables.guest(cpu('4-level', 0x1000)))).length, 1);
  t.strictSame(await resolved(tables.guest(cpu('4-level', 1n << 45n))), []);
  t.strictSame(await resolved(tables.guest(cpu('PAE', 0xffff_ffff_ffff_ffffn))), []);
  t.strictSame(await resolved(tables.guest(cpu('32-bit', 0xffff_ffff_ffff_ffffn))), []);
});

t.test('without A20, tables are found where bit 20 is zero; pages are not', async (t) => {
  const tables = new Tables(4n * MIB).narrow(0x1000, { 0: 0x102000n | P }).narrow(0x2000, { 7: 0x103000n | P });
  const guest = tables.guest(cpu('32-bit', 0x101000));
  t.strictSame(await resolved(guest), []);
  t.strictSame(await resolved(guest, { a20: false }), ['7000->103000+1000']);
  const masked = { ...cpu('32-bit', 0x101000), a20Masked: true };
  t.strictSame(await resolved(tables.guest(masked)), ['7000->103000+1000'], 'as the CPU has it');
  t.strictSame(await resolved(tables.guest(masked), { a20: true }), []);
  t.equal(translate(guest.memory, masked, 0x7123n), 0x3123, 'the hardware masks pages too');
  t.equal(translate(guest.memory, guest.cpus[0]!, 0x7123n), null);
  t.equal(translate(guest.memory, { ...cpu('none', 0), a20Masked: true }, 0x101234n), 0x1234);
});

t.test('CPUs', async (t) => {
  const tables = new Tables()
    .narrow(0x1000, { 0: 0x3000n | P })
    .narrow(0x2000, { 0: 0x4000n | P })
    .narrow(0x3000, { 1: 0x11000n | P, 3: 0x13000n | P })
    .narrow(0x4000, { 0: 0x10000n | P, 2: 0x12000n | P });
  const [first, second] = [cpu('32-bit', 0x1000), cpu('32-bit', 0x2000)];
  const off = cpu('none', 0x1000);
  t.strictSame(await resolved(tables.guest(off, first, off)), ['1000->11000+1000', '3000->13000+1000']);
  // The second CPU's page 0 lowers the mapping that begins at page 1 and leaves it where it was in physical memory.
  t.strictSame(await resolved(tables.guest(first, second)), ['0->11000+2000', '2000->13000+2000']);
  t.strictSame(await resolved(tables.guest(second, first)), ['0->10000+2000', '2000->12000+2000']);
});

t.test('who cannot be resolved', async (t) => {
  const unknown: CpuState = { ...cpu('none', 0), system: null };
  const stream: Guest = Object.create(new Tables().guest(cpu('4-level', 0)), { memory: { value: null } });
  await t.rejects(resolveMappings(stream), { code: 'UNSUPPORTED', message: /stream; save it to a file first/ });
  await t.rejects(resolveMappings(new Tables().guest(unknown)), { code: 'UNSUPPORTED', message: /control registers/ });
  await t.rejects(resolveMappings(new Tables().guest()), { code: 'UNSUPPORTED', message: /no CPU registers/ });
  t.throws(() => pagingMode(unknown), { code: 'UNSUPPORTED' });
  t.throws(() => translate(new PhysicalMemory([]), unknown, 0n), { code: 'UNSUPPORTED' });
  await t.rejects(resolveMappings(new Tables().guest(cpu('4-level', 0)), { signal: AbortSignal.abort() }), {
    code: 'ABORTED',
  });
});

// Hostile and unusual guests.

/** Resolves and returns the warnings too. */
async function resolvedWithWarnings(guest: Guest, options: ResolveOptions = {}) {
  const warnings: string[] = [];
  const mappings = await resolveMappings(guest, { ...options, onWarning: (text) => warnings.push(text) });
  return { mappings, warnings };
}

for (const mode of ['32-bit', '4-level', '5-level'] as const) {
  t.test(`${mode}: a top-level table of references to itself`, async (t) => {
    const self = 0x3000n | P;
    const tables = new Tables();
    if (mode === '32-bit') tables.narrow(0x3000, () => self);
    else tables.wide(0x3000, () => self);
    const { mappings, warnings } = await resolvedWithWarnings(tables.guest(cpu(mode, 0x3000)));
    t.ok(mappings.length > 0 && mappings.every(({ paddr }) => paddr === 0x3000));
    t.equal(warnings.length, 1);
    t.match(warnings[0], /left out \d+ references .*--max-mappings|--max-mappings.*left out \d+ references/);
  });
}

t.test('PAE: directories of references to themselves', async (t) => {
  const tables = new Tables().wide(0x2000, () => 0x3000n | P, 4).wide(0x3000, () => 0x3000n | P);
  const { mappings, warnings } = await resolvedWithWarnings(tables.guest(cpu('PAE', 0x2000)));
  t.ok(mappings.length > 0 && mappings.every(({ paddr }) => paddr === 0x3000));
  t.equal(warnings.length, 1);
});

t.test('a self-map entry as Windows has it is no loop', async (t) => {
  const tables = new Tables()
    .wide(0x1000, { 0: 0x2000n | P, 493: 0x1000n | P })
    .wide(0x2000, { 0: 0x3000n | P })
    .wide(0x3000, { 0: 0x4000n | P })
    .wide(0x4000, { 0: 0x9000n | P });
  const { mappings, warnings } = await resolvedWithWarnings(tables.guest(cpu('4-level', 0x1000)));
  t.strictSame(warnings, []);
  t.strictSame([...new Set(mappings.map(({ paddr }) => paddr))], [0x1000, 0x2000, 0x3000, 0x4000, 0x9000]);
});

/** Tables in which KASAN's shadow, 8 TiB of one page, comes before all the rest that is mapped. */
function kasanLike(): Tables {
  return new Tables(4n * MIB)
    .wide(0x1000, (i) => (i < 16 ? 0x2000n | P : i === 300 ? 0x5000n | P : 0n))
    .wide(0x2000, () => 0x3000n | P)
    .wide(0x3000, () => 0x4000n | P)
    .wide(0x4000, () => 0x9000n | P)
    .wide(0x5000, { 1: 0x6000n | P })
    .wide(0x6000, { 1: 0x200000n | PS | P, 2: 0x7000n | P })
    .wide(0x7000, { 3: 0xa000n | P, 4: 0xb000n | P });
}

t.test('a kernel with KASAN keeps all that is not shadow', async (t) => {
  const { mappings, warnings } = await resolvedWithWarnings(kasanLike().guest(cpu('4-level', 0x1000)));
  t.equal(warnings.length, 1);
  const base = PREFIX['4-level'] + (300n << 39n) + GIB;
  t.strictSame(mappings.filter(({ paddr }) => paddr !== 0x9000).map(hex), [
    `${(base + 4n * MIB + 0x3000n).toString(16)}->a000+2000`,
    `${(base + 2n * MIB).toString(16)}->200000+200000`,
  ]);
});

t.test('65536 aliases of a page, as espfix makes them, are all there', async (t) => {
  const tables = new Tables()
    .wide(0x1000, { 510: 0x2000n | P })
    .wide(0x2000, (i) => (i < 4 ? 0x3000n | P : 0n))
    .wide(0x3000, () => 0x4000n | P)
    .wide(0x4000, (i) => (i % 16 === 0 ? 0x9000n | P : 0n));
  const { mappings, warnings } = await resolvedWithWarnings(tables.guest(cpu('4-level', 0x1000)));
  t.equal(mappings.length, 65536);
  t.ok(mappings.every(({ paddr, length }) => paddr === 0x9000 && length === 4096));
  t.ok(mappings[0]!.vaddr > mappings[1]!.vaddr, 'newest first');
  t.strictSame(warnings, []);
});

t.test('many CPUs with the same tables', async (t) => {
  const tables = new Tables()
    .wide(0x1000, { 300: 0x2000n | P })
    .wide(0x2000, { 0: 0x3000n | P })
    .wide(0x3000, () => 0x4000n | P)
    .wide(0x4000, (i) => (BigInt(i * 37) << 12n) | P);
  const one = await resolved(tables.guest(cpu('4-level', 0x1000)));
  const cpus = Array.from({ length: 8 }, () => cpu('4-level', 0x1000));
  t.strictSame(await resolved(tables.guest(...cpus)), one);
  const { mappings, warnings } = await resolvedWithWarnings(tables.guest(...cpus), { maxPageTables: 800 });
  t.strictSame(mappings.map(hex), one, 'the same when each is walked once');
  t.strictSame(warnings, [], 'nothing is lost');
});

t.test('references to be left out are not free either', async (t) => {
  // 512 directories, each of 512 references to one table; and those directories 512 times over
  const tables = new Tables(4n * MIB)
    .wide(0x1000, () => 0x2000n | P)
    .wide(0x2000, (i) => BigInt(0x10000 + i * 0x1000) | P)
    .wide(0x3000, { 0: 0x9000n | P });
  for (let i = 0; i < 512; i++) tables.wide(0x10000 + i * 0x1000, () => 0x3000n | P);
  const guest = tables.guest(cpu('4-level', 0x1000));
  await t.rejects(resolveMappings(guest, { maxPageTables: 10_000 }), { code: 'LIMIT' });
  const { mappings, warnings } = await resolvedWithWarnings(guest, { maxPageTables: 100_000 });
  t.equal(mappings.length, 16);
  t.equal(warnings.length, 1);
});

t.test('petabytes', async (t) => {
  // 128 PiB by 512 references to 512 references to 512 references to 512 pages of 1 GiB
  const tables = new Tables(MIB)
    .wide(0x1000, () => 0x2000n | P)
    .wide(0x2000, () => 0x3000n | P)
    .wide(0x3000, () => PS | P);
  const { mappings, warnings } = await resolvedWithWarnings(tables.guest(cpu('5-level', 0x1000)));
  t.ok(mappings.every(({ paddr, length }) => paddr === 0 && length === 2 ** 30));
  t.equal(warnings.length, 1);
});

t.test('too much, and nothing to leave out', async (t) => {
  const size = 32n * MIB;
  const tables = new Tables(size).wide(0x1000, { 0: 0x2000n | P }).wide(0x2000, { 0: 0x3000n | P });
  tables.wide(0x3000, (i) => BigInt(0x10000 + i * 0x1000) | P);
  for (let i = 0; i < 512; i++)
    tables.wide(0x10000 + i * 0x1000, (j) => (BigInt((j * 7919 + i * 31) % 8192) << 12n) | P);
  const guest = tables.guest(cpu('4-level', 0x1000));
  await t.rejects(resolveMappings(guest, { maxMappings: 1000 }), {
    code: 'LIMIT',
    message: /1000 mappings \(--max-mappings\)/,
  });
  await t.rejects(resolveMappings(guest, { maxPageTables: 100 }), {
    code: 'LIMIT',
    message: /100 page tables to walk \(--max-page-tables\)/,
  });
  t.equal((await resolveMappings(guest)).length, 262144, 'the default has room for all of them');
});

t.test('the event loop turns while tables are walked, and a signal stops the walk', async (t) => {
  const guest = kasanLike().guest(cpu('4-level', 0x1000));
  const controller = new AbortController();
  setImmediate(() => controller.abort(new Error('enough')));
  await t.rejects(resolveMappings(guest, { signal: controller.signal }), { code: 'ABORTED' });
});

// Random guests against a walk that is as plain as can be.

/** Frames that random tables and pages lie in: few, so that tables are reached in many ways. */
const FRAMES = 12;

/** Entries of tables that are sparse, refer to few frames and have all kinds of bits. */
const someEntry = fc
  .record({
    frame: fc.nat(FRAMES + 1),
    flags: fc.constantFrom(P, P, P, P, P, P | RW, P | NX, P | GLOBAL, 0n),
    large: fc.constantFrom(0n, 0n, PS),
    high: fc.constantFrom(
      0n,
      0n,
      0n,
      0n,
      0n,
      0n,
      0n,
      0n,
      1n << 13n,
      1n << 21n,
      1n << 30n,
      1n << 40n,
      1n << 52n,
      1n << 60n,
    ),
  })
  .map(({ frame, flags, large, high }) => (BigInt(frame) << 12n) | flags | large | high);

const someIndex = fc.oneof(
  { weight: 6, arbitrary: fc.nat(3) },
  { weight: 2, arbitrary: fc.integer({ min: 510, max: 511 }) },
  { weight: 1, arbitrary: fc.nat(1023) },
);

const someTables = fc.array(fc.array(fc.tuple(someIndex, someEntry), { minLength: 2, maxLength: 6 }), {
  minLength: FRAMES,
  maxLength: FRAMES,
});

const someCpus = fc.array(
  fc.record({
    mode: fc.constantFrom<PagingMode>('none', '32-bit', 'PAE', '4-level', '5-level'),
    cr3: fc.nat(FRAMES - 1).map((frame) => BigInt(frame) << 12n),
    pse: fc.boolean(),
  }),
  { minLength: 1, maxLength: 3 },
);

/** Calls `page` for each page of 4-byte or 8-byte tables, in the order of the tables. */
function walkPlainly(
  memory: PhysicalMemory,
  { table, shift, wide, pse }: { table: bigint; shift: number; wide: boolean; pse: boolean },
  base: bigint,
  page: (vaddr: bigint, paddr: bigint, size: bigint) => void,
): void {
  const size = wide ? 8 : 4;
  const [pae, bits] = [shift === 30 && !pse && wide, wide ? 9 : 10];
  for (let i = 0; i < (pae ? 4 : 2 ** bits); i++) {
    const bytes = Buffer.alloc(8);
    memory.read(Number(table) + i * size, bytes.subarray(0, size));
    const entry = bytes.readBigUInt64LE();
    if ((entry & P) === 0n) continue;
    const vaddr = base + (BigInt(i) << BigInt(shift));
    const span = 1n << BigInt(shift);
    const hasPs = (entry & PS) !== 0n && pse && shift > 12 && shift < 39;
    if (shift === 12 || hasPs) {
      let paddr = BigInt.asUintN(63, entry) & ~(span - 1n);
      if (!wide && hasPs) paddr |= ((entry >> 13n) & 0xffn) << 32n;
      if (paddr < 1n << 52n && memory.has(Number(paddr))) page(vaddr, paddr, span);
    } else if (!pae || entry >> 52n === 0n) {
      const next = entry & 0xf_ffff_ffff_f000n;
      walkPlainly(memory, { table: next, shift: shift - bits, wide, pse: pae ? true : pse }, vaddr, page);
    }
  }
}

/** What the resolver should say, by way of a list that has its own test. */
function resolvedPlainly(guest: MemoryGuest): Mapping[] {
  const list = new MappingList(20_000);
  const add = (vaddr: bigint, paddr: bigint, size: bigint) =>
    list.add(Number(vaddr >> 12n), Number(paddr >> 12n), Number(size >> 12n));
  for (const state of guest.cpus) {
    const mode = pagingMode(state);
    const { cr3, cr4 } = state.system!;
    const root = { table: cr3, wide: true, pse: true };
    if (mode === '32-bit')
      walkPlainly(guest.memory, { ...root, shift: 22, wide: false, pse: (cr4 & CR4_PSE) !== 0n }, 0n, add);
    else if (mode === 'PAE') walkPlainly(guest.memory, { ...root, shift: 30, pse: false }, 0n, add);
    else if (mode === '4-level') walkPlainly(guest.memory, { ...root, shift: 39 }, PREFIX[mode], add);
    else if (mode === '5-level') walkPlainly(guest.memory, { ...root, shift: 48 }, PREFIX[mode], add);
  }
  return list.toMappings();
}

/** The guest of random tables. */
function randomGuest(
  tables: [number, bigint][][],
  cpus: { mode: PagingMode; cr3: bigint; pse: boolean }[],
): MemoryGuest {
  const memory = new Tables(FRAMES * 4096, [block(2n * MIB, 6n * MIB), block(GIB + MIB, GIB), block(4n * GIB, GIB)]);
  tables.forEach((entries, frame) => {
    for (const [index, entry] of entries) {
      if (index < 512) memory.wide(frame * 4096, { [index]: entry });
      else memory.narrow(frame * 4096, { [index]: BigInt.asUintN(32, entry) });
    }
  });
  return memory.guest(
    ...cpus.map(({ mode, cr3, pse }) => cpu(mode, cr3, mode === '32-bit' ? (pse ? CR4_PSE : 0n) : undefined)),
  );
}

t.test('random guests come out as a plain walk has them', async () => {
  await fc.assert(
    fc.asyncProperty(someTables, someCpus, async (tables, cpus) => {
      const guest = randomGuest(tables, cpus);
      if (cpus.every(({ mode }) => mode === 'none')) return;
      assert.deepEqual(await resolveMappings(guest), resolvedPlainly(guest));
    }),
    { numRuns: 150 },
  );
});

t.test('random guests translate as they are mapped', async () => {
  fc.assert(
    fc.property(someTables, someCpus, (tables, cpus) => {
      const guest = randomGuest(tables, cpus.slice(0, 1));
      const [state] = guest.cpus;
      const mode = pagingMode(state!);
      if (mode === 'none') return;
      const bits = { '32-bit': 32, PAE: 32, '4-level': 48, '5-level': 57 }[mode];
      const list: [bigint, bigint, bigint][] = [];
      const { cr3, cr4 } = state!.system!;
      const shift = { '32-bit': 22, PAE: 30, '4-level': 39, '5-level': 48 }[mode];
      const pse = mode === '32-bit' ? (cr4 & CR4_PSE) !== 0n : mode !== 'PAE';
      walkPlainly(guest.memory, { table: cr3, shift, wide: mode !== '32-bit', pse }, 0n, (...page) => list.push(page));
      for (const [linear, paddr, size] of list) {
        const vaddr = bits === 32 ? linear : BigInt.asUintN(64, BigInt.asIntN(bits, linear));
        const got = translate(guest.memory, state!, vaddr + size - 1n);
        // The resolver takes the bits 52 to 62 of a page's entry for bits of its address.
        assert.equal(got, Number(BigInt.asUintN(52, paddr) + size - 1n));
      }
    }),
    { numRuns: 100 },
  );
});

t.test('random bytes for tables end', async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ minLength: 64, maxLength: 64 }), someCpus, async (seed, cpus) => {
      const tables = new Tables(FRAMES * 4096, [block(MIB, 2n ** 51n)]);
      const entry = (i: number) => Buffer.from(seed).readBigUInt64LE((i * 5) % 56) ^ (BigInt(i) << BigInt(i % 40));
      for (let frame = 0; frame < FRAMES; frame++) tables.wide(frame * 4096, (i) => entry(frame * 512 + i));
      const guest = tables.guest(...cpus.map(({ mode, cr3 }) => cpu(mode, cr3)));
      const outcome = resolveMappings(guest, { maxMappings: 5000, maxPageTables: 500 });
      await outcome.catch((error) => assert.equal(error.code, 'LIMIT'));
    }),
    { numRuns: 100 },
  );
  t.pass();
});

// Single addresses.

t.test('translate', async (t) => {
  const tables = new Tables(4n * MIB)
    .wide(0x8000, { 0: 0x1000n | P, 511: 0x1000n | P })
    .wide(0x1000, { 0: 0x2000n | P, 256: 0x2000n | P, 511: 0x2000n | P, 1: 0x2000n | P | PS })
    .wide(0x2000, { 0: 0x3000n | P, 1: (5n * GIB) | PS | P, 2: (5n * GIB) | PS | P | (1n << 13n) })
    .wide(0x3000, { 0: 0x4000n | P, 1: (6n * MIB) | PS | P | (1n << 12n), 2: (6n * MIB) | PS | P | (1n << 20n) })
    .wide(0x4000, { 0: 0x5000n | P | NX | (1n << 58n), 1: 0x6000n });
  const { memory } = tables.guest();
  const at = (vaddr: bigint, mode: PagingMode = '4-level', cr3 = 0x1000) => translate(memory, cpu(mode, cr3), vaddr);

  t.equal(at(0xabcn), 0x5abc);
  t.equal(at(0x1000n), null, 'not present');
  t.equal(at(0x2345678n), null, 'nothing there');
  t.equal(at(2n * MIB + 0x12345n), Number(6n * MIB) + 0x12345, 'a 2 MiB page; PAT is no address bit');
  t.equal(at(4n * MIB), Number(6n * MIB), 'reserved bit in a 2 MiB page');
  t.equal(at(GIB + 0x1234567n), Number(5n * GIB) + 0x1234567, 'a 1 GiB page, memory or not');
  t.equal(at(2n * GIB), Number(5n * GIB), 'reserved bit in a 1 GiB page');
  t.equal(at((1n << 39n) + 0xabcn), 0x5abc, 'PS in a PML4 entry');
  t.equal(at(0xffff_8000_0000_0abcn), 0x5abc);
  t.equal(at(0xffff_ff80_0000_0abcn), 0x5abc);
  t.equal(at(0x0000_8000_0000_0abcn), null, 'not canonical');
  t.equal(at(-1n), null);
  t.equal(at(1n << 64n), null);
  t.equal(at(0x0000_8000_0000_0abcn, '5-level', 0x8000), 0x5abc, 'canonical with 57 bits');
  t.equal(at(0xffff_8000_0000_0abcn, '5-level', 0x8000), 0x5abc);
  t.equal(at(0x1ff_8000_0000_0abcn, '5-level', 0x8000), null);
  t.equal(at(0x1234n, 'none'), 0x1234);
  t.equal(at(1n << 32n, 'none'), null);
});

t.test('translate in 32-bit modes', async (t) => {
  const { memory } = new Tables(4n * MIB)
    .narrow(0x1000, {
      0: 0x2000n | P,
      1: (0xffn << 13n) | 0xffc0_0000n | PS | P,
      2: (1n << 21n) | PS | P,
      1023: 0x2000n | P,
    })
    .narrow(0x2000, { 1023: 0xffff_f000n | P })
    .wide(0x3020, { 3: 0x4000n | P, 2: 0x4000n | P | (1n << 5n), 1: 0x4000n | P | RW }, 4)
    .wide(0x4000, { 511: 0x5000n | P, 1: 0x5000n | P | (1n << 52n) })
    .wide(0x5000, { 511: 0xf_ffff_ffff_f000n | P | NX })
    .guest();
  const at = (vaddr: bigint, state: CpuState) => translate(memory, state, vaddr);
  t.equal(at(0xffff_ffffn, cpu('32-bit', 0x1000)), 0xffff_ffff);
  t.equal(at(0x7f_ffffn, cpu('32-bit', 0x1000)), 2 ** 40 - 1, 'PSE-36');
  t.equal(at(0x7f_ffffn, cpu('32-bit', 0x1000, 0n)), null, 'without PSE it is a table');
  t.equal(at(0x80_0123n, cpu('32-bit', 0x1000)), 0x123, 'reserved bit 21');
  t.equal(at(1n << 32n, cpu('32-bit', 0x1000)), null);
  t.equal(at(0xffff_ffffn, cpu('PAE', 0x3020)), 2 ** 52 - 1);
  t.equal(at(0x7fff_ffffn, cpu('PAE', 0x3020)), 2 ** 52 - 1, 'reserved bit in a PDPT entry');
  t.equal(at(0xbfff_ffffn, cpu('PAE', 0x3020)), 2 ** 52 - 1, 'bit 5 in a PDPT entry, as TCG sets it');
  t.equal(
    at(0xc020_0abcn, cpu('PAE', 0x3020)),
    null,
    'an entry that is not there, behind one with the reserved bit 52',
  );
  t.equal(at(0xc03f_fabcn, cpu('PAE', 0x3020)), 2 ** 52 - 4096 + 0xabc, 'reserved bit 52 with PAE');
});
