/**
 * Who owns what where spans overlap: each stretch of an axis goes to the first span, by the order of precedence, that
 * lies over it.
 *
 * Addresses are cut at every span's ends into stretches. Spans take theirs in order; `next` leads past what is taken
 * (union-find), so that a stretch is visited once however many spans lie over it: O(n log n) for hostile tables too.
 */

/** Spans as two columns, in the order of precedence. */
export interface Spans {
  readonly starts: Float64Array;
  /** each at or above its start */
  readonly ends: Float64Array;
}

/** A part of the axis and the span that has it. */
export interface OwnedStretch {
  readonly start: number;
  readonly end: number;
  /** index of the span */
  readonly owner: number;
}

/** No span has taken this stretch. */
const NOBODY = -1;

/** The stretches that any span lies over, ascending, one by one: there may be twice as many as spans. */
export function* ownedStretches({ starts, ends }: Spans): Generator<OwnedStretch, undefined> {
  const cuts = cutsOf(starts, ends);
  const owners = new Int32Array(cuts.length).fill(NOBODY);
  const next = Int32Array.from(cuts, (_, i) => i);
  starts.forEach((start, owner) => {
    const end = ends[owner]!;
    for (let i = findFree(next, indexOf(cuts, start)); cuts[i]! < end; i = findFree(next, i + 1)) {
      owners[i] = owner;
      next[i] = i + 1;
    }
  });
  for (let i = 0; i + 1 < cuts.length; i++)
    if (owners[i] !== NOBODY) yield { start: cuts[i]!, end: cuts[i + 1]!, owner: owners[i]! };
}

/** All ends of spans, sorted, each once. */
function cutsOf(starts: Float64Array, ends: Float64Array): Float64Array {
  const cuts = new Float64Array(starts.length * 2);
  cuts.set(starts);
  cuts.set(ends, starts.length);
  return cuts.sort().filter((cut, i, all) => i === 0 || cut !== all[i - 1]);
}

/** Index of a value that is in a sorted array. */
function indexOf(sorted: Float64Array, value: number): number {
  let low = 0;
  for (let high = sorted.length; low < high;) {
    const middle = (low + high) >>> 1;
    if (sorted[middle]! < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The first stretch at or behind `i` that nobody has taken, or the last cut; halves the paths that it walks. */
function findFree(next: Int32Array, i: number): number {
  let at = i;
  while (next[at] !== at) {
    next[at] = next[next[at]!]!;
    at = next[at]!;
  }
  return at;
}
