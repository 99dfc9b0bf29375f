/** The small stages: range filter, ELF framer, byte stream, tally; each alone, as a user would compose it. */

import { pipeline } from 'node:stream/promises';
import { pipelinePromise, Readable, Writable } from 'streamx';
import t from 'tap';
import { type Chunk, type Extent, nodeStream, type Stage } from '../../lib/model/stage.js';
import { ByteStream } from '../../lib/transforms/byte-stream.js';
import { ElfFramer } from '../../lib/transforms/elf-framer.js';
import { planElf } from '../../lib/layouts/elf-layout.js';
import { RangeFilter } from '../../lib/transforms/range-filter.js';
import { Tally } from '../../lib/transforms/tally.js';
import { patternGuest } from '../guest-fixture.js';
import { plain } from '../plain-chunk.js';

async function through<I, O>(items: readonly I[], stage: Stage<I, O>): Promise<O[]> {
  const out: O[] = [];
  await pipelinePromise(
    Readable.from([...items]),
    stage,
    new Writable({
      write(item, callback) {
        out.push(item as O);
        callback(null);
      },
    }),
  );
  return out;
}

const data = (length: number, fill = 1) => new Uint8Array(length).fill(fill);

t.test('range filter: passes what is inside, cuts what crosses, gives back what is outside', async (t) => {
  const released: number[] = [];
  const chunk = (paddr: number, length: number): Chunk => ({
    kind: 'bytes',
    paddr,
    length,
    data: data(length, paddr / 100),
    release: () => void released.push(paddr),
  });
  const out = await through(
    [chunk(0, 100), chunk(100, 100), { kind: 'hole', paddr: 200, length: 1000 }, chunk(1200, 100), chunk(1300, 100)],
    new RangeFilter({ base: 150, length: 1100 }),
  );
  t.same(
    out.map(plain).map(({ paddr, length, data }) => [paddr, length, data?.length]),
    [
      [150, 50, 50],
      [200, 1000, undefined],
      [1200, 50, 50],
    ],
  );
  t.same(released, [0, 1300], 'the rest belongs to whoever takes the parts');
});

t.test('ELF framer: memory that is missing, or that nobody planned for, fails', async (t) => {
  const guest = patternGuest([{ base: 0, length: 8192 }]);
  const layout = planElf(guest);
  await t.rejects(through([{ kind: 'hole', paddr: 0, length: 4096 }], new ElfFramer(layout)), {
    code: 'TRUNCATED',
    message: 'the source gave 4096 of 8192 bytes of guest memory',
  });
  await t.rejects(through([{ kind: 'hole', paddr: 4096, length: 8192 }], new ElfFramer(layout)), {
    code: 'BAD_INPUT',
    message: /0x1000\+0x2000.*no block/,
  });
});

t.test('byte stream: in order, holes as zeros, never backwards', async (t) => {
  const extents: Extent[] = [
    { offset: 0, length: 2, data: data(2), memory: 0 },
    { offset: 4, length: 3, memory: 3 },
    { offset: 7, length: 1, data: data(1), memory: 1 },
  ];
  const bytes = Buffer.concat(await through(extents, new ByteStream()));
  t.same([...bytes], [1, 1, 0, 0, 0, 0, 0, 1]);
  await t.rejects(through([...extents, extents[0]!], new ByteStream()), { code: 'UNSUPPORTED', message: /seekable/ });
});

t.test("a vmcore through Node's own pipeline", async (t) => {
  const guest = patternGuest([{ base: 0, length: 1 << 20 }]);
  let bytes = 0;
  await pipeline(
    guest.chunks(),
    nodeStream(new ElfFramer(planElf(guest))),
    nodeStream(new ByteStream()),
    async (source: AsyncIterable<string | Buffer>) => {
      for await (const piece of source) bytes += piece.length;
    },
  );
  t.equal(bytes, 4096 + (1 << 20));
});

t.test('tally: counts what was read and what was not', async (t) => {
  const tally = new Tally();
  await through<Chunk, Chunk>(
    [
      { kind: 'bytes', paddr: 0, length: 10, data: data(10) },
      { kind: 'hole', paddr: 10, length: 5 },
    ],
    tally,
  );
  t.same([tally.dataBytes, tally.holeBytes], [10, 5]);
});
