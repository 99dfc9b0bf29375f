/**
 * `struct page` as a kernel has it: where the members are that tell what a page is used for, and what stands in them.
 *
 * Linux has changed it many times, and VMCOREINFO tells of each change in its own way (kernel/vmcore_info.c). The
 * members of a compound page that concern all of it are in its second struct page:
 *
 * | kernel     | order                                      | huge (hugetlb)                                      |
 * | ---------- | ------------------------------------------ | --------------------------------------------------- |
 * | up to 6.2  | page.compound_order                        | page.compound_dtor is HUGETLB_PAGE_DTOR             |
 * | 6.3 to 6.5 | folio._folio_order                         | folio._folio_dtor is the same                       |
 * | 6.6 to 6.8 | low byte of the second page's flags        | bit PG_hugetlb there                                |
 * | from 6.9   | the same                                   | _mapcount of the first is PAGE_HUGETLB_MAPCOUNT_VALUE |
 */

import type { KernelSymbols } from './kernel-symbols.js';
import { DL_EXCLUDE_FREE } from '../model/dump-level.js';

/** Bytes that struct page may have: 56 or 64 as a rule, 32 or 40 of 32-bit kernels, more with debugging (KMSAN). */
const PAGE_STRUCT_MIN = 32n;
const PAGE_STRUCT_MAX = 512n;
/** Bytes of an int */
const INT = 4;
/** MAX_ORDER + 1 is 11 on x86; what any kernel has is below. */
const MAX_FREE_ORDERS = 14;

/** A bit of a long, as masks of its halves; 32-bit kernels have no upper ones. */
export interface BitMask {
  readonly low: number;
  readonly high: number;
}

/** How a compound page tells that it is a huge one. */
export type HugeMark =
  | { readonly kind: 'mapcount'; readonly value: number }
  | { readonly kind: 'flag'; readonly mask: BitMask }
  | { readonly kind: 'dtor'; readonly offset: number; readonly value: number }
  | { readonly kind: 'none' };

/** Offsets are in bytes from the start of a struct page, values of _mapcount are signed. */
export interface PageLayout {
  /** bytes of struct page */
  readonly size: number;
  /** bytes of a pointer or long */
  readonly long: 4 | 8;
  readonly flags: number;
  readonly refcount: number;
  readonly mapcount: number;
  readonly mapping: number;
  readonly compoundHead: number;
  readonly private: number;
  readonly lru: number;
  /** offset of the byte that holds the order of a compound page, from the start of its first struct page */
  readonly compoundOrder: number;
  readonly huge: HugeMark;
  /** orders that huge pages have: of 2 MiB and 1 GiB, of 32 bits with PAE of 2 MiB, without of 4 MiB */
  readonly hugeOrders: readonly number[];
  readonly lruFlag: BitMask;
  readonly privateFlag: BitMask;
  readonly swapCacheFlag: BitMask;
  readonly swapBackedFlag: BitMask;
  readonly headFlag: BitMask;
  /** no bit since 6.10 */
  readonly slabFlag: BitMask;
  /** no bit without CONFIG_MEMORY_FAILURE */
  readonly poisonFlag: BitMask;
  /** PAGE_*_MAPCOUNT_VALUE: what _mapcount, alias page_type, of a page of that kind is; null where there is no such kind */
  readonly slab: number | null;
  readonly buddy: number | null;
  readonly offline: number | null;
  readonly unaccepted: number | null;
  /** orders that free pages have: below it; 0 when free pages are not asked for */
  readonly freeOrders: number;
}

const NO_BIT: BitMask = { low: 0, high: 0 };

/**
 * The layout that VMCOREINFO tells of.
 * @param level DL_EXCLUDE_* bits, which decide what has to be known
 * @throws VmcoreError UNSUPPORTED when something is missing, which it names; BAD_INPUT when it cannot be
 */
