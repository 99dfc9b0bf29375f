import fc from 'fast-check';
import t from 'tap';
import { PAGE_SIZE } from '../lib/model/stage.js';
import { nonZeroRuns } from '../lib/model/zeros.js';

t.test('zeros alone have no runs', async (t) => {
  t.same(nonZeroRuns(new Uint8Array(10 * PAGE_SIZE), 0), []);
  t.same(nonZeroRuns(new Uint8Array(0), 0), []);
});

t.test('one byte anywhere makes its page data', async (t) => {
  for (const at of [0, 1, 7, 2048, PAGE_SIZE - 2, PAGE_SIZE - 1]) {
    const data = new Uint8Array(3 * PAGE_SIZE);
    data[PAGE_SIZE + at] = 1;
    t.same(nonZeroRuns(data, 0), [{ start: PAGE_SIZE, end: 2 * PAGE_SIZE }], `byte ${at}`);
  }
});

t.test('the last page may be short', async (t) => {
  const data = new Uint8Array(PAGE_SIZE + 100);
  data[PAGE_SIZE + 50] = 9;
  t.same(nonZeroRuns(data, 0), [{ start: PAGE_SIZE, end: PAGE_SIZE + 100 }]);
});

t.test('zeros that are too few to be a hole count as data', async (t) => {
  const data = new Uint8Array(8 * PAGE_SIZE);
  data[0] = 1;
  data[3 * PAGE_SIZE] = 1;
  t.same(nonZeroRuns(data, 3 * PAGE_SIZE), [{ start: 0, end: 4 * PAGE_SIZE }]);
  t.equal(nonZeroRuns(data, 2 * PAGE_SIZE).length, 2);
});

t.test('property: runs cover exactly the pages that have a byte set', async () => {
  const pages = fc.array(fc.constantFrom(0, 0, 1), { maxLength: 40 });
  fc.assert(
    fc.property(pages, fc.nat(PAGE_SIZE - 1), (kinds, byte) => {
      const data = new Uint8Array(kinds.length * PAGE_SIZE);
      kinds.forEach((kind, i) => {
        if (kind) data[i * PAGE_SIZE + byte] = 0x80;
      });
      const covered = new Set<number>();
      for (const { start, end } of nonZeroRuns(data, 0))
        for (let at = start; at < end; at += PAGE_SIZE) covered.add(at / PAGE_SIZE);
      return kinds.every((kind, i) => (kind === 1) === covered.has(i));
    }),
  );
});
