/** Linux's own words in a guest's memory, for asking a reader whether it finds them where they are. */

import type { PhysicalMemory } from '../../lib/physical-memory.js';

/** linux_banner, found by what it says. */
export function findBanner(memory: PhysicalMemory): { paddr: number; text: string } {
  for (const { base, length } of memory.regions) {
    const window = Buffer.alloc(Math.min(length, 1 << 24));
    for (let at = base; at < base + length; at += Math.max(1, window.length - 256)) {
      const bytes = window.subarray(0, Math.min(window.length, base + length - at));
      memory.read(at, bytes);
      const found = bytes.indexOf('Linux version 6.');
      const text = found < 0 ? '' : bytes.toString('latin1', found, found + 200).split('\n')[0]!;
      if (/^Linux version \S+ \(.*\) \(.*gcc.*\) #1 SMP/.test(text)) return { paddr: at + found, text };
    }
  }
  throw new Error('no linux_banner in memory');
}
