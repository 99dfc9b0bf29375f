import assert from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { MappingList, NumberIndex } from '../../lib/paging/mapping-list.js';

const PAGE = 4096n;
const TOP = 2 ** 52;

/** QEMU's list as it is described: a plain list, looked through from the front, in bytes modulo 2^64. */
class ScannedList {
  readonly entries: { vaddr: bigint; paddr: bigint; length: bigint }[] = [];
  #last: (typeof this.entries)[number] | undefined;

  add(virtualPage: number, physicalPage: number, pages: number): void {
    const [vaddr, paddr, length] = [virtualPage, physicalPage, pages].map((page) => BigInt(page) * PAGE) as [
      bigint,
      bigint,
      bigint,
    ];
    const follows = (entry: (typeof this.entries)[number]) =>
      paddr === entry.paddr + entry.length && vaddr === wrap(entry.vaddr + entry.length);
    if (this.#last && follows(this.#last)) {
      this.#last.length += length;
      return;
    }
    for (const entry of this.entries) {
      if (follows(entry)) entry.length += length;
      else {
        if (paddr + length < entry.paddr) break;
        if (paddr >= entry.paddr + entry.length) continue;
        if (wrap(vaddr - entry.vaddr) !== wrap(paddr - entry.paddr)) continue;
        if (vaddr < entry.vaddr) {
          entry.length = wrap(entry.length + entry.vaddr - vaddr);
          entry.vaddr = vaddr;
        }
        if (wrap(vaddr + length) > wrap(entry.vaddr + entry.length)) entry.length = wrap(vaddr + length - entry.vaddr);
      }
      this.#last = entry;
      return;
    }
    this.#last = { vaddr, paddr, length };
    const before = this.entries.findIndex((entry) => entry.paddr >= paddr);
    this.entries.splice(before < 0 ? this.entries.length : before, 0, this.#last);
  }

  toMappings() {
    return this.entries.map(({ vaddr, paddr, length }) => ({ vaddr, paddr: Number(paddr), length: Number(length) }));
  }
}

function wrap(address: bigint): bigint {
  return BigInt.asUintN(64, address);
}

interface Run {
  readonly virtual: number;
  readonly physical: number;
  readonly length: number;
  readonly count: number;
}

/** Runs of pages in so little space that they meet all the time, some of them where virtual addresses wrap. */
const someRun: fc.Arbitrary<Run> = fc
  .record({
    atTop: fc.boolean(),
    place: fc.integer({ min: 0, max: 24 }),
    physical: fc.integer({ min: 0, max: 24 }),
    length: fc.constantFrom(1, 1, 1, 2, 4),
    count: fc.constantFrom(1, 1, 2, 3, 6),
  })
  .map(({ atTop, place, physical, length, count }) => ({
    virtual: atTop ? TOP - length * count - place : place,
    physical,
    length,
    count,
  }));

/** The same, mostly with few deltas, as guests have them. */
const someRelatedRun = fc
  .tuple(someRun, fc.constantFrom(0, 0, 1, 100, TOP - 8))
  .map(([run, delta]) => ({ ...run, virtual: (run.physical + delta) % TOP }))
  .filter((run) => run.virtual + run.length * run.count <= TOP);

/** What several CPUs' walks add: each goes upwards through virtual addresses. */
const someWalks = fc
  .array(fc.array(fc.oneof(someRun, someRelatedRun), { maxLength: 40 }), { minLength: 1, maxLength: 4 })
  .map((walks) => walks.flatMap((walk) => [...walk].sort((a, b) => a.virtual - b.virtual)));

const someRuns = fc.oneof(
  someWalks,
  fc.array(fc.oneof(someRun, someRelatedRun), { maxLength: 60 }),
  fc.array(someRelatedRun, { maxLength: 120 }),
);

/** Adds the runs to both lists; one of ours gets them page by page. */
function addAll(runs: readonly Run[]) {
  const lists = { scanned: new ScannedList(), byPage: new MappingList(), byRun: new MappingList() };
  for (const { virtual, physical, length, count } of runs) {
    lists.byRun.addRun(virtual, physical, length, count);
    for (let i = 0; i < count; i++) {
      lists.scanned.add(virtual + i * length, physical + i * length, length);
      lists.byPage.add(virtual + i * length, physical + i * length, length);
    }
  }
  return { scanned: lists.scanned.toMappings(), byPage: lists.byPage.toMappings(), byRun: lists.byRun.toMappings() };
}

/** Mappings of pages `[virtual, physical, length]` in short form. */
function listed(...pages: [number, number, number][]): string[] {
  const list = new MappingList();
  for (const page of pages) list.add(...page);
  return list.toMappings().map(({ vaddr, paddr, length }) => `${vaddr / PAGE}->${paddr / 4096}+${length / 4096}`);
}

t.test('equals a list that is scanned from the front', async () => {
  fc.assert(
    fc.property(someRuns, (runs) => {
      const { scanned, byPage, byRun } = addAll(runs);
      assert.deepEqual(byPage, scanned);
      assert.deepEqual(byRun, scanned);
    }),
    { numRuns: 3000 },
  );
});

t.test('equals it when a second walk fills the gaps of the first, from below and from above', async (t) => {
  const every = (step: number, first: number, count: number): Run[] =>
    Array.from({ length: count }, (_, i) => ({
      virtual: 5000 + first + i * step,
      physical: first + i * step,
      length: 1,
      count: 1,
    }));
  for (const walks of [
    [every(2, 10, 400), every(2, 9, 400)],
    [every(2, 10, 400), every(2, 11, 400), every(1, 5, 900)],
    [every(3, 10, 400), every(3, 9, 400), every(3, 8, 400), every(3, 10, 400)],
    [every(4, 10, 300), every(4, 9, 200), every(4, 10, 300), every(4, 9, 300), every(2, 11, 300)],
  ]) {
    const { scanned, byPage, byRun } = addAll(walks.flat());
    t.strictSame(byPage, scanned);
    t.strictSame(byRun, scanned);
  }
});

t.test('what a mapping takes in', async (t) => {
  t.strictSame(listed([10, 1, 1], [11, 2, 1]), ['10->1+2'], 'the page behind it');
  t.strictSame(listed([10, 1, 1], [12, 3, 1]), ['10->1+1', '12->3+1'], 'not a page behind a gap');
  t.strictSame(listed([10, 1, 1], [11, 2, 1], [10, 1, 1]), ['10->1+2'], 'a page that it has');
  t.strictSame(listed([10, 2, 1], [9, 1, 1]), ['9->2+2'], 'the page before it, with a wrong physical address');
  t.strictSame(listed([10, 1, 1], [20, 1, 1], [30, 1, 1]), ['30->1+1', '20->1+1', '10->1+1'], 'no alias; newest first');
  t.strictSame(listed([10, 1, 1], [12, 3, 1], [11, 2, 1]), ['10->1+2', '12->3+1'], 'mappings that meet are not joined');
  t.strictSame(
    listed([TOP - 2, 1, 1], [TOP - 1, 2, 1], [TOP - 2, 1, 1]),
    [`${TOP - 2}->1+1`],
    'a page again at the top of the address space: all behind it is lost',
  );
});

t.test('mappings that have moved to another group', async (t) => {
  const page = (virtual: number, physical: number, count = 1): Run => ({ virtual, physical, length: 1, count });
  for (const runs of [
    // One that is lowered and then grows over another that a search had already gone past.
    [page(119, 20), page(121, 22), page(110, 10), page(109, 9), page(111, 12, 13), page(122, 23), page(124, 25)],
    // Two with the same addresses: the newer one comes first.
    [
      page(110, 10),
      page(109, 9),
      page(111, 12, 3),
      page(110, 10),
      page(109, 9),
      page(900, 500),
      page(111, 12),
      page(113, 14),
    ],
  ]) {
    const { scanned, byPage, byRun } = addAll(runs);
    t.strictSame(byPage, scanned);
    t.strictSame(byRun, scanned);
  }
});

t.test('a limit', async (t) => {
  const list = new MappingList(2);
  list.add(1, 1, 1);
  list.add(5, 5, 1);
  list.add(6, 6, 1);
  t.throws(() => list.add(9, 9, 1), /too many mappings/);
  t.equal(list.count, 2);
});

t.test('mappings that keep moving between groups', async (t) => {
  // Each pass lowers each mapping once, so that each gets a delta that was never there before.
  const list = new MappingList();
  const scanned = new ScannedList();
  for (let pass = 0; pass < 40; pass++) {
    for (let i = 0; i < 30; i++) {
      const [virtual, physical] = [100_000 + i * 1000 - pass, i * 10 + 9 + (pass === 0 ? 1 : 0)];
      list.add(virtual, physical, 1);
      scanned.add(virtual, physical, 1);
    }
  }
  t.equal(list.count, 30);
  t.strictSame(list.toMappings(), scanned.toMappings());
});

t.test('a hash table of numbers', async () => {
  const someKey = fc.oneof(fc.nat(50), fc.nat(2 ** 31 - 1), fc.maxSafeNat());
  fc.assert(
    fc.property(fc.array(fc.tuple(someKey, fc.nat(1000)), { maxLength: 600 }), (pairs) => {
      const index = new NumberIndex();
      const map = new Map<number, number>();
      for (const [key, value] of pairs) {
        assert.equal(index.get(key), map.get(key) ?? -1);
        index.set(key, value);
        map.set(key, value);
      }
      for (const [key, value] of map) assert.equal(index.get(key), value);
      index.clear();
      for (const key of map.keys()) assert.equal(index.get(key), -1);
    }),
    { numRuns: 50 },
  );
});
