/** Runs of touched pages, against what a look at each page says. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { Pagemap } from '../../lib/live/qemu/pagemap.js';
import { PAGE_SIZE } from '../../lib/model/stage.js';

/** Untouched pages between touched ones that end a run. */
const GAP = 16;
/** More than are read at a time. */
const PAGES = 20_000;

t.test('property: runs hold every page that was touched, and no gap', async (t) => {
  const path = join(t.testdir({}), 'pagemap');
  const pages = fc.array(
    fc.record({
      gap: fc.integer({ min: 1, max: 40 }),
      count: fc.integer({ min: 1, max: 9 }),
      bit: fc.constantFrom(62n, 63n),
    }),
    { maxLength: 400 },
  );
  const bounds = fc.tuple(fc.nat(PAGES * PAGE_SIZE), fc.nat(PAGES * PAGE_SIZE)).filter(([a, b]) => a !== b);
  fc.assert(
    fc.property(pages, bounds, (touched, ends) => {
      const [from, to] = [Math.min(...ends), Math.max(...ends)];
      // Bit 61 says something else; the number of the page frame is zeros to who may not know it.
      const entries = new BigUint64Array(PAGES).fill(1n << 61n);
      let page = 0;
      for (const { gap, count, bit } of touched) entries.fill(1n << bit, page + gap, (page += gap + count));
      writeFileSync(path, entries);
      const pagemap = Pagemap.open(path)!;
      const runs = [];
      for (let at = from; at < to;) {
        const run = pagemap.nextTouched(at, to);
        if (run === null) break;
        runs.push(run);
        at = run.end;
      }
      pagemap.close();
      return JSON.stringify(runs) === JSON.stringify(expectedRuns(entries, from, to));
    }),
    { numRuns: 300 },
  );
});

function expectedRuns(entries: BigUint64Array, from: number, to: number): { start: number; end: number }[] {
  const runs: { start: number; end: number }[] = [];
  for (let page = Math.floor(from / PAGE_SIZE); page * PAGE_SIZE < to; page++) {
    if (entries[page]! >> 62n === 0n) continue;
    const [start, end] = [Math.max(from, page * PAGE_SIZE), Math.min(to, (page + 1) * PAGE_SIZE)];
    const last = runs.at(-1);
    if (last && Math.floor(start / PAGE_SIZE) - Math.ceil(last.end / PAGE_SIZE) < GAP) last.end = end;
    else runs.push({ start, end });
  }
  return runs;
}

t.test('what cannot be read counts as data', async (t) => {
  const path = join(t.testdir({ pagemap: 'short' }), 'pagemap');
  const pagemap = Pagemap.open(path)!;
  t.same(pagemap.nextTouched(100, PAGE_SIZE), { start: 100, end: PAGE_SIZE });
  pagemap.close();
  t.equal(Pagemap.open(`${path}.none`), null);
});

t.test('what cannot be read counts as data', async (t) => {
  const pagemap = Pagemap.open(t.testdir({}))!;
  t.same(pagemap.nextTouched(100, 9000), { start: 100, end: 9000 }, 'an error');
  pagemap.close();
});
