import fc from 'fast-check';
import t from 'tap';
import { PageExclusion } from '../lib/model/page-exclusion.js';

t.test('holds the pages that a plain set holds, and counts each once', async () => {
  const page = fc.nat({ max: 200_000 });
  const run = fc.tuple(page, fc.integer({ min: 1, max: 70_000 }), fc.constantFrom('free', 'user', 'cache'));
  fc.assert(
    fc.property(fc.array(run, { maxLength: 6 }), page, page, (adds, one, other) => {
      const exclusion = new PageExclusion(30);
      const pages = new Set<number>();
      for (const [pfn, count, reason] of adds) {
        exclusion.add(pfn, count, reason as 'free');
        for (let at = pfn; at < pfn + count; at++) pages.add(at);
      }
      const [from, to] = [Math.min(one, other), Math.max(one, other)];
      const within = [...pages].filter((pfn) => pfn >= from && pfn < to).length;
      const length = (excluded: boolean) =>
        [...exclusion.runs(from, to, excluded)].reduce((sum, { start, end }) => sum + end - start, 0);
      return (
        exclusion.total === pages.size &&
        length(true) === within &&
        length(false) === to - from - within &&
        exclusion.has(one) === pages.has(one) &&
        [...exclusion.runs(from, to, true)].every(
          ({ start, end }) => pages.has(start) && (end === to || !pages.has(end)),
        )
      );
    }),
    { numRuns: 50 },
  );
});

t.test('a page far up costs no more than one below', async (t) => {
  const exclusion = new PageExclusion(17);
  exclusion.add(2 ** 39, 3, 'free');
  t.equal(exclusion.has(2 ** 39 + 2), true);
  t.equal(exclusion.has(2 ** 39 + 3), false);
  t.equal(exclusion.zeros, true);
  t.same([...exclusion.runs(2 ** 39 - 5, 2 ** 39 + 5, true)], [{ start: 2 ** 39, end: 2 ** 39 + 3 }]);
});
