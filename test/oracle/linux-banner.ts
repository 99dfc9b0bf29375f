/** Linux's own words in a guest's memory, for asking a reader whether it finds them where they are. */

import type { PhysicalMemory } from '../../lib/model/physical-memory.js';

const BANNER = /(Linux version 6\.\S+ \([ -~]+\) \([ -~]*gcc[ -~]+\) #1 SMP[ -~]+)\n/;

/** linux_banner, found by what it says: where it is, and its first 200 characters. */
export function findBanner(memory: PhysicalMemory): { paddr: number; text: string } {
  for (const { base, length } of memory.regions) {
    const window = Buffer.alloc(Math.min(length, 1 << 24));
    for (let at = base; at < base + length; at += Math.max(1, window.length - 512)) {
      const bytes = window.subarray(0, Math.min(window.length, base + length - at));
      memory.read(at, bytes);
      const found = BANNER.exec(bytes.toString('latin1'));
      if (found) return { paddr: at + found.index, text: found[1]!.slice(0, 200) };
    }
  }
  throw new Error('no linux_banner in memory');
}