export function pageLayout(symbols: KernelSymbols, level: number): PageLayout {
  const { info } = symbols;
  const free = (level & DL_EXCLUDE_FREE) !== 0;
  const { long } = symbols;
  const size = info.size('page') ?? symbols.missing('SIZE(page)');
  if (size < PAGE_STRUCT_MIN || size > PAGE_STRUCT_MAX || size % BigInt(long) !== 0n)
    symbols.implausible('SIZE(page)', size);
  const member = (name: string, width: number) => memberOffset(symbols, `page.${name}`, width, Number(size));
  return {
    size: Number(size),
    long,
    flags: member('flags', long),
    refcount: member('_refcount', INT),
    mapping: member('mapping', long),
    lru: member('lru', long),
    mapcount: member('_mapcount', INT),
    private: member('private', long),
    compoundHead: member('compound_head', long),
    lruFlag: bitMask(symbols.bit('PG_lru')),
    privateFlag: bitMask(symbols.bit('PG_private')),
    swapCacheFlag: bitMask(symbols.bit('PG_swapcache')),
    swapBackedFlag: bitMask(symbols.bit('PG_swapbacked')),
    slabFlag: optionalBit(symbols, 'PG_slab'),
    slab: slabValue(symbols),
    poisonFlag: optionalBit(symbols, 'PG_hwpoison'),
    headFlag: wideMask(symbols.number('PG_head_mask')),
    buddy: free
      ? int32(symbols.number('PAGE_BUDDY_MAPCOUNT_VALUE'))
      : optionalValue(symbols, 'PAGE_BUDDY_MAPCOUNT_VALUE'),
    huge: hugeMark(symbols, Number(size)),
    hugeOrders: hugeOrders(symbols),
    compoundOrder: compoundOrder(symbols, Number(size)),
    offline: optionalValue(symbols, 'PAGE_OFFLINE_MAPCOUNT_VALUE'),
    unaccepted: optionalValue(symbols, 'PAGE_UNACCEPTED_MAPCOUNT_VALUE'),
    freeOrders: free ? symbols.length('zone.free_area', MAX_FREE_ORDERS) : 0,
  };
}

/** @throws VmcoreError UNSUPPORTED, BAD_INPUT when the member is not within the structure or not aligned */
function memberOffset(symbols: KernelSymbols, name: string, width: number, size: number): number {
  const offset = symbols.offset(name);
  if (offset % width !== 0 || offset + width > size) symbols.implausible(`OFFSET(${name})`, BigInt(offset));
  return offset;
}

/** Up to 6.9 slab pages have a flag, since 6.10 a value. One must be known: slab pages use `mapping` for other things. */
function slabValue(symbols: KernelSymbols): number | null {
  const value = optionalValue(symbols, 'PAGE_SLAB_MAPCOUNT_VALUE');
  if (value === null) symbols.bit('PG_slab');
  return value;
}

function hugeOrders({ info, long }: KernelSymbols): readonly number[] {
  if (long === 8) return [9, 18];
  return info.get('CONFIG_X86_PAE') === 'y' ? [9] : [10];
}

function compoundOrder(symbols: KernelSymbols, size: number): number {
  const { info } = symbols;
  if (info.number('PAGE_HUGETLB_MAPCOUNT_VALUE') !== null || info.number('PG_hugetlb') !== null)
    return size + memberOffset(symbols, 'page.flags', symbols.long, size);
  return secondPageByte(symbols, size, 'order');
}

function hugeMark(symbols: KernelSymbols, size: number): HugeMark {
  const { info } = symbols;
  const value = optionalValue(symbols, 'PAGE_HUGETLB_MAPCOUNT_VALUE');
  if (value !== null) return { kind: 'mapcount', value };
  if (info.number('PG_hugetlb') !== null) return { kind: 'flag', mask: bitMask(symbols.bit('PG_hugetlb')) };
  const dtor = info.number('HUGETLB_PAGE_DTOR');
  if (dtor === null) return { kind: 'none' };
  return { kind: 'dtor', offset: secondPageByte(symbols, size, 'dtor'), value: Number(dtor & 0xffn) };
}

/** Offset from the first struct page of a byte in the second: both are small numbers, little-endian, whatever their type. */
function secondPageByte(symbols: KernelSymbols, size: number, what: 'order' | 'dtor'): number {
  if (symbols.info.offset(`folio._folio_${what}`) !== null) {
    const offset = symbols.offset(`folio._folio_${what}`);
    if (offset < size || offset >= 2 * size) symbols.implausible(`OFFSET(folio._folio_${what})`, BigInt(offset));
    return offset;
  }
  return size + memberOffset(symbols, `page.compound_${what}`, 1, size);
}

function bitMask(bit: number): BitMask {
  return bit < 32 ? { low: 1 << bit, high: 0 } : { low: 0, high: 1 << (bit - 32) };
}

function wideMask(mask: bigint): BitMask {
  return { low: Number(BigInt.asIntN(32, mask)), high: Number(BigInt.asIntN(32, mask >> 32n)) };
}

function optionalBit(symbols: KernelSymbols, name: string): BitMask {
  return symbols.info.number(name) === null ? NO_BIT : bitMask(symbols.bit(name));
}

function optionalValue(symbols: KernelSymbols, name: string): number | null {
  const value = symbols.info.number(name);
  return value === null ? null : int32(value);
}

function int32(value: bigint): number {
  return Number(BigInt.asIntN(32, value));
}
