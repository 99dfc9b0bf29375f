/**
 * A flattened file (formats/flattened.ts) as the file that it describes, without writing that anywhere: an index says
 * which record holds which bytes.
 *
 * makedumpfile writes headers a second time when it knows more, over what held their place. So of records that overlap the
 * later one counts, as with `makedumpfile -R`, and the earlier one for what is left of it.
 */

import {
  decodeFlattenedRecord,
  FLATTENED_HEADER_SIZE,
  FLATTENED_RECORD_SIZE,
  type FlattenedRecord,
} from '../../formats/flattened.js';
import type { FileBacking } from '../../io/file-backing.js';
import type { RandomFile } from '../../io/random-file.js';
import { VmcoreError } from '../../model/errors.js';
import type { DataRun } from '../../model/physical-memory.js';
import { ownedStretches } from '../span-owners.js';

/** How many records are indexed unless told otherwise: 128 GB in QEMU's records of 16 KiB; 200 MB of index. */
export const DEFAULT_MAX_RECORDS = 2 ** 23;

/** Read at a time while records are looked for; small, since most of it is skipped. */
const WINDOW_BYTES = 4096;

/** Records that there is room for at first. */
const INITIAL_RECORDS = 1024;

/** Where the records are, sorted by the offsets of their data. */
interface RecordIndex {
  readonly count: number;
  /** offset in the file that is described, of each record */
  readonly offsets: Float64Array;
  /** number of bytes, of each record */
  readonly sizes: Float64Array;
  /** offset in the flattened file of the data, of each record */
  readonly places: Float64Array;
}

/** A part of what is to be read: bytes [start, end) of it are at `place` of the flattened file, or are zeros. */
interface Part {
  readonly start: number;
  readonly end: number;
  readonly place: number | null;
}

/** The file that a flattened file describes. */
export class FlattenedFile implements RandomFile {
  readonly name: string;
  readonly size: number;
  readonly #file: FileBacking;
  readonly #index: RecordIndex;

  private constructor(file: FileBacking, index: RecordIndex) {
    this.name = file.name;
    this.#file = file;
    this.#index = index;
    const last = index.count - 1;
    this.size = last < 0 ? 0 : index.offsets[last]! + index.sizes[last]!;
  }

  /**
   * Indexes a flattened file, which it then owns.
   * @throws VmcoreError BAD_INPUT, TRUNCATED, LIMIT, READ
   */
  static open(file: FileBacking, maxRecords: number = DEFAULT_MAX_RECORDS): FlattenedFile {
    return new FlattenedFile(file, sortRecords(scanRecords(file, maxRecords)));
  }

  readSync(offset: number, into: Uint8Array): void {
    for (const { start, end, place } of this.#parts(offset, into.length)) {
      const part = into.subarray(start, end);
      if (place === null) part.fill(0);
      else this.#file.readSync(place, part);
    }
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    for (const { start, end, place } of this.#parts(offset, into.length)) {
      const part = into.subarray(start, end);
      if (place === null) part.fill(0);
      else await this.#file.read(place, part);
    }
  }

  /** What no record holds is zeros. */
  nextData(offset: number, end: number): DataRun | null {
    const { offsets, sizes, count } = this.#index;
    let record = lastAtOrBelow(offsets, count, offset);
    if (record < 0 || offsets[record]! + sizes[record]! <= offset) record++;
    if (record >= count || offsets[record]! >= end) return null;
    return { start: Math.max(offset, offsets[record]!), end: Math.min(end, offsets[record]! + sizes[record]!) };
  }

  close(): void {
    this.#file.close();
  }

  *#parts(offset: number, length: number): Generator<Part, undefined> {
    if (offset + length > this.size)
      throw new VmcoreError(
        'TRUNCATED',
        `${this.name}: ${length} bytes at ${offset} are wanted, but its records end at byte ${this.size}`,
      );
    const { offsets, sizes, places, count } = this.#index;
    let record = lastAtOrBelow(offsets, count, offset);
    for (let done = 0; done < length;) {
      const at = offset + done;
      const recordEnd = record < 0 ? 0 : offsets[record]! + sizes[record]!;
      if (at < recordEnd) {
        const end = Math.min(length, recordEnd - offset);
        yield { start: done, end, place: places[record]! + (at - offsets[record]!) };
        done = end;
      } else {
        record++;
        const next = record < count ? offsets[record]! : Number.POSITIVE_INFINITY;
        const end = Math.min(length, next - offset);
        if (end > done) yield { start: done, end, place: null };
        done = end;
      }
    }
  }
}

