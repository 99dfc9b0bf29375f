/**
 * The list of mappings that QEMU builds while it walks page tables, with the same entries in the same order, found by
 * an index instead of a scan of the whole list.
 *
 * What QEMU does (system/memory_mapping.c, `memory_mapping_list_add_merge_sorted`), quirks included:
 *   1. the entry that was made or changed last grows when the page follows it in both address spaces;
 *   2. else the first entry, in list order, that the page follows or overlaps without contradiction takes it in.
 *      "Overlaps" includes a page that ends where the entry begins, and an entry that takes such a page in gets a
 *      lower virtual address and a greater length but keeps its physical address, so that it now claims memory behind
 *      its end instead of the page before its start;
 *   3. else a new entry goes before the first one with an equal or greater physical address.
 * Entries are never joined with each other. Virtual addresses wrap at 2^64, which shortens an entry that ends there
 * when one of its pages is added again.
 *
 * Why an index can do it:
 *   - An entry's physical address never changes, so the list is always sorted by physical address, newest first among
 *     equals. Ids count up, so (physical address, id) tells the order and no list need be kept.
 *   - The page follows or overlaps an entry without contradiction only if both have the same delta, which is virtual
 *     minus physical address modulo 2^64. So entries are grouped by delta, each group in list order, and the entry
 *     sought is the first of its group with `end >= page.start`, if it also has `start <= page.end`.
 *   - A walk goes upwards through virtual addresses, so within a group it goes upwards through physical ones. Each
 *     group remembers where the last search ended and goes on from there ("finger"); a search that goes back to lower
 *     addresses starts from the front. Each walk then takes time in proportion to what it adds and what is there,
 *     whatever a hostile guest maps.
 *
 * Everything here is counted in pages of 4 KiB: 2^64 bytes are 2^52 pages, which a number holds exactly.
 */

import { PAGE_SIZE } from '../model/stage.js';

/** A piece of virtual memory that page tables map to as much physical memory. */
export interface Mapping {
  /** virtual address of the first byte */
  readonly vaddr: bigint;
  /** physical address of the first byte */
  readonly paddr: number;
  /** number of bytes */
  readonly length: number;
}

/** Thrown when a walk would exceed one of its limits. */
export class WalkLimit extends Error {
  /** @param what what there is too much of */
  constructor(readonly what: 'mappings' | 'page tables') {
    super(`too many ${what}`);
  }
}

/** Pages in 2^64 bytes, where virtual addresses wrap. */
const VIRTUAL_PAGES = 2 ** 52;

/** No entry, no group. */
const NIL = -1;

/** Entries and groups that there is room for at first. */
const INITIAL_CAPACITY = 256;

/** Wraps a sum or a difference of two page numbers at 2^64 bytes. */
function wrap(pages: number): number {
  if (pages < 0) return pages + VIRTUAL_PAGES;
  return pages >= VIRTUAL_PAGES ? pages - VIRTUAL_PAGES : pages;
}

/** A typed array of at least `length`, with the contents of `array`. */
function grown<T extends Float64Array | Int32Array>(array: T, length: number): T {
  if (array.length >= length) return array;
  const larger = new (array.constructor as new (length: number) => T)(Math.max(length, array.length * 2));
  larger.set(array);
  return larger;
}

/**
 * A hash table from non-negative integers below 2^53 to non-negative 32-bit integers.
 * JavaScript's Map hashes numbers without a secret, and the keys here are chosen by the guest, who could make them all
 * collide; this one draws a secret.
 */
export class NumberIndex {
  readonly #secret = Math.floor(Math.random() * 2 ** 32) | 1;
  #keys = new Float64Array(INITIAL_CAPACITY);
  #values = new Int32Array(INITIAL_CAPACITY).fill(NIL);
  #size = 0;

  /** The value of `key`, or -1. */
  get(key: number): number {
    return this.#values[this.#slot(key)]!;
  }

  /** Sets the value of `key`. */
  set(key: number, value: number): void {
    const slot = this.#slot(key);
    const isNew = this.#values[slot] === NIL;
    this.#keys[slot] = key;
    this.#values[slot] = value;
    if (isNew && ++this.#size * 2 > this.#keys.length) this.#grow();
  }

  /** Forgets all keys. */
  clear(): void {
    this.#values.fill(NIL);
    this.#size = 0;
  }

  /** The slot that holds `key`, or else the empty one where it belongs. */
  #slot(key: number): number {
    const mask = this.#keys.length - 1;
    let slot = this.#hash(key) & mask;
    while (this.#values[slot] !== NIL && this.#keys[slot] !== key) slot = (slot + 1) & mask;
    return slot;
  }

  #hash(key: number): number {
    const low = key | 0; // the low 32 bits: ToInt32 is modulo 2^32
    const high = (key / 2 ** 32) | 0;
    let hash = Math.imul(low ^ this.#secret, 0x9e3779b1) ^ Math.imul(high + this.#secret, 0x85ebca6b);
    hash = Math.imul(hash ^ (hash >>> 15), this.#secret);
    return hash ^ (hash >>> 13);
  }

  #grow(): void {
    const keys = this.#keys;
    const values = this.#values;
    this.#keys = new Float64Array(keys.length * 2);
    this.#values = new Int32Array(keys.length * 2).fill(NIL);
    for (let i = 0; i < keys.length; i++) {
      if (values[i] === NIL) continue;
      const slot = this.#slot(keys[i]!);
      this.#keys[slot] = keys[i]!;
      this.#values[slot] = values[i]!;
    }
  }
}

/** Mappings, merged as QEMU merges them. */
export class MappingList {
  readonly #maxEntries: number;
  #searches = 0;

