/** The copy of a guest's memory reads as the guest does, and is no larger than it may be. */

import { readdirSync } from 'node:fs';
import fc from 'fast-check';
import t from 'tap';
import type { Guest } from '../../lib/model/guest.js';
import type { Backing } from '../../lib/model/physical-memory.js';
import { PhysicalMemory } from '../../lib/model/physical-memory.js';
import { MemoryCopy } from '../../lib/live/qemu/memory-copy.js';
import { MemoryGuest } from '../../lib/sources/memory-guest.js';
import { SpoolFile } from '../../lib/io/spool-file.js';
import { PAGE_SIZE } from '../../lib/model/stage.js';

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

/** Room in memory, and in a temporary file where there is a folder. */
async function copyOf(guest: Guest, limit: number, folder?: string): Promise<MemoryCopy> {
  const spool = folder === undefined ? null : SpoolFile.create(folder);
  try {
    return await MemoryCopy.of(guest, { limit, spool });
  } finally {
    spool?.close();
  }
}

t.test('reads as the guest does, anywhere', async (t) => {
  const folder = t.testdir({});
  const property = fc.asyncProperty(
    pages,
    pages,
    fc.array(fc.tuple(fc.nat(100 * PAGE_SIZE), fc.nat(50 * PAGE_SIZE)), { minLength: 1, maxLength: 10 }),
    fc.option(fc.nat(60 * PAGE_SIZE)),
    async (low, high, reads, limit) => {
      const guest = guestOf([
        { base: 0, pages: low },
        { base: 70, pages: high },
      ]);
      const copy = await (limit === null ? copyOf(guest, Number.POSITIVE_INFINITY) : copyOf(guest, limit, folder));
      const copied = new PhysicalMemory(copy.regionsOf(guest));
      for (const [at, length] of reads) {
        const [mine, theirs] = [Buffer.alloc(length, 1), Buffer.alloc(length, 2)];
        if (copied.read(at, mine) !== guest.memory!.read(at, theirs) || !mine.equals(theirs)) return false;
        await copy.read(at, mine);
        if (copied.read(at, theirs) && !mine.equals(theirs)) return false;
      }
      copy.close();
      return true;
    },
  );
  await fc.assert(property, { numRuns: 200 });
  t.pass('200 guests');
});

t.test('its bound', async (t) => {
  const guest = guestOf([{ base: 0, pages: [...Array<number>(100).fill(0), 1, 2, 3, ...Array<number>(100).fill(0)] }]);
  const copy = await copyOf(guest, 3 * PAGE_SIZE);
  t.equal(copy.bytes, 3 * PAGE_SIZE, 'zeros are not copied');
  await t.rejects(copyOf(guest, 3 * PAGE_SIZE - 1), { code: 'LIMIT', message: /--copy-limit/ });
  for (const limit of [3 * PAGE_SIZE, 3 * PAGE_SIZE - 1, 1, 0]) {
    const { bytes, spooledBytes } = await copyOf(guest, limit, t.testdir({}));
    t.same({ bytes, spooledBytes }, { bytes: 3 * PAGE_SIZE, spooledBytes: 3 * PAGE_SIZE - limit });
  }
  const abort = new AbortController();
  abort.abort();
  await t.rejects(MemoryCopy.of(guest, { limit: 2 ** 20, spool: null }, abort.signal), { code: 'ABORTED' });
});

t.test('more than a piece of memory, and than what is written at a time', async (t) => {
  const noise = Array.from({ length: 5000 }, (_, i) => (i % 9 === 0 ? 0 : 1 + (i % 251)));
  const guest = guestOf([{ base: 0, pages: [...noise, ...Array<number>(20_000).fill(7), ...noise] }]);
  const { length } = guest.blocks[0]!;
  const theirs = Buffer.alloc(length);
  guest.memory!.read(0, theirs);
  for (const limit of [0, 5_000_001, 80 << 20]) {
    const folder = t.testdir({});
    const copy = await copyOf(guest, limit, folder);
    t.ok(copy.spooledBytes > 2 << 20, `${copy.spooledBytes} of ${copy.bytes} bytes are in the file`);
    const mine = Buffer.alloc(length, 1);
    copy.readSync(0, mine);
    t.ok(mine.equals(theirs), `a limit of ${limit}`);
    t.same(readdirSync(folder), [], 'which has no name');
    copy.close();
  }
});
