/**
 * kdump framer: page batches in, extents of a kdump-compressed vmcore out.
 *
 * Pages go to the file's end in the order in which they come; each batch's encodings are one extent. What a reader needs
 * first, the table of descriptors, is only known then, so its pieces come in between, at lower offsets. The bitmaps are
 * known before, but trickle out with the batches: at once they might be more than memory holds.
 *
 * Pages that the layout leaves out come, too, as zeros (see PageFilter): they count as memory that is done, and that is
 * all that becomes of them.
 */

import { VmcoreError } from '../model/errors.js';
import { PAGE_CODEC_FLAGS } from '../formats/kdump.js';
import type { PfnRun } from '../model/page-exclusion.js';
import { type Extent, PAGE_SIZE, PAGE_ZERO, type PageBatch, Stage, type StageOptions } from '../model/stage.js';
import { bitmapExtents } from '../layouts/kdump-bitmap.js';
import { encodeKdumpHead, type KdumpLayout, runEnd } from '../layouts/kdump-layout.js';
import { PageDescriptors } from './page-descriptors.js';

/** Extents of the bitmaps with each batch: more than a batch's share of them, so that they are out before the end. */
const BITMAP_EXTENTS_PER_BATCH = 16;

/** The page that all zero pages share. */
const ZERO_PAGE = new Uint8Array(PAGE_SIZE);

/** A batch with pages that are not zero. */
interface EncodedBatch extends PageBatch {
  readonly kinds: Uint8Array;
  readonly sizes: Uint16Array;
  readonly data: Uint8Array;
}

function isEncoded(batch: PageBatch): batch is EncodedBatch {
  return batch.data !== undefined && batch.kinds !== undefined && batch.sizes !== undefined;
}

/** Places page batches by a kdump layout. */
export class KdumpFramer extends Stage<PageBatch, Extent> {
  readonly #bitmaps: Iterator<Extent, undefined>;
  readonly #descriptors: PageDescriptors;
  /** file offset where the next page goes */
  #dataOffset: number;
  /** where in the layout's runs the next page is */
  #run = 0;
  #pfn: number;
  #placed = 0;
  /** bytes of guest memory that no extent has been given yet: those of batches without data */
  #memory = 0;

  constructor(
    readonly layout: KdumpLayout,
    options?: StageOptions,
  ) {
    super(options);
    const { descriptorsOffset, zeroPageOffset, runs } = layout;
    this.#bitmaps = bitmapExtents(layout);
    this.#descriptors = new PageDescriptors(descriptorsOffset, zeroPageOffset, (offset, data) =>
      this.#emit(offset, data, 0),
    );
    this.#dataOffset = zeroPageOffset + PAGE_SIZE;
    this.#pfn = runs[0]!.firstPfn;
  }

  /** Size of the vmcore so far, in bytes; of all of it once the stage has ended. */
  get size(): number {
    return this.#dataOffset;
  }

  protected override open(): void {
    this.#emit(0, encodeKdumpHead(this.layout), 0);
    this.#emit(this.layout.zeroPageOffset, ZERO_PAGE, 0);
  }

  protected override transform(batch: PageBatch): void {
    this.#emitBitmaps(BITMAP_EXTENTS_PER_BATCH);
    this.#advance(batch);
    if (isEncoded(batch)) this.#placeData(batch);
    else this.#placeZeros(batch);
  }

  protected override flush(): void {
    const { pageCount } = this.layout;
    if (this.#placed !== pageCount)
      throw new VmcoreError('TRUNCATED', `the source gave ${this.#placed} of ${pageCount} pages of guest memory`);
    this.#emitBitmaps(Number.POSITIVE_INFINITY);
    this.#descriptors.flush();
    // Memory of zero pages whose descriptors went out before them. An extent of no bytes, so one without data.
    if (this.#memory > 0) this.emitItem({ offset: this.#dataOffset, length: 0, memory: this.#memory });
  }

  /** All pages of the layout have to come, in its order: a descriptor's place says which page it is for. */
  #advance({ paddr, count }: PageBatch): void {
    const { runs } = this.layout;
    const run = runs[this.#run];
    if (!run || paddr !== this.#pfn * PAGE_SIZE || this.#pfn + count > runEnd(run))
      throw new VmcoreError(
        'BAD_INPUT',
        `${count} pages of memory at 0x${paddr.toString(16)} came where the layout has ${this.#expected()}`,
      );
    this.#pfn += count;
    this.#placed += count;
    if (this.#pfn === runEnd(run)) this.#pfn = runs[++this.#run]?.firstPfn ?? this.#pfn;
  }

  #expected(): string {
    return this.layout.runs[this.#run] ? `those at 0x${(this.#pfn * PAGE_SIZE).toString(16)}` : 'no more';
  }

  #placeData(batch: EncodedBatch): void {
    const { data, memory, release } = batch;
    const offset = this.#dataOffset;
    const flags = PAGE_CODEC_FLAGS[this.layout.codec];
    for (const { start, end } of this.#storedRuns(batch))
      this.#dataOffset = this.#descriptors.addPages(batch, start, end, this.#dataOffset, flags);
    const length = this.#dataOffset - offset;
    if (length > 0) this.#emit(offset, data.subarray(0, length), memory, release);
    else this.#finishZeros(memory, release);
  }

  /** The runs of a batch's pages that are not left out, counted from its first. */
  *#storedRuns({ paddr, count, kinds }: EncodedBatch): Generator<PfnRun, undefined> {
    const { exclusion } = this.layout;
    const first = paddr / PAGE_SIZE;
    let stored = 0;
    for (const run of exclusion?.runs(first, first + count, true) ?? []) {
      const [start, end] = [run.start - first, run.end - first];
      if (kinds.subarray(start, end).some((kind) => kind !== PAGE_ZERO)) throw unfiltered(run.start);
      yield { start: stored, end: start };
      stored = end;
    }
    yield { start: stored, end: count };
  }

  #placeZeros({ paddr, count, memory, release }: PageBatch): void {
    const first = paddr / PAGE_SIZE;
    this.#memory += memory;
    this.#descriptors.addZeros(count - (this.layout.exclusion?.countIn(first, first + count) ?? 0));
    this.#finishZeros(0, release);
  }

  /** A batch without data: the next extent will stand for its memory. */
  #finishZeros(memory: number, release: (() => void) | undefined): void {
    this.#memory += memory;
    release?.();
  }

  #emitBitmaps(limit: number): void {
    for (let i = 0; i < limit; i++) {
      const { value } = this.#bitmaps.next();
      if (!value) return;
      this.emitItem(value);
    }
  }

  #emit(offset: number, data: Uint8Array, memory: number, release?: () => void): void {
    this.emitItem({ offset, length: data.length, data, memory: memory + this.#memory, release });
    this.#memory = 0;
  }
}

/** A page that is left out came with data: nobody has filtered it. */
function unfiltered(pfn: number): VmcoreError {
  const page = `0x${(pfn * PAGE_SIZE).toString(16)}`;
  return new VmcoreError(
    'BAD_INPUT',
    `page ${page} came with data, but the layout leaves it out; put a PageFilter first`,
  );
}
