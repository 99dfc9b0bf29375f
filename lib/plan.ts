/**
 * What each format makes of a request: a layout, and the stages between the source and the sink.
 */

import type { Duplex } from 'streamx';
import type { PageEncoder } from './codecs/page-encoder.js';
import { VmcoreError } from './errors.js';
import type { Guest } from './guest.js';
import type { MemoryBlock } from './physical-memory.js';
import type { ExtentSink } from './sinks/extent-sink.js';
import { SlabPool } from './slab-pool.js';
import { type Chunk, PAGE_SIZE, type Source } from './stage.js';
import { ElfFramer } from './transforms/elf-framer.js';
import { planElf } from './transforms/elf-layout.js';
import type { KdumpCodec } from './transforms/kdump-layout.js';
import type { Mapping } from './transforms/mapping-list.js';

/** The formats that can be written; names as in QEMU's DumpGuestMemoryFormat. */
export const FORMATS = [
  'elf',
  'kdump-zlib',
  'kdump-lzo',
  'kdump-snappy',
  'kdump-raw-zlib',
  'kdump-raw-lzo',
  'kdump-raw-snappy',
  'win-dmp',
] as const;
/** One of FORMATS. */
export type Format = (typeof FORMATS)[number];

/** What is to be dumped. */
export interface DumpRequest {
  /** `elf` by default */
  readonly format?: Format | undefined;
  /** elf only: list virtual addresses by the guest's page tables, so that gdb can use them */
  readonly paging?: boolean | undefined;
  /** only this range of guest physical memory, in bytes; may span holes and the end of memory */
  readonly range?: MemoryBlock | undefined;
  /** bound on the mappings that paging may find; see resolveMappings */
  readonly maxMappings?: number | undefined;
  /** bound on the page tables that paging may read; see resolveMappings */
  readonly maxPageTables?: number | undefined;
  /** kdump: `fast` (the default) is the WebAssembly kernel in worker threads, `portable` plain JavaScript in this one */
  readonly codec?: 'fast' | 'portable' | undefined;
  /** kdump: threads that compress; as many as the machine has by default. The bytes do not depend on it */
  readonly threads?: number | undefined;
  /** kdump-zlib: 1, the default, is fast, more is smaller */
  readonly level?: number | undefined;
  /** win-dmp: look for KDBG in a guest without a dump header of its driver's; true by default */
  readonly findKdbg?: boolean | undefined;
}

/** Pages of guest memory by what became of them. */
export interface DumpedPages {
  readonly total: number;
  /** written, compressed or not */
  readonly data: number;
  /** zeros that were left out; a hole of the source or found by looking */
  readonly zero: number;
  /** kdump: those of `data` that are compressed */
  readonly compressed?: number;
  /** win-dmp: those that the dump header lists and the guest does not have; they are zeros */
  readonly missing?: number;
}

/** A request that has been thought through. */
export interface Plan {
  /** bytes of guest memory that will be written */
  readonly memoryBytes: number;
  /** where the source's slabs come from: the bound on the memory that a dump uses */
  readonly pool: SlabPool;
  /** the memory, where it is not all of the guest's in ascending order */
  chunks?(): Source<Chunk>;
  /** from chunks to extents */
  readonly stages: readonly Duplex[];
  /** the vmcore goes backwards: its sink has to seek */
  readonly seeks: boolean;
  /** elf: number of PT_LOADs */
  readonly mappings?: number;
  /** what became of the pages, once the sink has them all */
  pages(sink: ExtentSink): DumpedPages;
  /** kdump: seconds spent compressing, those of all threads added up */
  compressSeconds?(): number;
}

/** Slabs on their way at a time, where the format has no memory of its own for them. */
const SLABS = 16;

/** Plans a dump. @throws VmcoreError */
export function planDump(
  guest: Guest,
  request: DumpRequest,
  context: { readonly signal: AbortSignal; onWarning(text: string): void },
): Promise<Plan> {
  const { format = 'elf' } = request;
  if (format === 'elf') return planElfDump(guest, request, context);
  if (format === 'win-dmp') return planWinDmpDump(guest, request, context);
  return planKdumpDump(guest, format, request, context.signal);
}

