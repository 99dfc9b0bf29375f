/** One encoder's memory serves the next: when nobody has anything of it any more, and not before. */

import { setImmediate as turn } from 'node:timers/promises';
import t from 'tap';
import { WasmEncoder } from '../../lib/codecs/wasm-encoder.js';
import { PAGE_SIZE } from '../../lib/model/stage.js';

const PAGES = 4;

/** Encodes some pages and closes the encoder; what it made has not been released. */
async function encoded(fill: number) {
  const encoder = await WasmEncoder.open('lzo', { threads: 1 });
  const data = new Uint8Array(new SharedArrayBuffer(PAGES * PAGE_SIZE)).fill(fill);
  const batch = await encoder.encode({ kind: 'bytes', paddr: 0, length: data.length, data });
  await encoder.close();
  return batch;
}

async function released(batch: Awaited<ReturnType<typeof encoded>>) {
  batch.release!();
  await turn();
  return batch;
}

t.test('a memory that nobody has anything of', async (t) => {
  let second = await encoded(1);
  let used: unknown;
  // Between two encoders garbage may be collected, and the memory with it; but not each time.
  for (let tries = 0; second.data!.buffer !== used && tries < 20; tries++) {
    used = (await released(second)).data!.buffer;
    second = await encoded(tries + 2);
  }
  t.equal(second.data!.buffer, used, 'is used again');
  const bytes = Buffer.from(second.data!);
  const third = await encoded(3);
  t.not(third.data!.buffer, second.data!.buffer, 'but not while a batch is out');
  t.ok(bytes.equals(second.data!), 'which stays what it was');
  await released(second);
  await released(third);
});

t.test('one of another size', async (t) => {
  const first = await released(await encoded(1));
  const encoder = await WasmEncoder.open('lzo', { threads: 2 });
  const slab = await encoder.pool.take();
  t.not(slab.bytes.buffer, first.data!.buffer);
  encoder.pool.give(slab);
  await encoder.close();
});
