/**
 * What every sink of extents has in common: it counts what it has taken, which is the progress of a dump.
 */

import { type Extent, Sink, type StageOptions } from '../model/stage.js';

/** What became of the guest memory that a sink took, in bytes. */
export interface SinkTotals {
  /** guest memory that is done; grows when the bytes have been taken by the file or the reader, never before */
  completed: number;
  /** bytes that were written */
  written: number;
  /** bytes of zeros that were not written because the output has a hole there */
  skipped: number;
  /** bytes of the output so far, holes included */
  size: number;
}

/** A Writable of extents; emits `progress` whenever `totals` has grown. */
export abstract class ExtentSink extends Sink<Extent> {
  readonly totals: SinkTotals = { completed: 0, written: 0, skipped: 0, size: 0 };

  /** where the bytes go, for messages: a path, `fd 3` */
  abstract readonly target: string;

  constructor(options?: StageOptions) {
    super(options);
  }

  /** Stores an extent, and counts `written` and `skipped`. */
  protected abstract store(extent: Extent): Promise<void>;

  protected override async take(extent: Extent): Promise<void> {
    try {
      await this.store(extent);
    } finally {
      extent.release?.();
    }
    this.totals.size = Math.max(this.totals.size, extent.offset + extent.length);
    this.totals.completed += extent.memory;
    this.emit('progress' as 'drain');
  }
}
