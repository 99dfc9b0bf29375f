/**
 * Composes a dump: guest, request and sink in, a running pipeline out. With lib/plan.ts the one place that knows all
 * stages.
 */

import { EventEmitter } from 'node:events';
import { pipelinePromise } from 'streamx';
import { VmcoreError } from './model/errors.js';
import type { Architecture, Guest } from './model/guest.js';
import { type DumpedPages, type Plan, planDump } from './plan.js';
import type { DumpRequest, Format } from './request.js';
import { resumeAfter, resumeAfterFailure } from './resume.js';
import { Scope } from './model/scope.js';
import { ExtentSink } from './sinks/extent-sink.js';
import { FdSink, type FdSinkOptions } from './sinks/fd-sink.js';
import { FileSink, type FileSinkOptions } from './sinks/file-sink.js';
import { findFileTarget } from './sinks/file-target.js';
import { closed, type Progress } from './model/stage.js';
import { guestLongMode } from './layouts/elf-layout.js';
import { Tally } from './transforms/tally.js';

/** Where a dump goes: a file by its path, an open descriptor, or a sink of the caller's. */
export type DumpTarget =
  ({ readonly file: string } & FileSinkOptions) | ({ readonly fd: number } & FdSinkOptions) | ExtentSink;

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
  readonly pages: DumpedPages;
  /** elf: PT_LOADs */
  readonly mappings?: number | undefined;
  readonly seconds: number;
  /** kdump: seconds spent compressing, those of all threads added up */
  readonly compressSeconds?: number | undefined;
  /** guest physical address where VMCOREINFO was found ("0x…"), when the guest came without and it was looked for */
  readonly vmcoreinfoAt?: string | undefined;
  readonly warnings: readonly string[];
}

/**
 * A dump that is under way. Emits `progress` with a Progress, `warning` with a text, and `read` when it needs the guest's
 * memory no more: a live machine may run on, while what was read is compressed and written.
 */
export class DumpJob extends EventEmitter<{ progress: [Progress]; warning: [string]; read: [] }> {
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

  /** Whatever happens, all that the dump has acquired is gone when it has ended, and a live machine runs on. */
  async #run(guest: Guest, request: DumpRequest, target: DumpTarget): Promise<DumpSummary> {
    const scope = new Scope();
    const warn = (text: string) => this.#warn(text);
    let summary: DumpSummary;
    try {
      summary = await this.#carryOut(guest, request, target, scope);
      await scope.close();
    } catch (error) {
      const failure = this.#failure(error);
      // What goes wrong now comes of what went wrong before.
      await scope.close().catch(() => {});
      throw await resumeAfterFailure(guest, failure, warn);
    }
    await resumeAfter(guest, summary.output);
    return summary;
  }

  async #carryOut(guest: Guest, request: DumpRequest, target: DumpTarget, scope: Scope): Promise<DumpSummary> {
    const started = performance.now();
    const { signal } = this.#abort;
    signal.throwIfAborted();
    checkTarget(target);
    // What cannot be written there is told before a guest is read for it.
    if ('file' in target) await findFileTarget(target.file, target.force ?? false);
    const plan = await planDump(guest, request, { signal, scope, onWarning: (text) => this.#warn(text) });
    signal.throwIfAborted();
    checkTarget(target);
    const sink = sinkOf(target, plan, signal);
    scope.defer(() => closed(sink));
    const tally = new Tally({ signal });
    await this.#stream(guest, request, plan, tally, sink, scope);
    return {
      format: request.format ?? 'elf',
      architecture: guestLongMode(plan.guest) ? 'x86_64' : 'i386',
      output: sink.target,
      bytesRead: tally.dataBytes,
      bytesWritten: sink.totals.written,
      size: sink.totals.size,
      pages: plan.pages(sink),
      mappings: plan.mappings,
      seconds: (performance.now() - started) / 1000,
      compressSeconds: plan.compressSeconds?.(),
      vmcoreinfoAt: plan.vmcoreinfoAt === null ? undefined : `0x${plan.vmcoreinfoAt.toString(16)}`,
      warnings: this.#warnings,
    };
  }

  /** Runs the pipeline to its end. */
  async #stream(
    { live }: Guest,
    { range }: DumpRequest,
    plan: Plan,
    tally: Tally,
    sink: ExtentSink,
    scope: Scope,
  ): Promise<void> {
    const { guest, pool, exclusion, stages, reader } = plan;
    this.#total = plan.memoryBytes;
    this.#sink = sink;
    for (const stage of [tally, ...stages]) scope.defer(() => closed(stage));
    scope.defer(() => pool.close(new VmcoreError('ABORTED', 'the dump has ended')));
    const skip = exclusion ?? undefined;
    const chunks = plan.chunks?.() ?? guest.chunks({ pool, range, skip, deferred: reader !== undefined });
    scope.defer(() => closed(chunks));
    const report = () => this.emit('progress', this.progress);
    sink.on('progress' as 'drain', report);
    scope.defer(() => void sink.off('progress' as 'drain', report));
    (reader ?? chunks).once('end', () => {
      this.emit('read');
      // How that goes is asked at the end.
      live?.release().catch(() => {});
    });
    await pipelinePromise(chunks, tally, ...stages, sink);
  }

  #failure(error: unknown): unknown {
    if (!this.#abort.signal.aborted) return error;
    return new VmcoreError('ABORTED', 'the dump was aborted', { cause: error });
  }

  #warn(text: string): void {
    this.#warnings.push(text);
    this.emit('warning', text);
  }
}

/** @throws VmcoreError USAGE when nothing can be written there */
function checkTarget(target: DumpTarget): void {
  if (target instanceof ExtentSink) {
    if (target.destroying) throw new VmcoreError('USAGE', `${target.target}: the sink has been used; make a new one`);
    return;
  }
  // What programs without types may give.
  const { file, fd } = ((target as unknown) ?? {}) as Readonly<Record<string, unknown>>;
  if (typeof file !== 'string' && typeof fd !== 'number')
    throw new VmcoreError('USAGE', 'the target of a dump is { file }, { fd } or an ExtentSink');
}

/** The sink of a dump that is planned. */
function sinkOf(target: DumpTarget, { seeks }: Plan, signal: AbortSignal): ExtentSink {
  if (target instanceof ExtentSink) return target;
  if ('file' in target) return new FileSink(target.file, { ...target, signal });
  return new FdSink(target.fd, { seek: seeks, ...target, signal });
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
