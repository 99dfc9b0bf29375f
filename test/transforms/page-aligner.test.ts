import fc from 'fast-check';
import { pipelinePromise, Readable, Writable } from 'streamx';
import t from 'tap';
import { type Chunk, chunkBytes, PAGE_SIZE, releaseChunk } from '../../lib/model/stage.js';
import { PageAligner } from '../../lib/transforms/page-aligner.js';
import { chunkOf, plain } from '../plain-chunk.js';

async function align(chunks: readonly Chunk[]): Promise<Chunk[]> {
  const out: Chunk[] = [];
  await pipelinePromise(
    Readable.from([...chunks]),
    new PageAligner(),
    new Writable({
      write(item, callback) {
        out.push(item as Chunk);
        callback(null);
      },
    }),
  );
  return out;
}

const filled = (length: number, value: number) => new Uint8Array(length).fill(value);

t.test('whole pages pass untouched, holes too', async (t) => {
  const chunks: Chunk[] = [
    { kind: 'bytes', paddr: 0, length: 8192, data: filled(8192, 1) },
    { kind: 'hole', paddr: 8192, length: 2 ** 40 },
  ];
  const out = await align(chunks);
  t.equal(out[0], chunks[0], 'the same object: nothing was copied');
  t.equal(out[1], chunks[1]);
});

t.test('two blocks that share a page make one page', async (t) => {
  const out = await align([
    { kind: 'bytes', paddr: 0x1800, length: 0x1400, data: filled(0x1400, 1) },
    { kind: 'bytes', paddr: 0x2c00, length: 0x400, data: filled(0x400, 2) },
    { kind: 'bytes', paddr: 0x5000, length: 0x10, data: filled(0x10, 3) },
  ]);
  t.same(
    out.map(({ paddr, length, memory }) => [paddr, length, memory]),
    [
      [0x1000, PAGE_SIZE, 0x800],
      [0x2000, PAGE_SIZE, 0x1000],
      [0x5000, PAGE_SIZE, 0x10],
    ],
  );
  t.equal(plain(out[0]!).data![0x7ff], 0, 'what is not memory is zeros');
  t.equal(plain(out[0]!).data![0x800], 1);
  t.equal(plain(out[1]!).data![0xbff], 1);
  t.equal(plain(out[1]!).data![0xc00], 2);
});

t.test('property: every byte comes out where it was, in whole pages, in order, and is given back once', async () => {
  const pieces = fc.array(
    fc.record({ gap: fc.nat(3 * PAGE_SIZE), length: fc.integer({ min: 1, max: 3 * PAGE_SIZE }), hole: fc.boolean() }),
    { maxLength: 8 },
  );
  await fc.assert(
    fc.asyncProperty(pieces, async (list) => {
      const flat = new Uint8Array(64 * PAGE_SIZE);
      let at = 0;
      let released = 0;
      const chunks = list.map(({ gap, length, hole }, i): Chunk => {
        const paddr = at + gap;
        at = paddr + length;
        if (!hole) flat.fill(i + 1, paddr, at);
        const data = hole ? undefined : filled(length, i + 1);
        return chunkOf({ paddr, length, data, release: () => void released++ });
      });
      let end = 0;
      let memory = 0;
      for (const chunk of await align(chunks)) {
        if (chunk.paddr % PAGE_SIZE || chunk.length % PAGE_SIZE || chunk.paddr < end) return false;
        end = chunk.paddr + chunk.length;
        memory += chunk.memory ?? chunk.length;
        const bytes = chunkBytes(chunk) ?? new Uint8Array(chunk.length);
        if (Buffer.compare(bytes, flat.subarray(chunk.paddr, end)) !== 0) return false;
        releaseChunk(chunk);
      }
      return (
        released === list.filter(({ hole }) => !hole).length &&
        memory === list.reduce((sum, { length }) => sum + length, 0)
      );
    }),
  );
});
