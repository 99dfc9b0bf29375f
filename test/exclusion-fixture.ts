/** Sets of pages that are left out, as tests want them. */

import fc from 'fast-check';
import { PageExclusion, type PfnRun } from '../lib/model/page-exclusion.js';

/** A set of runs, all for the same reason. */
export function exclusionOf(runs: readonly PfnRun[], level = 31): PageExclusion {
  const exclusion = new PageExclusion(level);
  for (const { start, end } of runs) exclusion.add(start, end - start, 'free');
  return exclusion;
}

/** Runs of pages below `pages`, of at most `longest`; they may overlap. */
export function arbitraryRuns(pages: number, longest: number): fc.Arbitrary<PfnRun[]> {
  return fc.array(
    fc
      .record({ start: fc.nat(pages - 1), length: fc.integer({ min: 1, max: longest }) })
      .map(({ start, length }) => ({ start, end: Math.min(start + length, pages) })),
    { maxLength: 8 },
  );
}

/** A copy of bytes that begin at a page boundary, with zeros for the pages that are left out. */
export function blanked(bytes: Uint8Array, exclusion: PageExclusion, firstPfn = 0): Uint8Array {
  const copy = bytes.slice();
  for (let i = 0; i < copy.length / 4096; i++) if (exclusion.has(firstPfn + i)) copy.fill(0, i * 4096, (i + 1) * 4096);
  return copy;
}
