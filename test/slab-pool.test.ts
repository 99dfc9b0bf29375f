import t from 'tap';
import { SlabPool } from '../lib/slab-pool.js';

t.test('a bounded pool makes the source wait for a slab to come back', async (t) => {
  const pool = new SlabPool(1, 4096);
  const first = await pool.take();
  let second: unknown;
  const waiting = Promise.resolve(pool.take()).then((slab) => {
    second = slab;
  });
  await new Promise((resolve) => setImmediate(resolve));
  t.equal(second, undefined, 'nothing to be had while the slab is on its way');
  pool.give(first);
  await waiting;
  t.equal(second, first, 'the same slab, reused');
});

t.test('a pool without a bound never waits', async (t) => {
  const pool = new SlabPool();
  const slabs = new Set([await pool.take(), await pool.take(), await pool.take()]);
  t.equal(slabs.size, 3);
  for (const slab of slabs) t.ok(slab.bytes.buffer instanceof SharedArrayBuffer);
});
