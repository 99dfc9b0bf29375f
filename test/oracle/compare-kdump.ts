/** Compares kdumps, and the memory of guests whatever they came from. */

import { readFileSync } from 'node:fs';
import type { Test } from 'tap';
import {
  decodeKdumpHeader,
  decodeKdumpSubHeader,
  type KdumpHeader,
  type KdumpSubHeader,
} from '../../lib/formats/kdump.js';
import type { Guest } from '../../lib/model/guest.js';
import { planKdump } from '../../lib/layouts/kdump-layout.js';
import { plainly } from '../plain-chunk.js';

/** Where two guests' memory differs first; null when it does not. What both say is a hole is not looked at. */
export async function firstDifference(a: Guest, b: Guest): Promise<number | null> {
  for await (const { paddr, length, data, release } of plainly(a.chunks())) {
    const other = Buffer.alloc(data ? length : 0);
    if (data) b.memory!.read(paddr, other);
    const differs = data && Buffer.compare(other, data) !== 0;
    release?.();
    if (differs) return paddr;
  }
  return null;
}

/** Checks that two guests have the same memory, page by page. */
export async function sameMemory(t: Pick<Test, 'equal'>, a: Guest, b: Guest): Promise<void> {
  const blocks = (guest: Guest) => guest.blocks.reduce((sum, { length }) => sum + length, 0);
  t.equal(blocks(a), blocks(b), 'as much memory');
  t.equal(await firstDifference(a, b), null, 'the same memory');
  t.equal(await firstDifference(b, a), null, 'the same memory the other way round');
}

/**
 * Checks that headers and bitmaps of two raw kdumps with all memory of a guest are the same, but for `utsname` and
 * `phys_base`.
 * @returns those two of ours
 */
export function compareKdumpHeads(
  t: Test,
  guest: Guest,
  ours: string,
  qemus: string,
): Pick<KdumpHeader, 'utsname'> & Pick<KdumpSubHeader, 'physBase'> {
  const layout = planKdump(guest, { codec: 'zlib' });
  const [mine, theirs] = [ours, qemus].map((path) => readFileSync(path).subarray(0, layout.descriptorsOffset)) as [
    Buffer,
    Buffer,
  ];
  const { utsname, ...header } = decodeKdumpHeader(mine, layout.class);
  const { utsname: _, ...qemuHeader } = decodeKdumpHeader(theirs, layout.class);
  t.strictSame(header, qemuHeader, 'the main header but for utsname');
  const { physBase, ...sub } = decodeKdumpSubHeader(mine.subarray(4096), layout.class, 6);
  const { physBase: _qemu, ...qemuSub } = decodeKdumpSubHeader(theirs.subarray(4096), layout.class, 6);
  t.strictSame(sub, qemuSub, 'the sub header but for phys_base');
  const bitmaps = (head: Buffer) => head.subarray(layout.bitmapOffset);
  t.equal(Buffer.compare(bitmaps(mine), bitmaps(theirs)), 0, 'bitmaps');
  return { utsname, physBase };
}
