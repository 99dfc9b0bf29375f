import fc from 'fast-check';
import t from 'tap';
import { PAGE_SIZE } from '../../lib/model/stage.js';
import { pageBits, PAGE_TABLE_MEMORY, PageTables, PRESENT } from './page-tables.js';

const GIB = 2 ** 30;

const MODES = {
  '4-level': { levels: 4, encryptionMask: 0n, base: 0xffff_8000_0000_0000n, bits: 47n, leaves: [1, 2, 3] },
  '5-level': { levels: 5, encryptionMask: 0n, base: 0xff00_0000_0000_0000n, bits: 56n, leaves: [1, 2, 3] },
  '2-level': { levels: 2, encryptionMask: 0n, pageOffset: 0xc000_0000n, base: 0xc000_0000n, bits: 30n, leaves: [1, 2] },
  PAE: { levels: 3, encryptionMask: 0n, pageOffset: 0xc000_0000n, base: 0xc000_0000n, bits: 30n, leaves: [1, 2] },
} as const;

for (const [name, { base, bits, leaves, ...mode }] of Object.entries(MODES))
  t.test(`${name}: what is mapped is found, to the end of its page`, async () => {
    const address = fc.bigInt({ min: 0n, max: (1n << bits) - 1n });
    const highest = mode.levels === 2 ? 4 * GIB - 1 : 8 * GIB;
    const paddr = fc.bigInt({ min: BigInt(PAGE_TABLE_MEMORY), max: BigInt(highest) });
    fc.assert(
      fc.property(address, paddr, fc.constantFrom(...leaves), (offset, target, leaf) => {
        const size = 1n << pageBits(mode, leaf);
        const tables = new PageTables(mode);
        const vaddr = base + offset;
        const page = target - (target % size);
        tables.map(vaddr, page, leaf);
        const found = tables.kernel.translate(vaddr);
        const within = vaddr % size;
        return found !== null && BigInt(found.paddr) === page + within && BigInt(found.length) === size - within;
      }),
    );
  });

t.test('what is no address, not mapped or not memory is not found', async (t) => {
  const tables = new PageTables(MODES['4-level']);
  const vaddr = 0xffff_ea00_0020_0000n;
  tables.map(vaddr, 0x20_0000n, 2);
  tables.map(vaddr + 0x20_0000n, BigInt(64 * GIB), 2);
  tables.map(vaddr + 0x40_0000n, 0x20_2000n, 2);
  tables.map(vaddr + 0x60_0000n, 0x20_1000n, 2);
  const { kernel } = tables;
  t.equal(kernel.translate(vaddr)?.paddr, 0x20_0000);
  t.equal(kernel.translate(0x7fff_ea00_0020_0000n), null, 'not canonical');
  t.equal(kernel.translate(vaddr + 0x8000_0000n), null, 'no table');
  t.equal(kernel.translate(vaddr + 0x20_0000n), null, 'not memory');
  t.equal(kernel.translate(vaddr + 0x40_0000n), null, 'reserved bits of a large page');
  t.equal(kernel.translate(vaddr + 0x60_0000n)?.paddr, 0x20_0000, 'PAT is no bit of the address');
  t.equal(kernel.bytes(vaddr + 0x1f_fff0n, 32), null, 'half of it');
  t.equal(kernel.isKernelAddress(vaddr), true);
  t.equal(kernel.isKernelAddress(0x1234n), false);
});

t.test('without PAE, pages of 4 MiB above 4 GiB (PSE-36) are none of Linux', async (t) => {
  const tables = new PageTables(MODES['2-level']);
  tables.map(0xc000_0000n, 0x40_0000n | 0x1000n, 2);
  tables.map(0xc040_0000n, 0x40_0000n | 0x2000n, 2);
  t.equal(tables.kernel.translate(0xc000_0000n)?.paddr, 0x40_0000, 'PAT is no bit of the address');
  t.equal(tables.kernel.translate(0xc040_0000n), null);
});

t.test('the bit that marks encrypted memory is no bit of the address', async (t) => {
  const tables = new PageTables({ levels: 4, encryptionMask: 1n << 47n });
  const vaddr = 0xffff_8000_0000_0000n;
  tables.map(vaddr, 0x20_0000n | (1n << 47n), 2);
  t.equal(tables.kernel.translate(vaddr)?.paddr, 0x20_0000);
  t.equal(new PageTables({ levels: 4, encryptionMask: 0n }).kernel.translate(vaddr), null);
});

t.test('tables that lead to themselves end', async (t) => {
  for (const levels of [2, 3, 4, 5] as const) {
    const tables = new PageTables({ levels, encryptionMask: 0n });
    if (levels === 2) new Uint32Array(tables.bytes.buffer, 0, 1024).fill(Number(PRESENT));
    else new BigUint64Array(tables.bytes.buffer, 0, 512).fill(PRESENT);
    const vaddr = levels <= 3 ? 0xc000_0000n : 0xffff_ffff_8000_0000n;
    t.strictSame(tables.kernel.translate(vaddr), { paddr: 0, length: PAGE_SIZE });
  }
});

t.test('tells which memory it went by', async (t) => {
  const tables = new PageTables(MODES['4-level']);
  const vaddr = 0xffff_8000_0000_0000n;
  tables.map(vaddr, 0x20_0000n, 1);
  tables.map(vaddr + 0x1000n, 0x30_0000n, 1);
  const [seen, data]: [number[], number[][]] = [[], []];
  const footprint = {
    table: (paddr: number) => void seen.push(paddr),
    data: (...run: number[]) => void data.push(run),
  };
  t.equal(tables.kernel.read(vaddr + 0x800n, new Uint8Array(0x1000), footprint), true);
  t.strictSame([...new Set(seen)], [0, 0x1000, 0x2000, 0x3000]);
  t.strictSame(data, [
    [0x20_0800, 0x800],
    [0x30_0000, 0x800],
  ]);
});

t.test('pointers of 32-bit kernels', async (t) => {
  for (const mode of [MODES['2-level'], MODES.PAE]) {
    const tables = new PageTables(mode);
    tables.map(0xc000_0000n, 0x20_0000n, 1);
    tables.bytes.set([0x78, 0x56, 0x34, 0xc2, 0xff, 0xff, 0xff, 0xff], 0x20_0000);
    t.equal(tables.kernel.pointer(0xc000_0000n), 0xc234_5678n);
    t.equal(tables.kernel.isKernelAddress(0xc234_5678n), true);
    t.equal(tables.kernel.isKernelAddress(0xbfff_ffffn), false);
    t.equal(tables.kernel.isKernelAddress(0x1_c000_0000n), false);
  }
});
