import fc from 'fast-check';
import { pipelinePromise, Readable } from 'streamx';
import t from 'tap';
import { decodeFlattenedRecord, FLATTENED_HEADER_SIZE, isFlattened } from '../../lib/formats/flattened.js';
import type { Extent } from '../../lib/model/stage.js';
import { Flattener } from '../../lib/transforms/flattener.js';
import { Collector } from '../kdump-fixture.js';

async function flatten(extents: readonly Extent[]): Promise<Collector> {
  const sink = new Collector();
  await pipelinePromise(Readable.from([...extents]), new Flattener(), sink);
  return sink;
}

/** What `makedumpfile -R` makes of it: each record written where it says. */
function rearrange(flat: Buffer): Buffer {
  const parts: { offset: number; data: Buffer }[] = [];
  let at = FLATTENED_HEADER_SIZE;
  for (;;) {
    const record = decodeFlattenedRecord(flat.subarray(at, at + 16));
    if (record === 'end') break;
    if (record === null) throw new Error(`no record at ${at}`);
    parts.push({ offset: record.offset, data: flat.subarray(at + 16, at + 16 + record.size) });
    at += 16 + record.size;
  }
  if (at + 16 !== flat.length) throw new Error('bytes behind the end record');
  const file = Buffer.alloc(parts.reduce((end, { offset, data }) => Math.max(end, offset + data.length), 0));
  for (const { offset, data } of parts) file.set(data, offset);
  return file;
}

t.test('a stream of ascending offsets without gaps, header first', async (t) => {
  const data = Buffer.from('hello');
  const sink = await flatten([
    { offset: 100, length: 5, data, memory: 7 },
    { offset: 0, length: 5, data, memory: 0 },
  ]);
  let at = 0;
  for (const extent of sink.extents) {
    t.equal(extent.offset, at);
    at += extent.length;
  }
  t.equal(isFlattened(sink.bytes), true);
  t.equal(rearrange(sink.bytes).toString('latin1'), `hello${'\0'.repeat(95)}hello`);
  t.equal(sink.memory, 7);
});

t.test('holes make no record, but a file that ends in one keeps its size', async (t) => {
  const sink = await flatten([
    { offset: 0, length: 3, data: Buffer.from('abc'), memory: 0 },
    { offset: 3, length: 1000, memory: 1000 },
  ]);
  t.same(rearrange(sink.bytes), Buffer.concat([Buffer.from('abc'), Buffer.alloc(1000)]));
  t.equal(sink.memory, 1000);
  t.equal(sink.bytes.length, FLATTENED_HEADER_SIZE + 16 + 3 + 16 + 1 + 16);
});

t.test('an empty stream is a header and an end', async (t) => {
  t.equal((await flatten([])).bytes.length, FLATTENED_HEADER_SIZE + 16);
});

t.test(
  'property: put together it is the file that a seekable sink writes; memory and releases are passed on',
  async () => {
    const extent = fc.record({ length: fc.integer({ min: 1, max: 60 }), hole: fc.boolean(), gap: fc.nat(20) });
    await fc.assert(
      fc.asyncProperty(fc.array(extent, { maxLength: 12 }), fc.nat(), async (parts, seed) => {
        let offset = 0;
        let released = 0;
        const extents = parts.map(({ length, hole, gap }, i): Extent => {
          offset += gap;
          const at = offset;
          offset += length;
          const data = hole ? undefined : new Uint8Array(length).fill(i + 1);
          return { offset: at, length, data, memory: length, release: () => released++ };
        });
        const shuffled = extents
          .map((item, i) => ({ item, key: (i * 7919 + seed) % 101 }))
          .sort((a, b) => a.key - b.key)
          .map(({ item }) => item);
        const raw = new Collector();
        await pipelinePromise(Readable.from(shuffled.map(({ release, ...rest }) => rest)), raw);
        const flat = await flatten(shuffled);
        return (
          Buffer.compare(rearrange(flat.bytes), raw.bytes) === 0 &&
          flat.memory === raw.memory &&
          released === extents.length
        );
      }),
    );
  },
);
