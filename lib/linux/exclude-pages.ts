/**
 * Decides which pages of a Linux guest a dump leaves out, as makedumpfile's dump levels say it, from VMCOREINFO and the
 * guest's memory alone.
 *
 * The kernel has a `struct page` for each page of memory. Where they are say its sections (memory-sections.ts), what
 * they mean page-layout.ts, and page-scanner.ts decides. What is read comes from a guest that may have crashed, or that
 * may be hostile: what does not hold together is refused, or its pages are kept. Memory that is not online is kept, too.
 */

import { VmcoreError } from '../model/errors.js';
import { findVmcoreinfo } from '../formats/vmcoreinfo.js';
import type { Guest } from '../model/guest.js';
import { PageExclusion } from '../model/page-exclusion.js';
import { PageSet } from '../model/page-set.js';
import { blockEnd } from '../model/physical-memory.js';
import { PAGE_SIZE } from '../model/stage.js';
import { Damage } from './damage.js';
import { FreeLists } from './free-lists.js';
import { type KernelMemory, kernelMemory } from './kernel-memory.js';
import { KernelSymbols } from './kernel-symbols.js';
import { memoryMap } from './memory-map.js';
import { type PageLayout, pageLayout } from './page-layout.js';
import { PageScanner } from './page-scanner.js';
import { PageWalk } from './page-walk.js';
import { DL_EXCLUDE_FREE, DL_EXCLUDE_ZERO } from '../model/dump-level.js';
import type { MemoryMap } from './memory-section.js';

/** Reasons to leave out pages that no level asks for; a bit that has flipped in struct page makes such a page. */
const UNASKED = ['hwpoison', 'offline'] as const;
/** Rounds until nothing new is learned: of an unhealthy guest two or three. */
const MAX_ROUNDS = 6;
/** Contradictions of a piece that a CPU may leave that was stopped in the middle; more are damage. */
const ODD_PAGES = 16;
const ODD_SHARE = 64;

/** Options of `excludePages`. */
export interface ExcludeOptions {
  /** DL_EXCLUDE_* bits, 0 to 31 */
  readonly level: number;
  /** what to do where structures do not hold together: `refuse` by default, or keep the pages that they describe */
  readonly fallback?: 'refuse' | 'keep' | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What was decided. */
export interface ExclusionReport {
  readonly exclusion: PageExclusion;
  /** pages that could not be decided and are kept */
  readonly undecided: number;
  /** one line for each thing that whoever asked should know */
  readonly warnings: readonly string[];
}

/**
 * Decides which pages a dump of a guest leaves out. Nothing is read for a level that needs nothing: 0 or DL_EXCLUDE_ZERO.
 * @throws VmcoreError UNSUPPORTED when the guest is a stream, has no VMCOREINFO, or one that does not say enough: the
 *         message names the first key that is missing; BAD_INPUT when the kernel's structures do not hold together
 *         (unless `fallback` is `keep`); READ, TRUNCATED, ABORTED
 */
export async function excludePages(guest: Guest, options: ExcludeOptions): Promise<ExclusionReport> {
  const { level, signal } = options;
  if (level <= DL_EXCLUDE_ZERO) return { exclusion: new PageExclusion(level), undecided: 0, warnings: [] };
  try {
    return await new Decision(guest, options).run();
  } catch (error) {
    if (signal?.aborted) throw new VmcoreError('ABORTED', 'the dump was aborted', { cause: error });
    throw withAssumption(guest, error);
  }
}

/** A kernel's structures lead nowhere as well where memory was taken to be where it is not: then that is what helps. */
function withAssumption({ assumption }: Guest, error: unknown): unknown {
  if (assumption === undefined || !(error instanceof VmcoreError)) return error;
  if (error.code !== 'BAD_INPUT' && error.code !== 'UNSUPPORTED') return error;
  return new VmcoreError(error.code, `${error.message}; ${assumption}`, { cause: error });
}

/** A decision for one guest: rounds over all struct pages, until one learns nothing that the one before did not know. */
class Decision {
  readonly #guest: Guest;
  readonly #options: ExcludeOptions;
  readonly #symbols: KernelSymbols;
  readonly #layout: PageLayout;
  readonly #kernel: KernelMemory;
  readonly #sections: MemoryMap;
  readonly #freeLists: FreeLists | null;
  readonly #suspicions = { pages: new PageSet(), pieces: new Set<number>() };
  /** orders of free blocks of which the zones count others than were found, and the blocks in their lists */
  readonly #miscounted = new Set<number>();
  readonly #listed = new Map<number, PageSet>();
  #knownPieces = 0;

  constructor(guest: Guest, options: ExcludeOptions) {
    const { memory, name, blocks } = guest;
    const info = findVmcoreinfo(guest.notes);
    if (memory === null)
      throw new VmcoreError(
        'UNSUPPORTED',
        `${name}: which pages can be left out cannot be told from a stream; save it to a file first, or dump without a level above 1`,
      );
    if (info === null)
      throw new VmcoreError(
        'UNSUPPORTED',
        `${name}: which pages can be left out is not known without VMCOREINFO, and the guest has none; give it with --vmcoreinfo, or dump without a level above 1`,
      );
    this.#guest = guest;
    this.#options = options;
    this.#symbols = new KernelSymbols(info, name);
    this.#layout = pageLayout(this.#symbols, options.level);
    this.#kernel = kernelMemory(memory, this.#symbols);
    this.#sections = memoryMap(this.#kernel, this.#symbols, this.#layout.size, blocks);
    const free = (options.level & DL_EXCLUDE_FREE) !== 0;
    this.#freeLists = free ? FreeLists.find(this.#kernel, this.#symbols, this.#layout) : null;
  }

