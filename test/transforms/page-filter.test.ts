import fc from 'fast-check';
import { pipelinePromise, Readable, Writable } from 'streamx';
import t from 'tap';
import type { PageExclusion } from '../../lib/model/page-exclusion.js';
import { type Chunk, PAGE_SIZE } from '../../lib/model/stage.js';
import { PageFilter } from '../../lib/transforms/page-filter.js';
import { arbitraryRuns, blanked, exclusionOf } from '../exclusion-fixture.js';
import { addressPattern } from '../guest-fixture.js';
import { chunkOf, plain } from '../plain-chunk.js';

async function filter(exclusion: PageExclusion, chunks: readonly Chunk[]): Promise<Chunk[]> {
  const out: Chunk[] = [];
  const sink = new Writable({
    write(chunk, callback) {
      out.push(chunk as Chunk);
      callback(null);
    },
  });
  await pipelinePromise(Readable.from([...chunks]), new PageFilter(exclusion), sink);
  return out;
}

const PAGES = 16;
const BYTES = addressPattern(PAGES * PAGE_SIZE);

/** Counts how often it was called. */
function counted(): { (): void; calls: number } {
  const release = () => {
    release.calls++;
  };
  release.calls = 0;
  return release;
}

t.test('what has nothing to hide passes as it is', async (t) => {
  const exclusion = exclusionOf([{ start: 2, end: 4 }]);
  const before: Chunk = {
    kind: 'bytes',
    paddr: 0,
    length: 2 * PAGE_SIZE,
    data: BYTES.slice(0, 2 * PAGE_SIZE),
    release: counted(),
  };
  const hole: Chunk = { kind: 'hole', paddr: 2 * PAGE_SIZE, length: PAGE_SIZE };
  const behind: Chunk = { kind: 'bytes', paddr: 4 * PAGE_SIZE, length: 10, data: BYTES.slice(0, 10) };
  const out = await filter(exclusion, [before, hole, behind]);
  t.ok(out[0] === before && out[1] === hole && out[2] === behind);
});

t.test('a chunk of which nothing is left is a hole, and its bytes go back', async (t) => {
  const release = counted();
  const chunk: Chunk = {
    kind: 'bytes',
    paddr: 2 * PAGE_SIZE + 5,
    length: 100,
    data: BYTES.slice(0, 100),
    memory: 77,
    release,
  };
  const [out] = await filter(exclusionOf([{ start: 2, end: 3 }]), [chunk]);
  t.same(out, { kind: 'hole', paddr: chunk.paddr, length: 100, memory: 77 });
  t.equal(release.calls, 1);
});

t.test('bytes that are lent are written to; others may be the guest, and are copied', async (t) => {
  const exclusion = exclusionOf([{ start: 1, end: 2 }]);
  const release = counted();
  const lent: Chunk = { kind: 'bytes', paddr: 0, length: 3 * PAGE_SIZE, data: BYTES.slice(0, 3 * PAGE_SIZE), release };
  const own: Chunk = { kind: 'bytes', paddr: 0, length: 3 * PAGE_SIZE, data: BYTES.slice(0, 3 * PAGE_SIZE) };
  const [first, second] = await filter(exclusion, [lent, own]);
  t.ok(first === lent, 'in place');
  t.equal(release.calls, 0, 'and still lent');
  t.same(own.data, BYTES.slice(0, 3 * PAGE_SIZE), 'untouched');
  for (const { data } of [first!, second!].map(plain)) t.same(data, blanked(BYTES.slice(0, 3 * PAGE_SIZE), exclusion));
});

t.test('property: whatever the cuts, zeros where pages are left out and the bytes elsewhere', async (t) => {
  const cuts = fc.uniqueArray(fc.integer({ min: 1, max: BYTES.length - 1 }), { maxLength: 6 });
  await fc.assert(
    fc.asyncProperty(cuts, arbitraryRuns(PAGES, PAGES), fc.boolean(), async (cuts, runs, lends) => {
      const exclusion = exclusionOf(runs);
      const ends = [...cuts.sort((a, b) => a - b), BYTES.length];
      const releases = ends.map(counted);
      const chunks = ends.map((end, i): Chunk => {
        const paddr = ends[i - 1] ?? 0;
        const data = BYTES.slice(paddr, end);
        return chunkOf({ paddr, length: end - paddr, data, release: lends ? releases[i] : undefined });
      });
      const seen = new Uint8Array(BYTES.length).fill(0xff);
      let at = 0;
      for (const { paddr, length, data, release } of (await filter(exclusion, chunks)).map(plain)) {
        if (paddr !== at) throw new Error(`0x${paddr.toString(16)} comes where 0x${at.toString(16)} should`);
        seen.set(data ?? new Uint8Array(length), paddr);
        release?.();
        at += length;
      }
      const once = !lends || releases.every(({ calls }) => calls === 1);
      return once && Buffer.compare(seen, blanked(BYTES, exclusion)) === 0;
    }),
  );
  t.pass();
});