async function planElfDump(
  guest: Guest,
  request: DumpRequest,
  context: { readonly signal: AbortSignal; onWarning(text: string): void },
): Promise<Plan> {
  const mappings = request.paging ? await resolve(guest, request, context) : undefined;
  const layout = planElf(guest, { range: request.range, mappings });
  const total = Math.ceil(layout.memoryBytes / PAGE_SIZE);
  return {
    memoryBytes: layout.memoryBytes,
    pool: new SlabPool(SLABS),
    stages: [new ElfFramer(layout, context)],
    seeks: false,
    mappings: layout.programHeaders.length - 1,
    pages({ totals }) {
      const zero = Math.floor(totals.skipped / PAGE_SIZE);
      return { total, data: Math.max(0, total - zero), zero };
    },
  };
}

async function resolve(
  guest: Guest,
  { maxMappings, maxPageTables }: DumpRequest,
  context: { readonly signal: AbortSignal; onWarning(text: string): void },
): Promise<Mapping[]> {
  const { resolveMappings } = await import('./transforms/mapping-resolver.js');
  return resolveMappings(guest, { maxMappings, maxPageTables, ...context });
}

async function planKdumpDump(
  guest: Guest,
  format: Exclude<Format, 'elf' | 'win-dmp'>,
  request: DumpRequest,
  signal: AbortSignal,
): Promise<Plan> {
  if (request.paging)
    throw new VmcoreError('USAGE', 'kdump-compressed format has no place for virtual addresses: paging goes with elf');
  const [{ planKdump }, { KdumpFramer }, { Flattener }, { PageAligner }, { PageCompressor }] = await Promise.all([
    import('./transforms/kdump-layout.js'),
    import('./transforms/kdump-framer.js'),
    import('./transforms/flattener.js'),
    import('./transforms/page-aligner.js'),
    import('./transforms/page-compressor.js'),
  ]);
  const seeks = format.startsWith('kdump-raw-');
  const codec = format.replace(/^kdump-(raw-)?/, '') as KdumpCodec;
  const layout = planKdump(guest, { codec, range: request.range });
  const compressor = new PageCompressor(await openEncoder(codec, request), { signal });
  return {
    memoryBytes: layout.memoryBytes,
    pool: compressor.encoder.pool ?? new SlabPool(SLABS),
    stages: [
      new PageAligner({ signal }),
      compressor,
      new KdumpFramer(layout, { signal }),
      ...(seeks ? [] : [new Flattener({ signal })]),
    ],
    seeks,
    pages() {
      const { zero, stored, compressed } = compressor.counts;
      return { total: layout.pageCount, data: stored + compressed, zero, compressed };
    },
    compressSeconds: () => compressor.encoder.busySeconds,
  };
}

async function planWinDmpDump(
  guest: Guest,
  request: DumpRequest,
  context: { readonly signal: AbortSignal; onWarning(text: string): void },
): Promise<Plan> {
  if (request.paging || request.range)
    throw new VmcoreError(
      'USAGE',
      'win-dmp has no place for virtual addresses or a part of the memory: paging and ranges go with elf',
    );
  const [{ planWinDmp }, { windowsHeader }, { WinDmpFramer }, { MemoryOverlay }, { runChunks }] = await Promise.all([
    import('./transforms/win-dmp-layout.js'),
    import('./transforms/find-kdbg.js'),
    import('./transforms/win-dmp-framer.js'),
    import('./transforms/memory-overlay.js'),
    import('./sources/run-source.js'),
  ]);
  const layout = planWinDmp(guest, await windowsHeader(guest, request, context), context);
  const pool = new SlabPool(SLABS);
  const { signal } = context;
  const total = (layout.size - layout.header.length) / PAGE_SIZE;
  return {
    memoryBytes: layout.requiredBytes,
    pool,
    chunks: () => runChunks(guest.memory!, layout.runs, { pool, signal }),
    stages: [new MemoryOverlay(layout.pages, { signal }), new WinDmpFramer(layout, { signal })],
    seeks: false,
    pages({ totals }) {
      const zero = Math.floor(totals.skipped / PAGE_SIZE);
      const missing = Math.ceil(layout.missingBytes / PAGE_SIZE);
      return { total, data: Math.max(0, total - zero), zero, missing };
    },
  };
}

async function openEncoder(codec: KdumpCodec, { codec: kind, threads, level }: DumpRequest): Promise<PageEncoder> {
  if (kind === 'portable') {
    const { PortableEncoder } = await import('./codecs/portable-encoder.js');
    return new PortableEncoder(codec, level);
  }
  const { KernelEncoder } = await import('./codecs/kernel-encoder.js');
  return KernelEncoder.open(codec, { threads, level });
}
