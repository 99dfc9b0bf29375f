/** Kdump files for tests: a page compressor in a few lines, and dumps through the real framer into memory or a file. */

import { createRequire } from 'node:module';
import { deflateSync } from 'node:zlib';
import { LZO } from 'lzo-ts';
import { pipelinePromise } from 'streamx';
import type { Guest } from '../lib/model/guest.js';
import type { ExtentSink } from '../lib/sinks/extent-sink.js';
import {
  type Chunk,
  type Extent,
  PAGE_COMPRESSED,
  PAGE_SIZE,
  PAGE_STORED,
  PAGE_ZERO,
  type PageBatch,
  Sink,
  Stage,
} from '../lib/model/stage.js';
import { Flattener } from '../lib/transforms/flattener.js';
import { KdumpFramer } from '../lib/transforms/kdump-framer.js';
import { type KdumpCodec, type KdumpLayoutOptions, planKdump } from '../lib/layouts/kdump-layout.js';
import { plain } from './plain-chunk.js';

const snappy = createRequire(import.meta.url)('snappyjs') as { compress(bytes: Uint8Array): Uint8Array };

/** Compresses a page by a library that is not ours. */
export const COMPRESS: Readonly<Record<KdumpCodec, (page: Uint8Array) => Uint8Array>> = {
  zlib: (page) => deflateSync(page, { level: 1 }),
  lzo: (page) => LZO.compress(page),
  snappy: (page) => snappy.compress(page),
};

/** The simplest page compressor: whole, page-aligned chunks in, a batch for each out. */
export class TestCompressor extends Stage<Chunk, PageBatch> {
  constructor(readonly codec: KdumpCodec) {
    super();
  }

  protected override transform(chunk: Chunk): void {
    const { paddr, length, data, release } = plain(chunk);
    const first = paddr - (paddr % PAGE_SIZE);
    const count = Math.ceil((paddr + length - first) / PAGE_SIZE);
    if (!data) {
      this.emitItem({ paddr: first, count, memory: length });
      return;
    }
    const padded = new Uint8Array(count * PAGE_SIZE);
    padded.set(data, paddr - first);
    release?.();
    this.emitItem({ paddr: first, count, memory: length, ...encodePages(padded, this.codec) });
  }
}

/** Encodes whole pages. */
export function encodePages(pages: Uint8Array, codec: KdumpCodec): Pick<PageBatch, 'kinds' | 'sizes' | 'data'> {
  const count = pages.length / PAGE_SIZE;
  const kinds = new Uint8Array(count);
  const sizes = new Uint16Array(count);
  const parts: Uint8Array[] = [];
  for (let i = 0; i < count; i++) {
    const page = pages.subarray(i * PAGE_SIZE, (i + 1) * PAGE_SIZE);
    if (page.every((byte) => byte === 0)) {
      kinds[i] = PAGE_ZERO;
      continue;
    }
    const compressed = COMPRESS[codec](page);
    const part = compressed.length < PAGE_SIZE ? compressed : page;
    kinds[i] = part === page ? PAGE_STORED : PAGE_COMPRESSED;
    sizes[i] = part.length;
    parts.push(part);
  }
  // As the contract has it: a batch of zero pages has no data.
  return parts.length === 0 ? {} : { kinds, sizes, data: Buffer.concat(parts) };
}

/** Keeps all extents. */
export class Collector extends Sink<Extent> {
  readonly extents: Extent[] = [];

  protected override take(extent: Extent): void {
    this.extents.push(extent.data ? { ...extent, data: Uint8Array.from(extent.data) } : extent);
    extent.release?.();
  }

  /** The file that a seekable sink would have written. */
  get bytes(): Buffer {
    const size = this.extents.reduce((end, { offset, length }) => Math.max(end, offset + length), 0);
    const file = Buffer.alloc(size);
    for (const { offset, data } of this.extents) if (data) file.set(data, offset);
    return file;
  }

  get memory(): number {
    return this.extents.reduce((sum, { memory }) => sum + memory, 0);
  }
}

/** How to dump in a test. */
export interface TestDumpOptions extends KdumpLayoutOptions {
  readonly flattened?: boolean;
}

/** Dumps a guest into a sink by the stages alone. */
export async function dumpKdump(guest: Guest, sink: ExtentSink | Collector, options: TestDumpOptions): Promise<void> {
  const framer = new KdumpFramer(planKdump(guest, options));
  const source = guest.chunks({ range: options.range });
  const compressor = new TestCompressor(options.codec);
  if (options.flattened) await pipelinePromise(source, compressor, framer, new Flattener(), sink);
  else await pipelinePromise(source, compressor, framer, sink);
}

/** A guest's dump as bytes. */
export async function kdumpBytes(guest: Guest, options: TestDumpOptions): Promise<Buffer> {
  const sink = new Collector();
  await dumpKdump(guest, sink, options);
  return sink.bytes;
}
