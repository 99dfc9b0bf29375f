import { createHash } from 'node:crypto';
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { inflateSync } from 'node:zlib';
import { LZO } from 'lzo-ts';
import snappy from 'snappyjs';
import { pipelinePromise, Readable, Writable } from 'streamx';
import t, { type Test } from 'tap';
import { WasmEncoder } from '../../lib/codecs/wasm-encoder.js';
import type { PageCodecName, PageEncoder } from '../../lib/codecs/page-encoder.js';
import { PortableEncoder } from '../../lib/codecs/portable-encoder.js';
import { FileBacking } from '../../lib/io/file-backing.js';
import {
  type Chunk,
  PAGE_COMPRESSED,
  PAGE_SIZE,
  PAGE_STORED,
  PAGE_ZERO,
  type PageBatch,
} from '../../lib/model/stage.js';
import { PageCompressor } from '../../lib/transforms/page-compressor.js';
import { chunkOf } from '../plain-chunk.js';

const CODECS = ['zlib', 'lzo', 'snappy'] as const;

/** Decoders that are not ours. */
const DECODE: Record<PageCodecName, (encoded: Uint8Array) => Uint8Array> = {
  zlib: (encoded) => inflateSync(encoded),
  lzo: (encoded) => LZO.decompress(Uint8Array.from(encoded)),
  snappy: (encoded) => snappy.uncompress(Uint8Array.from(encoded)),
};

/** Pages of text, noise, zeros and runs, in an order that mixes them. */
function pages(count: number, seed: number): Uint8Array {
  const bytes = Buffer.alloc(count * PAGE_SIZE);
  let state = seed | 1;
  const random = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state;
  };
  for (let page = 0; page < count; page++) {
    const at = page * PAGE_SIZE;
    const kind = (page + seed) % 4;
    if (kind === 1) bytes.fill(`text of page ${page}, and of seed ${seed}; `, at, at + PAGE_SIZE);
    if (kind === 2) for (let i = 0; i < PAGE_SIZE; i += 4) bytes.writeInt32LE(random(), at + i);
    if (kind === 3) bytes.fill(page & 0xff || 1, at + 100, at + 3000);
  }
  return bytes;
}

interface Decoded {
  readonly memory: Buffer;
  readonly batches: readonly { readonly paddr: number; readonly bytes: string }[];
  readonly kinds: readonly number[];
}

async function compress(codec: PageCodecName, encoder: PageEncoder, chunks: readonly Chunk[]): Promise<Decoded> {
  const parts: Buffer[] = [];
  const batches: { paddr: number; bytes: string }[] = [];
  const kinds: number[] = [];
  const take = (batch: PageBatch) => {
    let at = 0;
    for (let i = 0; i < batch.count; i++) {
      const kind = batch.kinds?.[i] ?? PAGE_ZERO;
      const size = batch.sizes?.[i] ?? 0;
      const encoded = batch.data?.subarray(at, at + size) ?? new Uint8Array(0);
      at += size;
      kinds.push(kind);
      if (kind === PAGE_COMPRESSED) parts.push(Buffer.from(DECODE[codec](encoded)));
      else parts.push(kind === PAGE_STORED ? Buffer.from(encoded) : Buffer.alloc(PAGE_SIZE));
    }
    batches.push({
      paddr: batch.paddr,
      bytes: createHash('sha256')
        .update(batch.data?.subarray(0, at) ?? '')
        .digest('hex'),
    });
    batch.release?.();
  };
  const compressor = new PageCompressor(encoder);
  await pipelinePromise(
    Readable.from([...chunks]),
    compressor,
    new Writable({
      write(item, callback) {
        take(item as PageBatch);
        callback(null);
      },
    }),
  );
  const { zero, stored, compressed } = compressor.counts;
  t.equal(zero + stored + compressed, kinds.length, 'all pages are counted');
  return { memory: Buffer.concat(parts), batches, kinds };
}

/** Chunks of different sizes with a hole in between. */
function chunksOf(): { chunks: Chunk[]; memory: Buffer } {
  const sizes = [1, 64, 0, 256, 3, 100, 17, 256, 30];
  let paddr = 0;
  const parts: Uint8Array[] = [];
  const chunks = sizes.map((count, i): Chunk => {
    const hole = count === 0;
    const length = (hole ? 40 : count) * PAGE_SIZE;
    const data = hole ? undefined : pages(count, i + 1);
    parts.push(data ?? new Uint8Array(length));
    const chunk = chunkOf({ paddr, length, data });
    paddr += length;
    return chunk;
  });
  return { chunks, memory: Buffer.concat(parts) };
}

for (const codec of CODECS)
  t.test(codec, async (t) => {
    const { chunks, memory } = chunksOf();
    const one = await compress(codec, await WasmEncoder.open(codec, { threads: 1 }), chunks);
    t.ok(one.memory.equals(memory), 'decodes to what went in');
    t.same(
      one.batches.map(({ paddr }) => paddr),
      chunks.map(({ paddr }) => paddr),
      'in order',
    );
    for (const kind of [PAGE_ZERO, PAGE_STORED, PAGE_COMPRESSED])
      t.ok(one.kinds.includes(kind), `pages of kind ${kind}`);
    for (const threads of [2, 3, 8]) {
      const more = await compress(codec, await WasmEncoder.open(codec, { threads }), chunks);
      t.ok(more.memory.equals(memory));
      t.same(more.batches, one.batches, `the same bytes from ${threads} threads`);
    }
    const portable = await compress(codec, new PortableEncoder(codec), chunks);
    t.ok(portable.memory.equals(memory), 'the portable codec');
    t.same(
      portable.kinds.map((kind) => kind === PAGE_ZERO),
      one.kinds.map((kind) => kind === PAGE_ZERO),
    );
  });

