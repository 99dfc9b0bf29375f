/** What a process holds after dumps that were finished, that failed and that were aborted: what it held before. */

import { getEventListeners } from 'node:events';
import { closeSync, existsSync, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pipelinePromise } from 'streamx';
import t, { type Test } from 'tap';
import { type DumpJob, type DumpTarget, dump } from '../../lib/dump.js';
import { VmcoreError } from '../../lib/model/errors.js';
import type { Format } from '../../lib/request.js';
import { FdSink } from '../../lib/sinks/fd-sink.js';
import { FileSink } from '../../lib/sinks/file-sink.js';
import { openGuest, openStream } from '../../lib/open-guest.js';
import { ElfFramer } from '../../lib/transforms/elf-framer.js';
import { planElf } from '../../lib/layouts/elf-layout.js';
import { skipUnless } from '../tools.js';
import { FORMATS } from './axes.js';
import { type HeldMemory, heldMemory } from './held-memory.js';
import { heldBeyond, processState } from './process-state.js';
import { SourceFiles } from './sources.js';

const DUMPS = 100;

/** Data of the guests that are dumped: more than a dump with two threads has memory for. */
const DATA_BYTES = 40 << 20;
const THREADS = 2;

/** No test waits longer for a dump that does not end, in milliseconds. */
const PATIENCE = 60_000;

/**
 * What may be there more. Buffers: those of Node's own, of which a slab is larger. Addresses: one memory of an encoder,
 * which is kept for the next one.
 */
const MARGIN = { buffers: 2 ** 20, addresses: 11 * 2 ** 30 } as const;

/** Collections of garbage that are waited for before what is held counts as kept. */
const LOOKS = 20;

/** A device that is always full. */
const FULL = '/dev/full';
const skip = skipUnless([FULL, '/proc/self/task'].filter((path) => !existsSync(path)));

type End = 'finished' | 'failed' | 'aborted';
const ENDS: readonly End[] = ['finished', 'failed', 'aborted'];
const SOURCES = ['guest.json', 'guest.elf', 'guest.kdump'];

/** Everything that a dump may forget to let go of. */
class Dumps {
  readonly shared = new AbortController();
  readonly #file: string;
  #full = openSync(FULL, 'w');

  constructor(
    readonly t: Test,
    readonly files: SourceFiles,
  ) {
    this.#file = join(files.folder, 'vmcore');
  }

  get listeners(): number {
    return getEventListeners(this.shared.signal, 'abort').length;
  }

