/** What the base classes of stages promise: every wait ends, everything that waits in a queue goes back. */
import { getEventListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { pipelinePromise } from 'streamx';
import t from 'tap';
import { SlabPool } from '../lib/model/slab-pool.js';
import {
  type Chunk,
  chunkBytes,
  closed,
  type Extent,
  releaseItem,
  Sink,
  sliceChunk,
  Stage,
} from '../lib/model/stage.js';
import { ByteStream } from '../lib/transforms/byte-stream.js';
import { ElfFramer } from '../lib/transforms/elf-framer.js';
import { planElf } from '../lib/layouts/elf-layout.js';
import { patternGuest } from './guest-fixture.js';

const MIB = 1 << 20;

/** Takes items and keeps them. */
class Keeper extends Sink<Extent> {
  readonly items: Extent[] = [];

  protected override take(item: Extent): void {
    this.items.push(item);
  }
}

/** A sink that takes nothing until it is destroyed. */
class Stalled extends Sink<unknown> {
  #reject: ((error: Error) => void) | null = null;

  protected override take(item: unknown): Promise<void> {
    return new Promise<void>((_, reject) => {
      this.#reject = reject;
    }).finally(() => releaseItem(item));
  }

  protected override cancel(error: Error): void {
    this.#reject?.(error);
  }
}

/** Passes chunks on, and counts those that it was given. */
class Pass extends Stage<Chunk, Chunk> {
  protected override transform(chunk: Chunk): void {
    this.emitItem(chunk);
  }
}

t.test('a pipeline that is destroyed gives back every slab, wherever it waits', async (t) => {
  for (const slabs of [1, 3, 8]) {
    const pool = new SlabPool(slabs, 64 * 1024);
    const guest = patternGuest([{ base: 0, length: 4 * MIB }]);
    const source = guest.chunks({ pool });
    const sink = new Stalled();
    const ended = pipelinePromise(source, new Pass(), new Pass(), sink);
    await sleep(20);
    sink.destroy(new Error('the reader has gone'));
    await t.rejects(ended, { message: 'the reader has gone' });
    await closed(source);
    await pool.idle();
    t.pass(`${slabs} slabs`);
  }
});

t.test('a stage that is written to when it is destroyed gives the item back', async (t) => {
  let released = 0;
  const stage = new Pass();
  stage.on('error', () => {});
  stage.destroy(new Error('over'));
  stage.write({ kind: 'bytes', paddr: 0, length: 1, data: new Uint8Array(1), release: () => void released++ });
  t.equal(released, 1);
  await closed(stage);
});

t.test('pipelines that have ended listen to their signal no more', async (t) => {
  const abort = new AbortController();
  const { signal } = abort;
  const guest = patternGuest([{ base: 0, length: MIB }]);
  for (let i = 0; i < 20; i++) {
    const layout = planElf(guest);
    await pipelinePromise(guest.chunks({ signal }), new ElfFramer(layout, { signal }), new Keeper({ signal }));
  }
  t.equal(getEventListeners(signal, 'abort').length, 0);
});

t.test('a framer refuses deferred chunks, and gives them back; it does not take them for zeros', async (t) => {
  const guest = patternGuest([{ base: 0, length: 4096 }]);
  let released = 0;
  const deferred: Chunk = {
    kind: 'deferred',
    paddr: 0,
    length: 4096,
    place: { fd: 0, offset: 0 },
    read: async () => {},
    release: () => void released++,
  };
  const framer = new ElfFramer(planElf(guest));
  const ended = pipelinePromise(framer, new Keeper());
  framer.write(deferred);
  await t.rejects(ended, { code: 'USAGE', message: /0x0 came as a deferred chunk/ });
  t.equal(released, 1);
});

t.test('a part of a chunk has the bytes of that part, in memory as in a file', async (t) => {
  const bytes = Uint8Array.from({ length: 100 }, (_, i) => i);
  const whole = { paddr: 1000, length: 100 };
  const read = async (into: Uint8Array, from = 0) => into.set(bytes.subarray(from, from + into.length));
  const inMemory = sliceChunk({ kind: 'bytes', ...whole, data: bytes }, 10, 30);
  t.same(chunkBytes(inMemory), bytes.subarray(10, 30));
  const place = { fd: 3, offset: 500 };
  const inFile = sliceChunk({ kind: 'deferred', ...whole, place, read, release: () => {} }, 10, 30);
  t.match(inFile, { kind: 'deferred', paddr: 1010, length: 20, place: { fd: 3, offset: 510 } });
  const into = new Uint8Array(5);
  if (inFile.kind === 'deferred') await inFile.read(into, 3);
  t.same(into, bytes.subarray(13, 18));
  t.match(sliceChunk({ kind: 'hole', ...whole }, 10, 30), { kind: 'hole', paddr: 1010, length: 20 });
});

t.test('a byte stream makes zeros as they are taken: a hole of 128 GiB ends at once, and holds nothing', async (t) => {
  const stream = new ByteStream();
  stream.on('error', () => {});
  stream.write({ offset: 2 ** 37, length: 1, data: new Uint8Array(1), memory: 1 });
  let turns = 0;
  const turning = setInterval(() => turns++, 1);
  let seen = 0;
  for await (const piece of stream as AsyncIterable<Uint8Array>) {
    seen += piece.length;
    if (seen > 64 * MIB) break;
    if (seen % (4 * MIB) === 0) await sleep(1);
  }
  clearInterval(turning);
  t.ok(turns > 0, 'the event loop turns');
  t.ok(stream.destroying);
  await closed(stream);
});