t.test('slabs of the encoder are used where they are, and come back', async (t) => {
  const encoder = await WasmEncoder.open('lzo', { threads: 2 });
  const { pool } = encoder;
  const seen = new Set<number>();
  for (let round = 0; round < 40; round++) {
    const slab = await pool.take();
    seen.add(slab.bytes.byteOffset);
    slab.bytes.set(pages(16, round + 1));
    const batch = await encoder.encode({
      kind: 'bytes',
      paddr: round * 16 * PAGE_SIZE,
      length: 16 * PAGE_SIZE,
      data: slab.bytes.subarray(0, 16 * PAGE_SIZE),
      release: () => pool.give(slab),
    });
    batch.release?.();
  }
  t.ok(seen.size <= pool.limit, `${seen.size} slabs were enough for 40 chunks`);
  await encoder.close();
});

/** Pages in a file, as chunks that say where they are. */
function deferredChunks(
  t: Test,
  { chunks, memory }: ReturnType<typeof chunksOf>,
): { backing: FileBacking; chunks: Chunk[] } {
  const file = join(t.testdir({}), 'memory');
  writeFileSync(file, memory);
  const backing = FileBacking.open(file);
  t.teardown(() => backing.close());
  const deferred = (chunk: Chunk): Chunk => {
    if (chunk.kind !== 'bytes') return chunk;
    const { paddr, length } = chunk;
    const { release, ...place } = backing.locate(paddr);
    const read = (into: Uint8Array, from = 0) => backing.read(paddr + from, into);
    return { kind: 'deferred', paddr, length, place, read, release };
  };
  return { backing, chunks: chunks.map(deferred) };
}

t.test('chunks that are still in a file make the same batches as those that were read', async (t) => {
  const made = chunksOf();
  const { chunks } = deferredChunks(t, made);
  for (const codec of CODECS) {
    const read = await compress(codec, await WasmEncoder.open(codec, { threads: 2 }), made.chunks);
    const deferred = await compress(codec, await WasmEncoder.open(codec, { threads: 2 }), chunks);
    t.same(deferred.batches, read.batches, codec);
    t.ok(deferred.memory.equals(made.memory));
  }
});

t.test('what a thread cannot read is read here, or the reason is told', async (t) => {
  const made = chunksOf();
  const { backing, chunks } = deferredChunks(t, made);
  let asked = 0;
  const elsewhere = chunks.map((chunk): Chunk => {
    if (chunk.kind !== 'deferred') return chunk;
    const read = (into: Uint8Array) => {
      asked++;
      return backing.read(chunk.paddr, into);
    };
    return { ...chunk, place: { fd: -1, offset: 0 }, read };
  });
  const { memory } = await compress('lzo', await WasmEncoder.open('lzo', { threads: 2 }), elsewhere);
  t.ok(memory.equals(made.memory), 'read all the same');
  t.equal(asked, elsewhere.filter(({ kind }) => kind === 'deferred').length);

  truncateSync(backing.name, PAGE_SIZE);
  await t.rejects(compress('lzo', await WasmEncoder.open('lzo', { threads: 2 }), chunks), {
    code: 'TRUNCATED',
    message: /ends at byte 4096/,
  });
});

t.test('LZO and Snappy: level 2 is smaller', async (t) => {
  const { chunks } = chunksOf();
  for (const codec of ['lzo', 'snappy'] as const) {
    const size = async (level: number) => {
      const encoder = await WasmEncoder.open(codec, { threads: 1, level });
      let bytes = 0;
      for (const chunk of chunks) {
        if (chunk.kind === 'hole') continue;
        const batch = await encoder.encode(chunk);
        bytes += batch.data?.length ?? 0;
        batch.release?.();
      }
      await encoder.close();
      return bytes;
    };
    t.ok((await size(2)) < (await size(1)), codec);
  }
});

t.test('a thread that dies fails the batches that it had', async (t) => {
  const encoder = await WasmEncoder.open('zlib', { threads: 1 });
  const batch = encoder.encode({ kind: 'bytes', paddr: 0, length: 256 * PAGE_SIZE, data: pages(256, 1) });
  await encoder.close();
  await t.rejects(batch, { code: 'LIMIT', message: /compressor thread stopped/ });
});

t.test('threads and levels that are none are refused', async (t) => {
  for (const threads of [Number.NaN, 0, -1, 1.5])
    await t.rejects(WasmEncoder.open('lzo', { threads }), {
      code: 'USAGE',
      message: `threads must be a whole number from 1 on, not ${threads}`,
    });
  await t.rejects(WasmEncoder.open('lzo', { level: 0 }), { code: 'USAGE', message: /^level must be / });
});
