/**
 * Memory of a guest that lies above all that its kernel has struct pages for: video memory, ROMs, what QEMU maps at the
 * top of the address space.
 *
 * makedumpfile leaves it out at any level above 1, and takes the end of the kernel's memory for the end of a dump
 * (get_mem_map: max_mapnr). Of a kdump that reaches further it then looks for the second bitmap in the wrong place
 * (1.7.6), finds hardly a page, and says `Completed`. So a kdump that leaves pages out leaves out that memory too, and of
 * one that does not, whoever makes it is told.
 *
 * Nothing that the kernel uses may be lost by a bit that has flipped. So the sections of memory and the nodes have to
 * agree where memory ends; where but one of them is known, only whole blocks of memory are left out.
 */

import { VmcoreError } from '../model/errors.js';
import { findVmcoreinfo, type Vmcoreinfo } from '../formats/vmcoreinfo.js';
import type { ChunkOptions, Guest } from '../model/guest.js';
import type { MissingPages, PfnRun } from '../model/page-exclusion.js';
import { blockEnd, type MemoryBlock, PhysicalMemory } from '../model/physical-memory.js';
import { PAGE_SIZE } from '../model/stage.js';
import { kernelMemory } from './kernel-memory.js';
import { KernelSymbols } from './kernel-symbols.js';
import { memoryMap } from './memory-map.js';
import { nodesEnd } from './nodes.js';

/**
 * Where a guest's kernel has no more memory: guest physical address of the first byte that belongs to devices.
 * @returns null when there is no memory above, or when it is not known
 * @throws VmcoreError READ, TRUNCATED
 */
export function deviceMemoryStart(guest: Guest): number | null {
  const { memory, blocks } = guest;
  const info = findVmcoreinfo(guest.notes);
  if (memory === null || info === null || blocks.length === 0) return null;
  try {
    const end = kernelEnd(memory, info, guest);
    return end < blockEnd(blocks.at(-1)!) ? end : null;
  } catch (error) {
    // Whoever needs more of the kernel than this will say what is wrong with it.
    if (error instanceof VmcoreError && (error.code === 'UNSUPPORTED' || error.code === 'BAD_INPUT')) return null;
    throw error;
  }
}

function kernelEnd(memory: PhysicalMemory, info: Vmcoreinfo, { name, blocks }: Guest): number {
  const symbols = new KernelSymbols(info, name);
  const kernel = kernelMemory(memory, symbols);
  const sections = memoryMap(kernel, symbols, symbols.size('page'), blocks);
  let end = 0;
  const upTo = (pfn: number) => (end = Math.max(end, pfn));
  // What is damaged may have been memory.
  for (const { firstPfn, pages } of sections.within(blocks, (_what, _start, damageEnd) => upTo(damageEnd)))
    upTo(firstPfn + pages);
  const nodes = nodesEnd(kernel, symbols);
  if (nodes !== null) upTo(nodes);
  const known = end * PAGE_SIZE;
  // Of FLATMEM the sections are what the nodes say.
  if (nodes !== null && info.symbol('mem_section') !== null) return known;
  const cut = blocks.find((block) => block.base < known && blockEnd(block) > known);
  return cut ? blockEnd(cut) : known;
}

/** Pages of blocks that lie at or above an address. */
export function pagesFrom(blocks: readonly MemoryBlock[], start: number): number {
  const bytes = blocks.reduce((sum, block) => sum + Math.max(0, blockEnd(block) - Math.max(block.base, start)), 0);
  return Math.ceil(bytes / PAGE_SIZE);
}

/** A guest without its memory from an address on, which begins a page; closing either closes both. */
export function withoutDeviceMemory(guest: Guest, start: number): Guest {
  const { name, arch, cpus, notes, memory, missing = null, assumption, live } = guest;
  const cut = {
    name,
    arch,
    cpus,
    notes,
    blocks: below(guest.blocks, start),
    memory: memory && new PhysicalMemory(below(memory.regions, start)),
    missing: missing && missingBelow(missing, start / PAGE_SIZE),
    assumption,
    live,
    chunks: (options?: ChunkOptions) => guest.chunks({ ...options, range: rangeBelow(options, start) }),
    close: () => guest.close(),
    // Whatever a guest comes to have, this one has to have, too.
  } satisfies Guest & Record<keyof Guest, unknown>;
  return cut;
}

function below<Block extends MemoryBlock>(blocks: readonly Block[], end: number): Block[] {
  return blocks
    .filter(({ base }) => base < end)
    .map((block) => ({ ...block, length: Math.min(block.length, end - block.base) }));
}

function rangeBelow({ range }: ChunkOptions = {}, end: number): MemoryBlock {
  if (!range) return { base: 0, length: end };
  return { base: range.base, length: Math.min(range.length, Math.max(0, end - range.base)) };
}

function missingBelow(missing: MissingPages, endPfn: number): MissingPages | null {
  const runs = function* (): Generator<PfnRun, undefined> {
    for (const { start, end } of missing.runs()) if (start < endPfn) yield { start, end: Math.min(end, endPfn) };
  };
  let count = 0;
  for (const { start, end } of runs()) count += end - start;
  return count === 0 ? null : { level: missing.level, count, runs };
}
