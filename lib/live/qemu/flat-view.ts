/**
 * What HMP `info mtree -f` prints: for each address space the ranges that it shows, and which memory region, from
 * which offset on, each range is of:
 *
 *   FlatView #0
 *    AS "memory", root: system
 *    Root memory region: system
 *     0000000000000000-00000000000c2fff (prio 0, ram): guest-ram
 *     00000000000c3000-00000000000e7fff (prio 0, rom): guest-ram @00000000000c3000 KVM
 *
 * The text is for people and has no promise; what is read here is checked against QEMU's dump before it is used.
 */

import { blockEnd, type MemoryBlock } from '../../model/physical-memory.js';

/** A range of guest physical memory and the region that is seen there. */
export interface FlatRange extends MemoryBlock {
  /** the memory region's name: for the machine's RAM the id of its backend */
  readonly region: string;
  /** offset of the range's first byte in the region */
  readonly offset: number;
}

/** The address space that `dump-guest-memory` dumps. */
const SYSTEM_MEMORY = /^ AS "memory",/;
const RANGE = /^ {2}([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?[0-9]+, [^)]*\): (.+)$/;
/** Behind the name: where the region's bytes begin, and which accelerators know the range. */
const REGION = /^(.*?)(?: @([0-9a-f]{16}))?(?: KVM| HVF)*$/;

/** The ranges of system memory; [] when the text has none (an old QEMU does not know the command). */
export function parseFlatView(text: string): FlatRange[] {
  const ranges: FlatRange[] = [];
  let within = false;
  for (const line of text.split('\n')) {
    if (line.startsWith('FlatView')) within = false;
    else if (SYSTEM_MEMORY.test(line)) within = true;
    else if (within) ranges.push(...rangeOf(line));
  }
  return ranges;
}

function rangeOf(line: string): FlatRange[] {
  const [, first, last, rest] = RANGE.exec(line) ?? [];
  if (first === undefined || last === undefined || rest === undefined) return [];
  const base = Number.parseInt(first, 16);
  const length = Number.parseInt(last, 16) + 1 - base;
  const [, region = '', offset = '0'] = REGION.exec(rest) ?? [];
  return [{ base, length, region, offset: Number.parseInt(offset, 16) }];
}

/** Where in a memory region a block is. */
export interface RegionPlace {
  readonly region: string;
  readonly offset: number;
}

/** The region that all of a block is of, without a break; null when it is of none or of several. */
export function placeOf(block: MemoryBlock, ranges: readonly FlatRange[]): RegionPlace | null {
  let place: RegionPlace | null = null;
  let at = block.base;
  for (const range of ranges) {
    if (blockEnd(range) <= at || range.base >= blockEnd(block)) continue;
    const offset = range.offset + (at - range.base);
    if (range.base > at || (place && (place.region !== range.region || place.offset + at - block.base !== offset)))
      return null;
    place ??= { region: range.region, offset };
    at = blockEnd(range);
  }
  return at >= blockEnd(block) ? place : null;
}
