/** The dump of a monitor: one at a time, with QEMU's checks in QEMU's order, and its status. */

import { EventEmitter } from 'node:events';
import { type DumpJob, dump } from '../dump.js';
import { messageOf } from '../errors.js';
import type { Guest } from '../guest.js';
import type { MemoryBlock } from '../physical-memory.js';
import type { DumpRequest, Format } from '../plan.js';
import type { Descriptors } from './descriptors.js';
import { failureText, refusal } from './dump-failure.js';
import { type OpenTarget, openTarget } from './dump-target.js';
import { QmpError } from './qmp-error.js';
import type { Arguments } from './schema.js';

/** QEMU's DumpQueryResult. */
export interface DumpStatus {
  readonly total: number;
  readonly status: 'none' | 'active' | 'completed' | 'failed';
  readonly completed: number;
}

/** What a dump may be asked for, and where it may go. */
export interface DumpControlOptions {
  readonly descriptors: Descriptors;
  /** paths of dumps have to be in it */
  readonly directory?: string | undefined;
  /** ranges with the kdump formats, `threads` */
  readonly extensions?: boolean | undefined;
  /** what every dump is asked for, beyond what the client says */
  readonly defaults?: DumpRequest | undefined;
}

/** A dump under way, and how it ends: the error's text, or null. */
interface Running {
  readonly abort: AbortController;
  job: DumpJob | null;
  ended: Promise<string | null>;
}

/** Emits `completed` with the final status, and the error's text of a dump that failed. */
export class DumpControl extends EventEmitter<{ completed: [DumpStatus, string | null]; warning: [string] }> {
  #running: Running | null = null;
  #last: DumpStatus = { total: 0, status: 'none', completed: 0 };

  constructor(
    private readonly guest: Guest,
    private readonly options: DumpControlOptions,
  ) {
    super();
  }

  /** What `query-dump` answers. */
  get status(): DumpStatus {
    const job = this.#running?.job;
    return job ? { ...this.#last, completed: job.progress.completed } : this.#last;
  }

  /**
   * Starts a dump. Settles when it has been started (`detach`), or has ended.
   * @throws QmpError
   */
  async dump(args: Arguments): Promise<void> {
    if (this.#running) throw new QmpError('There is a dump in process, please wait.');
    const request = this.#request(args);
    const running: Running = { abort: new AbortController(), job: null, ended: Promise.resolve(null) };
    this.#running = running;
    try {
      const opened = await this.#open(args.get<string>('protocol')!, request, running.abort.signal);
      await this.#begin(running, request, opened);
    } catch (error) {
      this.#running = null;
      throw error;
    }
    if (args.get<boolean>('detach')) return;
    const failure = await running.ended;
    if (failure !== null) throw new QmpError(failure);
  }

  /** Ends the dump that is under way. @throws QmpError when there is none */
  cancel(): void {
    if (!this.#running) throw new QmpError('There is no dump in process');
    this.#running.abort.abort();
  }

  /** Ends the dump that is under way, if any, and waits for its end. */
  async close(): Promise<void> {
    this.#running?.abort.abort();
    await this.#running?.ended;
  }

  /** QEMU looks at these before it looks at the target. */
  #request(args: Arguments): DumpRequest {
    const format = args.get<Format>('format') ?? 'elf';
    const paging = args.get<boolean>('paging')!;
    const [begin, length] = [args.number('begin'), args.number('length')];
    const isFiltered = begin !== undefined || length !== undefined;
    const refused = paging || (isFiltered && !this.options.extensions);
    if (format !== 'elf' && refused) throw new QmpError("kdump-compressed format doesn't support paging or filter");
    const range = rangeOf(begin, length);
    const threads = args.number('threads') ?? this.options.defaults?.threads;
    if (threads !== undefined && threads < 1) throw new QmpError("Parameter 'threads' expects a positive number");
    return { ...this.options.defaults, format, paging, range, threads };
  }

  #open(protocol: string, { format = 'elf' }: DumpRequest, signal: AbortSignal): Promise<OpenTarget> {
    const { descriptors, directory } = this.options;
    return openTarget(protocol, { descriptors, directory, seeks: format.startsWith('kdump-raw-'), signal });
  }

  async #begin(running: Running, request: DumpRequest, opened: OpenTarget): Promise<void> {
    const total = overlap(this.guest, request.range);
    const refused = request.range?.length === 0 ? "parameter 'length' expects a non-zero size" : null;
    if (refused !== null || total === 0) {
      this.#last = { total, status: 'failed', completed: 0 };
      await opened.done();
      throw new QmpError(refused ?? 'dump: no guest memory to dump');
    }
    this.#last = { total, status: 'active', completed: 0 };
    running.ended = this.#run(running, request, opened);
  }

  async #run(running: Running, request: DumpRequest, opened: OpenTarget): Promise<string | null> {
    const failure = await this.#carryOut(running, request, opened);
    const completed = running.job?.progress.completed ?? 0;
    await opened.done();
    this.#last = { ...this.#last, status: failure === null ? 'completed' : 'failed', completed };
    this.#running = null;
    this.emit('completed', this.#last, failure);
    return failure;
  }

  async #carryOut(running: Running, request: DumpRequest, { target }: OpenTarget): Promise<string | null> {
    const refused = refusal(this.guest, request.format ?? 'elf');
    if (refused !== null) return refused;
    running.job = dump(this.guest, request, target, running.abort.signal);
    running.job.on('warning', (text) => this.emit('warning', text));
    try {
      await running.job.finished;
      return null;
    } catch (error) {
      // Clients get QEMU's words; whoever runs the server gets the whole of it.
      this.emit('warning', messageOf(error));
      return failureText(error, request, running.job.progress);
    }
  }
}

/** Guest physical addresses end below this (x86: 52 bits). */
const ADDRESSES = 2 ** 52;

/** QEMU takes negative numbers as huge unsigned ones; here they are refused. */
function rangeOf(begin: number | undefined, length: number | undefined): MemoryBlock | undefined {
  if (begin !== undefined && length === undefined) throw new QmpError("Parameter 'length' is missing");
  if (begin === undefined && length !== undefined) throw new QmpError("Parameter 'begin' is missing");
  if (begin === undefined || length === undefined) return undefined;
  if (begin < 0) throw new QmpError("Parameter 'begin' expects a non-negative value");
  if (length < 0) throw new QmpError("Parameter 'length' expects a non-negative value");
  const base = Math.min(begin, ADDRESSES);
  return { base, length: Math.min(length, ADDRESSES - base + 1) };
}

/** Bytes of guest memory in a range. */
function overlap({ blocks }: Guest, range: MemoryBlock = { base: 0, length: ADDRESSES }): number {
  const end = range.base + range.length;
  const sizes = blocks.map(({ base, length }) =>
    Math.max(0, Math.min(base + length, end) - Math.max(base, range.base)),
  );
  return sizes.reduce((sum, size) => sum + size, 0);
}