/** Index of the last of `count` sorted numbers that is at or below `value`; -1 when there is none. */
function lastAtOrBelow(numbers: Float64Array, count: number, value: number): number {
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (numbers[middle]! <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Finds all records, in the order of the file. */
function scanRecords(file: FileBacking, maxRecords: number): RecordIndex {
  const window = new FileWindow(file);
  const found = new IndexBuilder();
  for (let at = FLATTENED_HEADER_SIZE; ;) {
    const record = readRecord(file, window, at);
    if (record === 'end') return found;
    if (found.count === maxRecords)
      throw new VmcoreError('LIMIT', `${file.name} has more than maxRecords = ${maxRecords} flattened records`);
    found.add(record.offset, record.size, at + FLATTENED_RECORD_SIZE);
    at += FLATTENED_RECORD_SIZE + record.size;
  }
}

/** @throws VmcoreError TRUNCATED when record or data reach beyond the file, BAD_INPUT when the record is none */
function readRecord(file: FileBacking, window: FileWindow, at: number): FlattenedRecord | 'end' {
  if (at + FLATTENED_RECORD_SIZE > file.size)
    throw new VmcoreError('TRUNCATED', `${file.name} ends at byte ${file.size} without a flattened end record`);
  const record = decodeFlattenedRecord(window.bytes(at, FLATTENED_RECORD_SIZE));
  if (record === null)
    throw new VmcoreError(
      'BAD_INPUT',
      `${file.name}: the flattened record at byte ${at} has a negative offset or size`,
    );
  if (record !== 'end' && at + FLATTENED_RECORD_SIZE + record.size > file.size)
    throw new VmcoreError(
      'TRUNCATED',
      `${file.name} ends at byte ${file.size}, but the flattened record at byte ${at} has ${record.size} bytes`,
    );
  return record;
}

/** Records sorted by offset, those that overlap cut to what counts of them. */
function sortRecords(records: RecordIndex): RecordIndex {
  const { count, offsets, sizes, places } = records;
  const order = new Uint32Array(count).map((_, i) => i);
  order.sort((a, b) => offsets[a]! - offsets[b]!);
  const endOf = (i: number): number => offsets[order[i]!]! + sizes[order[i]!]!;
  const sorted = new IndexBuilder();
  for (let from = 0; from < count;) {
    let to = from + 1;
    for (let end = endOf(from); to < count && offsets[order[to]!]! < end; to++) end = Math.max(end, endOf(to));
    if (to === from + 1) sorted.add(offsets[order[from]!]!, sizes[order[from]!]!, places[order[from]!]!);
    else addOverlapping(sorted, records, order.slice(from, to));
    from = to;
  }
  return sorted;
}

/** Adds records that overlap: the latest in the file is the first to take its bytes. */
function addOverlapping(sorted: IndexBuilder, { offsets, sizes, places }: RecordIndex, records: Uint32Array): void {
  const latestFirst = records.sort().reverse();
  const starts = Float64Array.from(latestFirst, (i) => offsets[i]!);
  const ends = Float64Array.from(latestFirst, (i) => offsets[i]! + sizes[i]!);
  for (const { start, end, owner } of ownedStretches({ starts, ends })) {
    const record = latestFirst[owner]!;
    sorted.add(start, end - start, places[record]! + (start - offsets[record]!));
  }
}

/** An index that grows. */
class IndexBuilder implements RecordIndex {
  count = 0;
  offsets = new Float64Array(INITIAL_RECORDS);
  sizes = new Float64Array(INITIAL_RECORDS);
  places = new Float64Array(INITIAL_RECORDS);

  add(offset: number, size: number, place: number): void {
    if (this.count === this.offsets.length) {
      this.offsets = grown(this.offsets);
      this.sizes = grown(this.sizes);
      this.places = grown(this.places);
    }
    this.offsets[this.count] = offset;
    this.sizes[this.count] = size;
    this.places[this.count] = place;
    this.count++;
  }
}

function grown(array: Float64Array<ArrayBuffer>): Float64Array<ArrayBuffer> {
  const larger = new Float64Array(array.length * 2);
  larger.set(array);
  return larger;
}

/** A file read through a small window. */
class FileWindow {
  readonly #file: FileBacking;
  readonly #buffer = new Uint8Array(WINDOW_BYTES);
  #start = 0;
  #end = 0;

  constructor(file: FileBacking) {
    this.#file = file;
  }

  /** Bytes that the file has, valid until the next call. */
  bytes(offset: number, length: number): Uint8Array {
    if (offset < this.#start || offset + length > this.#end) {
      this.#start = offset;
      this.#end = Math.min(offset + WINDOW_BYTES, this.#file.size);
      this.#file.readSync(offset, this.#buffer.subarray(0, this.#end - offset));
    }
    return this.#buffer.subarray(offset - this.#start, offset - this.#start + length);
  }
}