  /** The how-many-th dump: all ends of all formats of all sources, one after the other. */
  async dump(number: number): Promise<void> {
    const end = ENDS[number % ENDS.length]!;
    const format = FORMATS[Math.floor(number / ENDS.length) % FORMATS.length]!;
    const source =
      SOURCES[
        number % SOURCES.length === 0 ? Math.floor(number / ENDS.length) % SOURCES.length : number % SOURCES.length
      ]!;
    await this.#ended(`${number}: ${source} to ${format}, ${end}`, end, this.#dump(source, format, end));
    rmSync(this.#file, { force: true });
  }

  /** The same of a pipeline that was composed by hand. */
  async compose(end: End): Promise<void> {
    await this.#ended(`composed, ${end}`, end, this.#compose(end));
    rmSync(this.#file, { force: true });
  }

  close(): void {
    closeSync(this.#full);
  }

  async #ended(title: string, end: End, work: Promise<unknown>): Promise<void> {
    const result = work.then(
      () => 'finished',
      (error: unknown) => error,
    );
    const timer = new AbortController();
    const hangs = sleep(PATIENCE, 'hangs', { signal: timer.signal }).catch(() => {});
    const outcome = await Promise.race([result, hangs]);
    // A timer that runs would hold the outcome, and an error holds whoever threw it.
    timer.abort();
    const code = outcome instanceof VmcoreError ? outcome.code : outcome;
    this.t.equal(code, { finished: 'finished', failed: 'WRITE', aborted: 'ABORTED' }[end], title);
    if (outcome === 'hangs') this.t.bailout(`${title}: does not end`);
  }

  async #dump(source: string, format: Format, end: End): Promise<void> {
    const guest = await openGuest(this.files.path(source));
    try {
      const target: DumpTarget = end === 'failed' ? { fd: this.#full, seek: false } : { file: this.#file, force: true };
      const job = dump(guest, { format, threads: THREADS }, target, this.shared.signal);
      if (end === 'aborted') abortHalfway(job);
      await job.finished;
    } finally {
      guest.close();
    }
  }

  async #compose(end: End): Promise<void> {
    const guest = await openGuest(this.files.path('guest.json'));
    const { signal } = this.shared;
    const sink = end === 'failed' ? new FdSink(this.#full, { signal }) : new FileSink(this.#file, { signal });
    const framer = new ElfFramer(planElf(guest), { signal });
    if (end === 'aborted') sink.once('progress' as 'drain', () => sink.destroy(new VmcoreError('ABORTED', 'enough')));
    try {
      await pipelinePromise(guest.chunks(), framer, sink);
    } finally {
      guest.close();
    }
  }
}

function abortHalfway(job: DumpJob): void {
  job.on('progress', ({ completed, total }) => {
    if (completed > total / 2) job.abort();
  });
}

t.test('after each of many dumps a process holds what it held before', { skip }, async (t) => {
  const dumps = new Dumps(t, await SourceFiles.make(t.testdir({}), DATA_BYTES));
  t.teardown(() => dumps.close());
  // Once each: Node starts threads that stay, and loads modules.
  for (let number = 0; number < ENDS.length * FORMATS.length; number++) await dumps.dump(number);
  const before = { ...processState('self'), ...(await heldMemory()), listeners: dumps.listeners };
  for (let number = 0; number < DUMPS; number++) {
    await dumps.dump(number);
    t.same(await heldBeyond('self', before), [], 'threads and descriptors');
    t.equal(dumps.listeners, before.listeners, 'listeners on a signal that dumps share');
    const { buffers, addresses } = await memoryWithin(before);
    t.ok(buffers - before.buffers < MARGIN.buffers, `buffers: ${buffers - before.buffers} bytes more`);
    t.ok(addresses - before.addresses < MARGIN.addresses, `addresses: ${addresses - before.addresses} bytes more`);
  }
});

/** What is held, once it is within the margins: what the last turn of the loop had in its hands goes with a later one. */
async function memoryWithin(before: HeldMemory): Promise<HeldMemory> {
  for (let looks = 1; ; looks++) {
    const held = await heldMemory();
    const isMore = (name: keyof HeldMemory) => held[name] - before[name] >= MARGIN[name];
    if (looks === LOOKS || !(isMore('buffers') || isMore('addresses'))) return held;
  }
}

t.test('so it does after a guest that comes as a stream has been dumped twice', { skip }, async (t) => {
  const files = await SourceFiles.make(t.testdir({}), DATA_BYTES);
  const guest = await openStream({ fd: openSync(files.path('guest.elf'), 'r'), owned: true }, 'a stream');
  await dump(guest, { format: 'elf' }, { file: files.path('first') }).finished;
  const before = processState('self');
  const again = dump(guest, { format: 'kdump-raw-lzo', threads: THREADS }, { file: files.path('second') }).finished;
  await t.rejects(again, { code: 'UNSUPPORTED' });
  t.same(await heldBeyond('self', before), [], 'threads and descriptors');
  t.notOk(existsSync(files.path('second')));
  guest.close();
});

t.test('so it does after pipelines that were composed by hand', { skip }, async (t) => {
  const dumps = new Dumps(t, await SourceFiles.make(t.testdir({}), DATA_BYTES));
  t.teardown(() => dumps.close());
  await dumps.compose('finished');
  const before = processState('self');
  for (const end of ENDS) {
    await dumps.compose(end);
    t.same(await heldBeyond('self', before), [], `${end}: threads and descriptors`);
    t.equal(dumps.listeners, 0, `${end}: listeners on a signal that stages share`);
  }
});
