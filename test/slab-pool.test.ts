import t from 'tap';
import { SlabPool } from '../lib/model/slab-pool.js';

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

t.test('a pool that is closed rejects whoever waits, and whoever comes', async (t) => {
  const pool = new SlabPool(1, 4096);
  const slab = await pool.take();
  const waiting = pool.take();
  pool.close(new Error('over'));
  await t.rejects(Promise.resolve(waiting), { message: 'over' });
  await t.rejects(Promise.resolve(pool.take()), { message: 'over' });
  pool.give(slab);
  await pool.idle();
});

t.test('one owner is dismissed, others wait on', async (t) => {
  const pool = new SlabPool(1, 4096);
  const slab = await pool.take();
  const [gone, there] = [{}, {}];
  const dismissed = pool.take(gone);
  const served = pool.take(there);
  pool.dismiss(gone, new Error('over'));
  await t.rejects(Promise.resolve(dismissed), { message: 'over' });
  pool.give(slab);
  t.equal(await served, slab);
});
