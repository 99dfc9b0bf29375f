/**
 * The free lists of a Linux kernel's zones: a second source, beside struct page, of which pages are free. A kernel that
 * is well has the same free blocks in both; where they differ, a struct page is damaged, a list is, or a CPU was stopped
 * between the one and the other.
 *
 * node_data[] -> struct pglist_data, node_zones[] -> struct zone, free_area[order] -> free_list[migratetype], nr_free
 * (include/linux/mmzone.h).
 */

import { setImmediate as breathe } from 'node:timers/promises';
import { PageSet } from '../model/page-set.js';
import type { KernelMemory } from './kernel-memory.js';
import type { KernelSymbols } from './kernel-symbols.js';
import { onlineNodes } from './nodes.js';
import type { PageLayout } from './page-layout.js';
import type { MemoryMap } from './memory-section.js';

/** Zones that a node can have at most: more are damage */
const MAX_ZONES = 8;
/** Migrate types: 5 or 6, as configured */
const MAX_MIGRATE_TYPES = 16;

/** Blocks of a list that are followed before others get their turn */
const STEPS_AT_ONCE = 4096;

/** Where things are; in bytes. */
interface ZoneLayout {
  readonly zones: number;
  readonly zoneCount: number;
  readonly zoneSize: number;
  readonly freeArea: number;
  readonly freeAreaSize: number;
  readonly freeList: number;
  readonly migrateTypes: number;
  readonly listHead: number;
  readonly next: number;
  readonly prev: number;
}

/** A walk over lists. */
interface Walk {
  readonly sections: MemoryMap;
  readonly found: PageSet;
  /** how many more blocks may be looked at */
  steps: number;
  readonly signal: AbortSignal | undefined;
}

/** The free lists of all zones. */
export class FreeLists {
  readonly #kernel: KernelMemory;
  readonly #layout: ZoneLayout;
  readonly #page: PageLayout;
  /** addresses of struct zone */
  readonly #zones: readonly bigint[];

  private constructor(kernel: KernelMemory, layout: ZoneLayout, page: PageLayout, zones: readonly bigint[]) {
    this.#kernel = kernel;
    this.#layout = layout;
    this.#page = page;
    this.#zones = zones;
  }

  /**
   * Finds the zones.
   * @returns null when VMCOREINFO does not tell of them, or they are not where it says
   * @throws VmcoreError READ, TRUNCATED
   */
  static find(kernel: KernelMemory, symbols: KernelSymbols, page: PageLayout): FreeLists | null {
    const layout = zoneLayout(symbols);
    const nodes = layout && onlineNodes(kernel, symbols);
    if (!layout || !nodes) return null;
    const zones: bigint[] = [];
    for (const node of nodes) {
      const count = Number((kernel.pointer(node + BigInt(layout.zoneCount)) ?? 0n) & 0xffff_ffffn);
      if (count === 0 || count > MAX_ZONES) return null;
      for (let i = 0; i < count; i++) zones.push(node + BigInt(layout.zones + i * layout.zoneSize));
    }
    return new FreeLists(kernel, layout, page, zones);
  }

  /** How many free blocks of an order there are by the zones' own count; null when a zone is not in memory. */
  count(order: number): number | null {
    let count = 0n;
    for (const zone of this.#zones) {
      const blocks = this.#kernel.pointer(
        this.#area(zone, order) + BigInt(this.#layout.freeAreaSize - this.#kernel.long),
      );
      if (blocks === null) return null;
      count += blocks;
    }
    return Number(count);
  }

  /**
   * The first page frames of the free blocks of an order, as far as the lists lead there from either end.
   * @param limit how many there can be
   * @throws VmcoreError READ, TRUNCATED; the signal's reason
   */
  async blocks(order: number, sections: MemoryMap, limit: number, signal?: AbortSignal): Promise<PageSet> {
    const walk: Walk = { sections, found: new PageSet(), steps: limit, signal };
    const { freeList, listHead, migrateTypes, next, prev } = this.#layout;
    for (const zone of this.#zones)
      for (let type = 0; type < migrateTypes; type++) {
        const head = this.#area(zone, order) + BigInt(freeList + type * listHead);
        if (!(await this.#follow(head, next, prev, walk))) await this.#follow(head, prev, next, walk);
      }
    return walk.found;
  }

  /** Follows a list in one direction. @returns whether it led back to its head */
  async #follow(head: bigint, on: number, back: number, walk: Walk): Promise<boolean> {
    let from = head;
    let at = this.#kernel.pointer(head + BigInt(on));
    for (; at !== null && at !== head && walk.steps > 0; walk.steps--) {
      const pfn = walk.sections.pfnOf(at - BigInt(this.#page.lru));
      if (pfn === null || this.#kernel.pointer(at + BigInt(back)) !== from) return false;
      // Found before: it leads in a circle, or to where the other direction has come from.
      if (walk.found.add(pfn, 1) === 0) return false;
      from = at;
      at = this.#kernel.pointer(at + BigInt(on));
      if (walk.steps % STEPS_AT_ONCE === 0) await breathe();
      walk.signal?.throwIfAborted();
    }
    return at === head;
  }

  #area(zone: bigint, order: number): bigint {
    return zone + BigInt(this.#layout.freeArea + order * this.#layout.freeAreaSize);
  }
}

/** Null when VMCOREINFO lacks something. */
function zoneLayout({ info }: KernelSymbols): ZoneLayout | null {
  const values = {
    zones: info.offset('pglist_data.node_zones'),
    zoneCount: info.offset('pglist_data.nr_zones'),
    zoneSize: info.size('zone'),
    freeArea: info.offset('zone.free_area'),
    freeAreaSize: info.size('free_area'),
    freeList: info.offset('free_area.free_list'),
    migrateTypes: info.length('free_area.free_list'),
    listHead: info.size('list_head'),
    next: info.offset('list_head.next'),
    prev: info.offset('list_head.prev'),
  };
  const entries = Object.entries(values).map(([key, value]) => [key, Number(value ?? -1n)] as const);
  if (entries.some(([, value]) => value < 0 || value > 2 ** 24)) return null;
  const layout = Object.fromEntries(entries) as Record<keyof ZoneLayout, number>;
  return layout.migrateTypes <= MAX_MIGRATE_TYPES && layout.freeAreaSize >= 8 ? layout : null;
}
