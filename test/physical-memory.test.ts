import fc from 'fast-check';
import t from 'tap';
import { PHYSICAL_ADDRESS_LIMIT, PhysicalMemory } from '../lib/model/physical-memory.js';
import { addressPattern, BufferBacking, patternGuest } from './guest-fixture.js';

t.test('reads across blocks; what is not memory reads as zeros and is told', async (t) => {
  const { memory } = patternGuest([
    { base: 0x2000, length: 0x1000 },
    { base: 0x3000, length: 0x1000 },
    { base: 0x8000, length: 0x1000 },
  ]);
  const into = new Uint8Array(0x2000).fill(0xff);
  t.equal(memory.read(0x2000, into), true);
  t.same(into, addressPattern(0x2000, 0x2000));
  t.equal(memory.read(0x3800, into), false);
  t.same(into.subarray(0, 0x800), addressPattern(0x800, 0x3800));
  t.ok(into.subarray(0x800).every((byte) => byte === 0));
  t.equal(memory.read(0x100000, into), false);
  t.ok(into.every((byte) => byte === 0));
  t.equal(memory.has(0x3fff), true);
  t.equal(memory.has(0x4000), false);
  t.equal(memory.has(0x1fff), false);
});

t.test('blocks that overlap or that no x86 can have are refused, naming them', async (t) => {
  const region = (base: number, length: number) => ({ base, length, backing: null, offset: 0 });
  t.throws(() => new PhysicalMemory([region(0x1000, 0x2000), region(0x2000, 0x1000)]), {
    code: 'BAD_INPUT',
    message: /0x1000\+0x2000 and 0x2000\+0x1000 overlap/,
  });
  for (const bad of [region(-1, 10), region(0, 0), region(0, -5), region(0.5, 10), region(0, Number.NaN)])
    t.throws(() => new PhysicalMemory([bad]), { code: 'BAD_INPUT' });
  t.throws(() => new PhysicalMemory([region(PHYSICAL_ADDRESS_LIMIT - 1, 2)]), { message: /52 bits/ });
});

t.test('property: any read equals the bytes laid out by hand', async () => {
  const layout = fc.array(fc.record({ gap: fc.nat(40), length: fc.integer({ min: 1, max: 60 }) }), { maxLength: 8 });
  fc.assert(
    fc.property(layout, fc.nat(600), fc.nat(200), (parts, start, length) => {
      const flat = new Uint8Array(2000);
      let base = 0;
      const regions = parts.map(({ gap, length: size }, i) => {
        base += gap;
        const bytes = new Uint8Array(size).fill(i + 1);
        flat.set(bytes, base);
        const region = { base, length: size, backing: new BufferBacking(bytes), offset: 0 };
        base += size;
        return region;
      });
      const into = new Uint8Array(length).fill(0xee);
      new PhysicalMemory(regions).read(start, into);
      return Buffer.compare(into, flat.subarray(start, start + length)) === 0;
    }),
  );
});
