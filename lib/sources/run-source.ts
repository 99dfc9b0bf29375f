/**
 * Guest memory in an order of somebody else's: the runs of a Windows dump header, which need not ascend, may overlap,
 * and may cover what the guest has no memory for.
 */

import type { ChunkOptions } from '../model/guest.js';
import {
  blockEnd,
  lastIndexAtOrBelow,
  type MemoryBlock,
  type MemoryRegion,
  type PhysicalMemory,
} from '../model/physical-memory.js';
import type { Chunk, Source, StageOptions } from '../model/stage.js';
import { MemorySource } from './memory-source.js';

/**
 * Streams runs of memory, one after the other; what is no memory comes as zeros.
 * @param memory  the guest's
 * @param runs    any ranges, in the order they are wanted
 * @param options `pool`, `signal`
 */
export function runChunks(
  memory: PhysicalMemory,
  runs: readonly MemoryBlock[],
  options: Omit<ChunkOptions, 'range'> & StageOptions = {},
): Source<Chunk> {
  // MemorySource reads whatever regions it is given, in their order.
  return new MemorySource(
    runs.flatMap((run) => [...runRegions(memory, run)]),
    options,
  );
}

/** The regions of a run, with regions of zeros where there is no memory. */
function* runRegions({ regions }: PhysicalMemory, run: MemoryBlock): Generator<MemoryRegion> {
  let at = run.base;
  for (let i = Math.max(0, lastIndexAtOrBelow(regions, at)); i < regions.length && at < blockEnd(run); i++) {
    const region = regions[i]!;
    const from = Math.max(at, region.base);
    const to = Math.min(blockEnd(run), blockEnd(region));
    if (from >= to) continue;
    if (from > at) yield zeros(at, from);
    yield { ...region, base: from, length: to - from, offset: region.offset + (from - region.base) };
    at = to;
  }
  if (at < blockEnd(run)) yield zeros(at, blockEnd(run));
}

function zeros(from: number, to: number): MemoryRegion {
  return { base: from, length: to - from, backing: null, offset: 0 };
}
