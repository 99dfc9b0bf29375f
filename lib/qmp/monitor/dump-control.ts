/** The dump of a monitor: one at a time, with QEMU's checks in QEMU's order, and its status. */

import { EventEmitter } from 'node:events';
import { type DumpJob, dump } from '../../dump.js';
import { messageOf, VmcoreError } from '../../model/errors.js';
import type { Guest } from '../../model/guest.js';
import type { MemoryBlock } from '../../model/physical-memory.js';
import type { DumpRequest, Format } from '../../request.js';
import type { Descriptors } from './descriptors.js';
import { failureText, lendFailureText, refusal } from './dump-failure.js';
import { type OpenTarget, openTarget } from './dump-target.js';
import type { Reply } from '../protocol/json-text.js';
import { eventMessage } from './monitor.js';
import { QmpError } from '../protocol/qmp-error.js';
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

/** A guest, for one dump. */
export interface LentGuest {
  readonly guest: Guest;
  /** its memory has been read: a machine that is alive may run on. Never rejects; later calls wait for the first */
  release(): Promise<void>;
  /** the dump is over; released before */
  close(): void;
}

/**
 * Gives a guest for each dump.
 * @param dump ends the guest's opening; and is aborted, with a VmcoreError as its reason, when the guest is spoilt later
 * @throws VmcoreError
 */
export type LendGuest = (dump: AbortController) => Promise<LentGuest>;

/** A dump under way. */
interface Running {
  readonly abort: AbortController;
  job: DumpJob | null;
  /** settles when it is under way no more */
  over: Promise<unknown>;
}

/** A dump that has begun, and how it ends: the error's text, or null. */
interface Begun {
  readonly ended: Promise<string | null>;
}

/** What QEMU says to commands that cannot be carried out while it dumps. */
export function dumpInProcess(): QmpError {
  return new QmpError('There is a dump in process, please wait.');
}

/** Emits `completed` with the final status, and the error's text of a dump that failed. */
export class DumpControl extends EventEmitter<{ completed: [DumpStatus, string | null]; warning: [string] }> {
  #running: Running | null = null;
  #last: DumpStatus = { total: 0, status: 'none', completed: 0 };

  constructor(
    private readonly lend: LendGuest,
    private readonly options: DumpControlOptions,
  ) {
    super();
  }

  /** Whether a dump is under way. */
  get active(): boolean {
    return this.#running !== null;
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
    if (this.#running) throw dumpInProcess();
    const request = this.#request(args);
    const running: Running = { abort: new AbortController(), job: null, over: Promise.resolve() };
    this.#running = running;
    const begun = this.#begin(running, request, args.get<string>('protocol')!);
    running.over = begun.then(({ ended }) => ended).catch(() => {});
    const { ended } = await begun;
    if (args.get<boolean>('detach')) return;
    const failure = await ended;
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
    await this.settle();
  }

  /** Waits for the end of the dump that is under way, if any. */
  async settle(): Promise<void> {
    await this.#running?.over;
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

  async #begin(running: Running, request: DumpRequest, protocol: string): Promise<Begun> {
    try {
      const opened = await this.#open(protocol, request, running.abort.signal);
      const lent = await this.#borrow(running, opened);
      await this.#check(request, opened, lent);
      return { ended: this.#run(running, request, opened, lent) };
    } catch (error) {
      this.#running = null;
      throw error;
    }
  }

  async #borrow({ abort }: Running, opened: OpenTarget): Promise<LentGuest> {
    this.#last = { total: 0, status: 'active', completed: 0 };
    try {
      return await this.lend(abort);
    } catch (error) {
      this.#last = { total: 0, status: 'failed', completed: 0 };
      await opened.done().catch(() => {});
      this.emit('warning', messageOf(error));
      throw new QmpError(lendFailureText(error, abort.signal));
    }
  }

  /** QEMU looks at these when the guest stands still already. */
  async #check({ range }: DumpRequest, opened: OpenTarget, lent: LentGuest): Promise<void> {
    const total = overlap(lent.guest, range);
    const refused = range?.length === 0 ? "parameter 'length' expects a non-zero size" : null;
    if (refused !== null || total === 0) {
      this.#last = { total, status: 'failed', completed: 0 };
      await this.#giveBack(opened, lent);
      throw new QmpError(refused ?? 'dump: no guest memory to dump');
    }
    this.#last = { total, status: 'active', completed: 0 };
  }

  /** Whatever fails: the dump is over, its end is told, and the next one may begin. */
  async #run(running: Running, request: DumpRequest, opened: OpenTarget, lent: LentGuest): Promise<string | null> {
    const failed = await this.#carryOut(running, request, opened, lent);
    const completed = running.job?.progress.completed ?? 0;
    const unclosed = await this.#giveBack(opened, lent);
    // A dump that has failed already is not told to have failed by what that led to.
    const failure = failed ?? (unclosed === null ? null : this.#explain(unclosed, running, request));
    this.#last = { ...this.#last, status: failure === null ? 'completed' : 'failed', completed };
    this.#running = null;
    this.emit('completed', this.#last, failure);
    return failure;
  }

  /** All of it, whatever fails. @returns why the target could not be closed: what was written may be lost; or null */
  async #giveBack(opened: OpenTarget, lent: LentGuest): Promise<unknown> {
    const released = lent.release().finally(() => lent.close());
    const [target, guest] = await Promise.allSettled([opened.done(), released]);
    if (guest.status === 'rejected') this.emit('warning', messageOf(guest.reason));
    return target.status === 'rejected' ? target.reason : null;
  }

  async #carryOut(
    running: Running,
    request: DumpRequest,
    { target }: OpenTarget,
    { guest, release }: LentGuest,
  ): Promise<string | null> {
    const refused = refusal(guest, request.format ?? 'elf');
    if (refused !== null) return refused;
    const { signal } = running.abort;
    running.job = dump(guest, request, target, signal);
    running.job.on('warning', (text) => this.emit('warning', text));
    running.job.once('read', () => void release());
    try {
      await running.job.finished;
      return null;
    } catch (error) {
      // The dump is whole, and that is what clients ask about.
      if (error instanceof VmcoreError && error.code === 'RESUME') {
        this.emit('warning', error.message);
        return null;
      }
      return this.#explain(signal.reason instanceof VmcoreError ? signal.reason : error, running, request);
    }
  }

  /** Clients get QEMU's words; whoever runs the server gets the whole of it. */
  #explain(cause: unknown, { job }: Running, request: DumpRequest): string {
    this.emit('warning', messageOf(cause));
    return failureText(cause, request, job?.progress ?? { completed: 0, total: 0 });
  }
}

/** The message of DUMP_COMPLETED. */
export function completionMessage(result: DumpStatus, error: string | null): Reply {
  return eventMessage('DUMP_COMPLETED', { result: { ...result }, error: error ?? undefined });
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