  // Entries, by id, which is the order of their creation.
  #count = 0;
  #last = NIL;
  #physical = new Float64Array(INITIAL_CAPACITY);
  #virtual = new Float64Array(INITIAL_CAPACITY);
  #length = new Float64Array(INITIAL_CAPACITY);
  #group = new Int32Array(INITIAL_CAPACITY);
  #next = new Int32Array(INITIAL_CAPACITY);
  #previous = new Int32Array(INITIAL_CAPACITY);

  // Groups: doubly linked lists of the entries with one delta, in list order.
  #groupCount = 0;
  readonly #groupOfDelta = new NumberIndex();
  #head = new Int32Array(INITIAL_CAPACITY);
  /** the first entry of the group with `end >= #fingerAt`, NIL when there is none */
  #finger = new Int32Array(INITIAL_CAPACITY);
  #fingerAt = new Float64Array(INITIAL_CAPACITY);
  /** the entry behind which the last one was linked, NIL for the front; a hint */
  #linkedBehind = new Int32Array(INITIAL_CAPACITY);

  /** @param maxEntries number of mappings above which `add` throws a WalkLimit */
  constructor(maxEntries = Number.POSITIVE_INFINITY) {
    this.#maxEntries = maxEntries;
  }

  /** How many mappings there are. */
  get count(): number {
    return this.#count;
  }

  /** How often the last entry did not just grow, so that another one had to be sought: a measure of work. */
  get searches(): number {
    return this.#searches;
  }

  /**
   * Adds one page.
   * @param virtual  its virtual page number, below 2^52
   * @param physical its physical page number
   * @param length   its size, in pages of 4 KiB
   * @throws WalkLimit when a mapping more would be too many
   */
  add(virtual: number, physical: number, length: number): void {
    const delta = wrap(virtual - physical);
    const last = this.#last;
    if (last !== NIL && this.#end(last) === physical && this.#delta(last) === delta) {
      this.#setLength(last, this.#length[last]! + length);
      return;
    }
    this.#searches++;
    const id = this.#find(delta, physical, length);
    if (id === NIL) this.#last = this.#create(virtual, physical, length);
    else {
      this.#last = id;
      if (this.#end(id) === physical) this.#setLength(id, this.#length[id]! + length);
      else this.#merge(id, virtual, length);
    }
  }

  /** Adds `count` pages of equal size that follow each other in both address spaces: `add` for each, but faster. */
  addRun(virtual: number, physical: number, length: number, count: number): void {
    for (let done = 0; done < count;) {
      const offset = done * length;
      this.add(virtual + offset, physical + offset, length);
      done++;
      if (this.#takesRest(virtual + done * length, physical + done * length, (count - done) * length)) {
        const end = physical + count * length;
        if (end > this.#end(this.#last)) this.#setLength(this.#last, end - this.#physical[this.#last]!);
        return;
      }
    }
  }

  /** The mappings in QEMU's order. */
  toMappings(): Mapping[] {
    return Array.from(this.#sortedIds(), (id) => ({
      vaddr: BigInt(this.#virtual[id]!) * BigInt(PAGE_SIZE),
      paddr: this.#physical[id]! * PAGE_SIZE,
      length: this.#length[id]! * PAGE_SIZE,
    }));
  }

  /**
   * Whether the entry that took the page before these takes them too and is only made longer by them. It does unless
   * that page has changed its delta: it reaches to these pages at least, and what comes before it in its group ends
   * before the run. Where an address wraps, each page is looked at.
   */
  #takesRest(virtual: number, physical: number, length: number): boolean {
    const id = this.#last;
    return (
      this.#delta(id) === wrap(virtual - physical) &&
      this.#virtual[id]! + this.#length[id]! < VIRTUAL_PAGES &&
      virtual + length < VIRTUAL_PAGES
    );
  }

  #end(id: number): number {
    return this.#physical[id]! + this.#length[id]!;
  }

  #delta(id: number): number {
    return wrap(this.#virtual[id]! - this.#physical[id]!);
  }