  /** @throws VmcoreError BAD_INPUT, READ, TRUNCATED; the signal's reason */
  async run(): Promise<ExclusionReport> {
    for (let round = 1; ; round++) {
      const damage = new Damage(this.#guest, this.#options.fallback ?? 'refuse');
      const exclusion = new PageExclusion(this.#options.level);
      const scanner = new PageScanner(this.#layout, exclusion, this.#kernel.pointerFloor, this.#listed);
      const walk = this.#walk(damage);
      await this.#scan(walk, scanner);
      const suspicious = this.#checkFootprint(walk, exclusion);
      const unlisted = await this.#checkFreeBlocks(scanner);
      if (!suspicious && !unlisted) return this.#report(exclusion, scanner, walk, damage);
      if (round === MAX_ROUNDS) throw damage.error('what struct pages tell differs with each look');
    }
  }

  #walk(damage: Damage): PageWalk {
    return new PageWalk({
      kernel: this.#kernel,
      sections: this.#sections,
      layout: this.#layout,
      blocks: this.#guest.blocks,
      suspicions: this.#suspicions,
      onDamage: (what, start, end) => damage.add(what, start, end),
      signal: this.#options.signal,
    });
  }

  /** Decides all pages; pieces that contradict themselves too often are remembered. */
  async #scan(walk: PageWalk, scanner: PageScanner): Promise<void> {
    let next = -1;
    for await (const pages of walk.arrays()) {
      if (pages.firstPfn !== next) scanner.skip();
      next = pages.firstPfn + pages.count;
      const contradictions = scanner.scan(pages);
      if (contradictions > ODD_PAGES + pages.count / ODD_SHARE) this.#suspicions.pieces.add(pages.firstPfn);
    }
    scanner.finish();
  }

  /**
   * Looks whether what was read is what it was taken for: no page of it has two uses, or is left out.
   * @returns whether there is something that was not known before
   */
  #checkFootprint({ twice, structs, tables }: PageWalk, exclusion: PageExclusion): boolean {
    const { pages, pieces } = this.#suspicions;
    const before = pages.size + this.#knownPieces;
    for (const block of this.#guest.blocks) {
      const from = Math.floor(block.base / PAGE_SIZE);
      const to = Math.ceil(blockEnd(block) / PAGE_SIZE);
      for (const { start, end } of twice.runs(from, to, true)) pages.add(start, end - start);
      for (const footprint of [structs, tables])
        for (const run of footprint.runs(from, to, true))
          for (const { start, end } of exclusion.runs(run.start, run.end, true)) pages.add(start, end - start);
    }
    this.#knownPieces = pieces.size;
    return pages.size + pieces.size > before;
  }

  /**
   * Compares the free blocks that were found with the zones' count of them, and follows the lists of an order where they
   * differ.
   * @returns whether there are lists that the next round has to look at
   */
  async #checkFreeBlocks({ freeBlocks }: PageScanner): Promise<boolean> {
    const lists = this.#freeLists;
    if (!lists) return false;
    const before = this.#listed.size;
    for (const [order, found] of freeBlocks.entries()) {
      if (this.#miscounted.has(order) || lists.count(order) === found) continue;
      this.#miscounted.add(order);
      const limit = Math.ceil(this.#pageCount() / 2 ** order);
      const { signal } = this.#options;
      if (this.#sections.shared) this.#listed.set(order, await lists.blocks(order, this.#sections, limit, signal));
    }
    return this.#listed.size > before;
  }

  #pageCount(): number {
    return this.#guest.blocks.reduce((sum, { length }) => sum + Math.ceil(length / PAGE_SIZE), 0);
  }

  #report(exclusion: PageExclusion, scanner: PageScanner, { offline }: PageWalk, damage: Damage): ExclusionReport {
    const warnings = damage.warnings();
    if (offline > 0)
      warnings.push(
        `some of the memory is not online, and the kernel tells nothing of it; pages kept for that: ${offline}`,
      );
    if (scanner.undecided > 0)
      warnings.push(`struct pages contradict themselves or the free lists; pages kept for that: ${scanner.undecided}`);
    if (this.#miscounted.size > 0)
      warnings.push(
        `the kernel counts other free blocks than its struct pages show, of order ${[...this.#miscounted].sort((a, b) => a - b).join(', ')}`,
      );
    if (this.#freeLists === null && this.#layout.freeOrders > 0)
      warnings.push('free pages are not compared with the free lists, which are not where VMCOREINFO puts them');
    for (const reason of UNASKED) {
      const count = exclusion.count(reason);
      if (count > 0) warnings.push(`pages left out because the kernel has marked them as ${reason}: ${count}`);
    }
    return { exclusion, undecided: damage.pages + scanner.undecided + offline, warnings };
  }
}
