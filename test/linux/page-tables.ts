/** Page tables in a buffer, which begins with the top one. */

import { KernelMemory, type KernelTables } from '../../lib/linux/kernel-memory.js';
import { MemoryGuest } from '../../lib/sources/memory-guest.js';
import { PAGE_SIZE } from '../../lib/model/stage.js';
import { BufferBacking } from '../guest-fixture.js';
import type { ElfNote } from '../../lib/model/note.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;
/** Bytes of memory that can be written. */
export const PAGE_TABLE_MEMORY = 4 * MIB;
/** P of an entry. */
export const PRESENT = 1n;
/** PS of an entry that maps a large page. */
const LARGE = 0x80n;

/** Bits of a linear address for a level, and bytes of an entry. */
function formatOf({ levels }: Pick<KernelTables, 'levels'>): {
  readonly levelBits: bigint;
  readonly entryBytes: 4 | 8;
} {
  return levels === 2 ? { levelBits: 10n, entryBytes: 4 } : { levelBits: 9n, entryBytes: 8 };
}

/** Bits of an address within what an entry of a level maps. */
export function pageBits(tables: Pick<KernelTables, 'levels'>, level: number): bigint {
  return 12n + formatOf(tables).levelBits * BigInt(level - 1);
}

/** Tables at the start of memory, grown as pages are mapped. */
export class PageTables {
  readonly bytes = new Uint8Array(PAGE_TABLE_MEMORY);
  readonly #view = new DataView(this.bytes.buffer);
  #next = PAGE_SIZE;

  constructor(readonly tables: Omit<KernelTables, 'root'>) {}

  /** Maps a page of the size that entries of level `leaf` map. */
  map(vaddr: bigint, entry: bigint, leaf: number): void {
    const { levelBits, entryBytes } = formatOf(this.tables);
    let table = 0;
    for (let level: number = this.tables.levels; ; level--) {
      const index = (vaddr >> pageBits(this.tables, level)) & ((1n << levelBits) - 1n);
      const at = table + entryBytes * Number(index);
      if (level === leaf) return this.#set(at, entry | PRESENT | (leaf > 1 ? LARGE : 0n));
      if (this.#get(at) === 0n) {
        this.#set(at, BigInt(this.#next) | PRESENT);
        this.#next += PAGE_SIZE;
      }
      table = Number(this.#get(at) & 0xf_ffff_ffff_f000n);
    }
  }

  #get(at: number): bigint {
    const { entryBytes } = formatOf(this.tables);
    return entryBytes === 4 ? BigInt(this.#view.getUint32(at, true)) : this.#view.getBigUint64(at, true);
  }

  #set(at: number, entry: bigint): void {
    if (formatOf(this.tables).entryBytes === 4) this.#view.setUint32(at, Number(entry), true);
    else this.#view.setBigUint64(at, entry, true);
  }

  /** The memory: the tables, and more that reads as zeros. */
  guest(notes: readonly ElfNote[] = []): MemoryGuest {
    const backing = new BufferBacking(this.bytes);
    const regions = [
      { base: 0, length: PAGE_TABLE_MEMORY, backing, offset: 0 },
      { base: PAGE_TABLE_MEMORY, length: 16 * GIB, backing: null, offset: 0 },
    ];
    return new MemoryGuest({ name: 'tables', arch: 'x86_64', regions, cpus: [], notes });
  }

  get kernel(): KernelMemory {
    return new KernelMemory(this.guest().memory, { ...this.tables, root: 0 });
  }
}