  /** Whether `a` comes before `b` in the list. */
  #precedes(a: number, b: number): boolean {
    const order = this.#physical[a]! - this.#physical[b]!;
    return order < 0 || (order === 0 && a > b);
  }

  /** The first entry in list order that takes a page in, or NIL. */
  #find(delta: number, physical: number, length: number): number {
    const group = this.#groupOfDelta.get(delta);
    if (group === NIL) return NIL;
    let id = physical < this.#fingerAt[group]! ? this.#head[group]! : this.#finger[group]!;
    while (id !== NIL && this.#end(id) < physical) id = this.#next[id]!;
    this.#finger[group] = id;
    this.#fingerAt[group] = physical;
    return id !== NIL && this.#physical[id]! <= physical + length ? id : NIL;
  }

  #create(virtual: number, physical: number, length: number): number {
    if (this.#count >= this.#maxEntries) throw new WalkLimit('mappings');
    const id = this.#count++;
    this.#reserveEntries(this.#count);
    this.#virtual[id] = virtual;
    this.#physical[id] = physical;
    this.#length[id] = length;
    this.#link(id);
    return id;
  }

  /** Takes in a page that overlaps or touches the entry; QEMU's rule looks at virtual addresses only. */
  #merge(id: number, virtual: number, length: number): void {
    const start = this.#virtual[id]!;
    if (virtual < start) {
      this.#unlink(id);
      this.#virtual[id] = virtual;
      this.#length[id] = wrap(this.#length[id]! + start - virtual);
      this.#link(id);
    }
    const end = wrap(virtual + length);
    if (end > wrap(this.#virtual[id]! + this.#length[id]!)) this.#setLength(id, end - this.#virtual[id]!);
  }

  #setLength(id: number, length: number): void {
    this.#length[id] = length;
    this.#lowerFinger(this.#group[id]!, id);
  }

  /** Keeps the finger's promise when an entry has been linked or has grown. */
  #lowerFinger(group: number, id: number): void {
    const finger = this.#finger[group]!;
    if (finger === id || this.#end(id) < this.#fingerAt[group]!) return;
    if (finger === NIL || this.#precedes(id, finger)) this.#finger[group] = id;
  }

  /** Puts an entry into the group of its delta, in list order. */
  #link(id: number): void {
    const group = this.#groupFor(this.#delta(id));
    let before = this.#linkedBehind[group]!;
    if (before !== NIL && !this.#precedes(before, id)) before = NIL;
    let after = before === NIL ? this.#head[group]! : this.#next[before]!;
    while (after !== NIL && this.#precedes(after, id)) {
      before = after;
      after = this.#next[after]!;
    }
    this.#group[id] = group;
    this.#connect(group, before, id);
    this.#connect(group, id, after);
    this.#linkedBehind[group] = before;
    this.#lowerFinger(group, id);
  }

  /** Takes an entry out of its group. */
  #unlink(id: number): void {
    const group = this.#group[id]!;
    if (this.#finger[group] === id) this.#finger[group] = this.#next[id]!;
    if (this.#linkedBehind[group] === id) this.#linkedBehind[group] = this.#previous[id]!;
    this.#connect(group, this.#previous[id]!, this.#next[id]!);
  }

  /** Makes two entries of a group neighbours; NIL stands for the group's front and back. */
  #connect(group: number, before: number, after: number): void {
    if (before === NIL) this.#head[group] = after;
    else this.#next[before] = after;
    if (after !== NIL) this.#previous[after] = before;
  }

  /** The group of a delta, made when there is none. */
  #groupFor(delta: number): number {
    const known = this.#groupOfDelta.get(delta);
    if (known !== NIL) return known;
    // Entries that change groups leave empty ones behind, which must not pile up.
    if (this.#groupCount > 2 * this.#count + INITIAL_CAPACITY) this.#regroup(delta);
    return this.#addGroup(delta);
  }

  #addGroup(delta: number): number {
    const group = this.#groupCount++;
    this.#reserveGroups(this.#groupCount);
    this.#head[group] = NIL;
    this.#finger[group] = NIL;
    this.#fingerAt[group] = 0;
    this.#linkedBehind[group] = NIL;
    this.#groupOfDelta.set(delta, group);
    return group;
  }

  /** Builds all groups anew, but for the entry about to be linked, which is the only one of its delta. */
  #regroup(deltaInFlight: number): void {
    this.#groupCount = 0;
    this.#groupOfDelta.clear();
    for (const id of this.#sortedIds()) {
      if (this.#delta(id) !== deltaInFlight) this.#link(id);
    }
  }

  #sortedIds(): Int32Array {
    const ids = Int32Array.from({ length: this.#count }, (_, id) => id);
    return ids.sort((a, b) => this.#physical[a]! - this.#physical[b]! || b - a);
  }

  #reserveEntries(count: number): void {
    if (count <= this.#physical.length) return;
    this.#physical = grown(this.#physical, count);
    this.#virtual = grown(this.#virtual, count);
    this.#length = grown(this.#length, count);
    this.#group = grown(this.#group, count);
    this.#next = grown(this.#next, count);
    this.#previous = grown(this.#previous, count);
  }

  #reserveGroups(count: number): void {
    if (count <= this.#head.length) return;
    this.#head = grown(this.#head, count);
    this.#finger = grown(this.#finger, count);
    this.#fingerAt = grown(this.#fingerAt, count);
    this.#linkedBehind = grown(this.#linkedBehind, count);
  }
}
