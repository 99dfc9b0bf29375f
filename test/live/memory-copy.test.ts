/** The copy of a guest's memory reads as the guest does, and is no larger than it may be. */

import fc from 'fast-check';
import t from 'tap';
import type { Guest } from '../../lib/guest.js';
import type { Backing } from '../../lib/physical-memory.js';
import { PhysicalMemory } from '../../lib/physical-memory.js';
import { MemoryCopy } from '../../lib/sources/memory-copy.js';
import { MemoryGuest } from '../../lib/sources/memory-guest.js';
import { PAGE_SIZE } from '../../lib/stage.js';

/** A guest with pages as they are told: 0 is a page of zeros. */
function guestOf(blocks: readonly { base: number; pages: readonly number[] }[]): Guest {
  const regions = blocks.map(({ base, pages }) => ({
    base: base * PAGE_SIZE,
    length: pages.length * PAGE_SIZE,
    offset: 0,
    backing: bytesOf(pages),
  }));
  return new MemoryGuest({ name: 'test', arch: 'x86_64', regions, cpus: [], notes: [] });
}

function bytesOf(pages: readonly number[]): Backing {
  const bytes = Buffer.concat(pages.map((value) => Buffer.alloc(PAGE_SIZE, value)));
  const readSync = (offset: number, into: Uint8Array) => into.set(bytes.subarray(offset, offset + into.length));
  return { name: 'bytes', readSync, read: async (offset, into) => readSync(offset, into), close: () => {} };
}

const pages = fc.array(fc.oneof({ weight: 3, arbitrary: fc.constant(0) }, fc.integer({ min: 1, max: 255 })), {
  minLength: 1,
  maxLength: 60,
});

t.test('reads as the guest does, anywhere', async (t) => {
  const property = fc.asyncProperty(
    pages,
    pages,
    fc.array(fc.tuple(fc.nat(100 * PAGE_SIZE), fc.nat(50 * PAGE_SIZE)), { minLength: 1, maxLength: 10 }),
    async (low, high, reads) => {
      const guest = guestOf([
        { base: 0, pages: low },
        { base: 70, pages: high },
      ]);
      const copy = await MemoryCopy.of(guest, Number.POSITIVE_INFINITY);
      const copied = new PhysicalMemory(copy.regionsOf(guest));
      for (const [at, length] of reads) {
        const [mine, theirs] = [Buffer.alloc(length, 1), Buffer.alloc(length, 2)];
        if (copied.read(at, mine) !== guest.memory!.read(at, theirs) || !mine.equals(theirs)) return false;
      }
      return true;
    },
  );
  await fc.assert(property, { numRuns: 200 });
  t.pass('200 guests');
});

t.test('its bound', async (t) => {
  const guest = guestOf([{ base: 0, pages: [...Array<number>(100).fill(0), 1, 2, 3, ...Array<number>(100).fill(0)] }]);
  const copy = await MemoryCopy.of(guest, 3 * PAGE_SIZE);
  t.equal(copy.bytes, 3 * PAGE_SIZE, 'zeros are not copied');
  await t.rejects(MemoryCopy.of(guest, 3 * PAGE_SIZE - 1), { code: 'LIMIT', message: /--copy-limit/ });
  const abort = new AbortController();
  abort.abort();
  await t.rejects(MemoryCopy.of(guest, 2 ** 20, abort.signal), { code: 'ABORTED' });
});
