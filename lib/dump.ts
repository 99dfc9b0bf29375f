/**
 * Composes a dump: guest, request and sink in, a running pipeline out. The one place that knows all stages.
 */

import { EventEmitter } from 'node:events';
import { pipelinePromise } from 'streamx';
import { VmcoreError } from './errors.js';
import { EM_X86_64 } from './formats/elf.js';
import type { Architecture, Guest } from './guest.js';
import type { MemoryBlock } from './physical-memory.js';
import type { ExtentSink } from './sinks/extent-sink.js';
import { FdSink, type FdSinkOptions } from './sinks/fd-sink.js';
import { FileSink, type FileSinkOptions } from './sinks/file-sink.js';
import { SlabPool } from './slab-pool.js';
import { PAGE_SIZE, type Progress } from './stage.js';
import { ElfFramer } from './transforms/elf-framer.js';
import { type ElfLayout, planElf } from './transforms/elf-layout.js';
import type { Mapping } from './transforms/mapping-list.js';
import { Tally } from './transforms/tally.js';

/** The formats that can be written; names as in QEMU's DumpGuestMemoryFormat. */
export const FORMATS = ['elf'] as const;
export type Format = (typeof FORMATS)[number];

/** What is to be dumped. */
export interface DumpRequest {
  /** `elf` by default */
  readonly format?: Format | undefined;
  /** list virtual addresses by the guest's page tables, so that gdb can use them */
  readonly paging?: boolean | undefined;
  /** only this range of guest physical memory, in bytes; may span holes and the end of memory */
  readonly range?: MemoryBlock | undefined;
  /** bound on the mappings that paging may find; see resolveMappings */
  readonly maxMappings?: number | undefined;
  /** bound on the page tables that paging may read; see resolveMappings */
  readonly maxPageTables?: number | undefined;
}

/** Where a dump goes: a file by its path, an open descriptor, or a sink of the caller's. */
export type DumpTarget =
  | ({ readonly file: string } & FileSinkOptions)
  | ({ readonly fd: number } & FdSinkOptions)
  | ExtentSink;

/** What was made. */
export interface DumpSummary {
  readonly format: Format;
  readonly architecture: Architecture;
  /** where it went */
  readonly output: string;
  /** bytes of guest memory that were read from the source */
  readonly bytesRead: number;
  /** bytes that were written */
  readonly bytesWritten: number;
  /** size of the vmcore, holes included, in bytes */
  readonly size: number;
  /** pages of guest memory by kind */
  readonly pages: {
    readonly total: number;
    /** written */
    readonly data: number;
    /** zeros that were left out; a hole of the source or found by looking */
    readonly zero: number;
  };
  /** PT_LOADs */
  readonly mappings: number;
  readonly seconds: number;
  readonly warnings: readonly string[];
}

/** Slabs on their way at a time: what a dump holds of the guest's memory. */
const SLABS = 16;

/** A dump that is under way. Emits `progress` with a Progress, and `warning` with a text. */
export class DumpJob extends EventEmitter<{ progress: [Progress]; warning: [string] }> {
  readonly #abort = new AbortController();
  readonly #warnings: string[] = [];
  #total = 0;
  #sink: ExtentSink | null = null;

  /** Settles when the dump is done, with what was made; rejects with a VmcoreError. */
  readonly finished: Promise<DumpSummary>;

  constructor(guest: Guest, request: DumpRequest, target: DumpTarget, signal?: AbortSignal) {
    super();
    const abort = () => this.abort();
    if (signal?.aborted) this.abort();
    signal?.addEventListener('abort', abort, { once: true });
    this.finished = this.#run(guest, request, target).finally(() => signal?.removeEventListener('abort', abort));
  }

  /** Guest memory that the sink has taken, and how much there is to take; total is 0 until the layout is known. */
  get progress(): Progress {
    return { completed: this.#sink?.totals.completed ?? 0, total: this.#total };
  }

  /** Ends the dump; `finished` rejects with code ABORTED, and a file that is not whole is removed. */
  abort(): void {
    this.#abort.abort();
  }

  async #run(guest: Guest, request: DumpRequest, target: DumpTarget): Promise<DumpSummary> {
    const started = performance.now();
    const { signal } = this.#abort;
    try {
      const layout = await this.#plan(guest, request);
      signal.throwIfAborted();
      this.#total = layout.memoryBytes;
      const sink = openSink(target, signal);
      this.#sink = sink;
      sink.on('progress' as 'drain', () => this.emit('progress', this.progress));
      const tally = new Tally({ signal });
      const source = guest.chunks({ pool: new SlabPool(SLABS), range: request.range });
      await pipelinePromise(source, tally, new ElfFramer(layout, { signal }), sink);
      return this.#summary(layout, tally, sink, (performance.now() - started) / 1000);
    } catch (error) {
      if (signal.aborted) throw new VmcoreError('ABORTED', 'the dump was aborted', { cause: error });
      throw error;
    }
  }

  async #plan(guest: Guest, request: DumpRequest): Promise<ElfLayout> {
    const mappings = request.paging ? await this.#resolve(guest, request) : undefined;
    return planElf(guest, { range: request.range, mappings });
  }

  async #resolve(guest: Guest, { maxMappings, maxPageTables }: DumpRequest): Promise<Mapping[]> {
    const { resolveMappings } = await import('./transforms/mapping-resolver.js');
    const onWarning = (text: string) => this.#warn(text);
    return resolveMappings(guest, { maxMappings, maxPageTables, onWarning, signal: this.#abort.signal });
  }

  #warn(text: string): void {
    this.#warnings.push(text);
    this.emit('warning', text);
  }

  #summary(layout: ElfLayout, tally: Tally, sink: ExtentSink, seconds: number): DumpSummary {
    const total = Math.ceil(layout.memoryBytes / PAGE_SIZE);
    const zero = Math.floor(sink.totals.skipped / PAGE_SIZE);
    return {
      format: layout.format,
      architecture: layout.machine === EM_X86_64 ? 'x86_64' : 'i386',
      output: sink.target,
      bytesRead: tally.dataBytes,
      bytesWritten: sink.totals.written,
      size: layout.size,
      pages: { total, data: Math.max(0, total - zero), zero },
      mappings: layout.programHeaders.length - 1,
      seconds,
      warnings: this.#warnings,
    };
  }
}

function openSink(target: DumpTarget, signal: AbortSignal): ExtentSink {
  if ('file' in target) return new FileSink(target.file, { ...target, signal });
  if ('fd' in target && !('totals' in target)) return new FdSink(target.fd, { ...target, signal });
  return target as ExtentSink;
}

/**
 * Dumps a guest.
 * @param guest   what is dumped; stays open
 * @param request what of it, and how
 * @param target  where to: `{ file }`, `{ fd }`, or an ExtentSink
 * @param signal  aborts the dump
 * @returns a running job; await `finished`, listen to `progress`
 */
export function dump(guest: Guest, request: DumpRequest, target: DumpTarget, signal?: AbortSignal): DumpJob {
  return new DumpJob(guest, request, target, signal);
}
