/**
 * What each format makes of a request: a layout, and the stages between the source and the sink.
 */

import type { Duplex } from 'streamx';
import type { PageEncoder } from './codecs/page-encoder.js';
import { VmcoreError } from './errors.js';
import type { Guest } from './guest.js';
import type { PageExclusion } from './page-exclusion.js';
import type { MemoryBlock } from './physical-memory.js';
import { describeLeftOut, type LeftOut, type Prepared, prepare } from './plan-exclusion.js';
import { checkRequest, type DumpRequest, type Format } from './request.js';
import type { Scope } from './scope.js';
import type { ExtentSink } from './sinks/extent-sink.js';
import { SlabPool } from './slab-pool.js';
import { type Chunk, PAGE_SIZE, type Source } from './stage.js';
import { ElfFramer } from './transforms/elf-framer.js';
import { planElf } from './transforms/elf-layout.js';
import type { KdumpCodec } from './transforms/kdump-layout.js';
import type { Mapping } from './transforms/mapping-list.js';

/** The formats that compress pages. */
type KdumpFormat = Exclude<Format, 'elf' | 'win-dmp'>;

/** Pages of guest memory by what became of them. */
export interface DumpedPages extends LeftOut {
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

/** What planning may use. */
export interface PlanContext {
  readonly signal: AbortSignal;
  /** owns what the plan acquires: threads */
  readonly scope: Scope;
  /** is told what whoever asked should know */
  onWarning(text: string): void;
}

/** A request that has been thought through. */
export interface Plan extends Prepared, FormatPlan {}

/** What a format makes of a request. */
interface FormatPlan {
  /** bytes of guest memory that will be written */
  readonly memoryBytes: number;
  /** where the source's slabs come from: the bound on the memory that a dump uses */
  readonly pool: SlabPool;
  /** the memory, where it is not all of the guest's in ascending order */
  chunks?(): Source<Chunk>;
  /** from chunks to extents */
  readonly stages: readonly Duplex[];
  /** the stage that reads the memory, where the source need only say where it is */
  readonly reader?: Duplex;
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
export async function planDump(guest: Guest, request: DumpRequest, context: PlanContext): Promise<Plan> {
  checkRequest(request);
  const { format = 'elf' } = request;
  if (format === 'elf')
    return planWithout(guest, request, context, (prepared) => planElfDump(prepared, request, context));
  if (format === 'win-dmp')
    return planWithout(guest, request, context, ({ guest }) => planWinDmpDump(guest, request, context));
  // Threads take a while to start: they do it while the rest is loaded and planned.
  const encoder = openEncoder(kdumpCodec(format), request);
  // When it fails while planning fails as well, the first failure is the one to tell.
  encoder.catch(() => {});
  context.scope.defer(() =>
    encoder.then(
      (encoder) => encoder.close(),
      () => {},
    ),
  );
  return planWithout(guest, request, context, (prepared) => planKdumpDump(prepared, format, encoder, request, context));
}

/** Decides what is left out, plans the format, and puts the page filter before its stages where there is need of it. */
async function planWithout(
  guest: Guest,
  request: DumpRequest,
  context: PlanContext,
  planFormat: (prepared: Prepared) => Promise<FormatPlan>,
): Promise<Plan> {
  const prepared = await prepare(guest, request, context);
  const { exclusion } = prepared;
  const plan = await planFormat(prepared);
  if (!exclusion || exclusion.total === 0) return { ...prepared, ...plan };
  const { PageFilter } = await import('./transforms/page-filter.js');
  return { ...prepared, ...plan, stages: [new PageFilter(exclusion, { signal: context.signal }), ...plan.stages] };
}

async function planElfDump(prepared: Prepared, request: DumpRequest, context: PlanContext): Promise<FormatPlan> {
  const { guest, exclusion } = prepared;
  const mappings = request.paging ? await resolve(guest, request, context) : undefined;
  const split = request.keepLayout || exclusion?.total === 0 ? null : exclusion;
  const layout = planElf(guest, { range: request.range, mappings, exclusion: split ?? undefined });
  return {
    memoryBytes: layout.memoryBytes,
    pool: new SlabPool(SLABS),
    stages: [new ElfFramer(layout, context)],
    seeks: false,
    mappings: layout.programHeaders.length - 1,
    pages({ totals }) {
      const total = Math.ceil(layout.memoryBytes / PAGE_SIZE);
      const excluded = exclusion ? excludedIn(layout.blocks, exclusion) : 0;
      // Of the pages that are left out, those that are in the file are among its zeros.
      const blanked = excluded - Math.floor((layout.memoryBytes - layout.storedBytes) / PAGE_SIZE);
      const zero = Math.max(0, Math.floor(totals.skipped / PAGE_SIZE) - blanked);
      return { total, data: Math.max(0, total - zero - excluded), zero, ...describeLeftOut(prepared, excluded) };
    },
  };
}

/** Pages of blocks that are left out. */
function excludedIn(blocks: readonly MemoryBlock[], exclusion: PageExclusion): number {
  const count = ({ base, length }: MemoryBlock) =>
    exclusion.countIn(Math.floor(base / PAGE_SIZE), Math.ceil((base + length) / PAGE_SIZE));
  return blocks.reduce((sum, block) => sum + count(block), 0);
}

async function resolve(
  guest: Guest,
  { maxMappings, maxPageTables }: DumpRequest,
  context: PlanContext,
): Promise<Mapping[]> {
  const { resolveMappings } = await import('./transforms/mapping-resolver.js');
  return resolveMappings(guest, { maxMappings, maxPageTables, ...context });
}

async function planKdumpDump(
  prepared: Prepared,
  format: KdumpFormat,
  encoder: Promise<PageEncoder>,
  request: DumpRequest,
  { signal, onWarning }: PlanContext,
): Promise<FormatPlan> {
  const { guest, exclusion } = prepared;
  if (request.paging)
    throw new VmcoreError('USAGE', 'kdump-compressed format has no place for virtual addresses: paging goes with elf');
  const [{ planKdump, largeBitmapWarning }, { KdumpFramer }, { Flattener }, { PageAligner }, { PageCompressor }] =
    await Promise.all([
      import('./transforms/kdump-layout.js'),
      import('./transforms/kdump-framer.js'),
      import('./transforms/flattener.js'),
      import('./transforms/page-aligner.js'),
      import('./transforms/page-compressor.js'),
    ]);
  const seeks = format.startsWith('kdump-raw-');
  const layout = planKdump(guest, {
    codec: kdumpCodec(format),
    range: request.range,
    exclusion: exclusion ?? undefined,
  });
  const warning = largeBitmapWarning(layout);
  if (warning !== null) onWarning(warning);
  const compressor = new PageCompressor(await encoder, { signal });
  return {
    memoryBytes: layout.memoryBytes,
    pool: compressor.encoder.pool ?? new SlabPool(SLABS),
    stages: [
      new PageAligner({ signal }),
      compressor,
      new KdumpFramer(layout, { signal }),
      ...(seeks ? [] : [new Flattener({ signal })]),
    ],
    // What is to be blanked has to be read before.
    ...(compressor.encoder.readsFiles && !exclusion?.total ? { reader: compressor } : {}),
    seeks,
    pages() {
      const { zero, stored, compressed } = compressor.counts;
      const { pageCount: total, excludedCount } = layout;
      const data = stored + compressed;
      // Pages that are left out come as zeros.
      return { total, data, zero: zero - excludedCount, compressed, ...describeLeftOut(prepared, excludedCount) };
    },
    compressSeconds: () => compressor.encoder.busySeconds,
  };
}

async function planWinDmpDump(guest: Guest, request: DumpRequest, context: PlanContext): Promise<FormatPlan> {
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

function kdumpCodec(format: KdumpFormat): KdumpCodec {
  return format.replace(/^kdump-(raw-)?/, '') as KdumpCodec;
}

async function openEncoder(codec: KdumpCodec, { codec: kind, threads, level }: DumpRequest): Promise<PageEncoder> {
  if (kind === 'portable') {
    const { PortableEncoder } = await import('./codecs/portable-encoder.js');
    return new PortableEncoder(codec, level);
  }
  const { KernelEncoder } = await import('./codecs/kernel-encoder.js');
  return KernelEncoder.open(codec, { threads, level });
}
