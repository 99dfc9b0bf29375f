/** `dump()` and the stages as a program uses them. */

import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, createWriteStream, openSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Writable as NodeWritable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { pipelinePromise } from 'streamx';
import t from 'tap';
import {
  ByteStream,
  type Chunk,
  DumpJob,
  demoGuest,
  dump,
  ElfFramer,
  type Extent,
  ExtentSink,
  FdSink,
  FileSink,
  type Guest,
  nodeStream,
  openElfCore,
  openElfStream,
  openRawMemory,
  type Progress,
  planElf,
  RangeFilter,
  SlabPool,
} from '../lib/index.js';
import { patternGuest } from './guest-fixture.js';
import { plain, plainly } from './plain-chunk.js';

const MIB = 1 << 20;

/** A sink of a caller's own: keeps the bytes, and waits before each when it is slow. */
class MemorySink extends ExtentSink {
  readonly target = 'memory';
  readonly parts: { offset: number; bytes: Buffer }[] = [];
  closed = 0;

  constructor(readonly delay: () => Promise<void> | void = () => {}) {
    super();
  }

  protected override async store({ offset, length, data }: Extent): Promise<void> {
    await this.delay();
    if (data) this.parts.push({ offset, bytes: Buffer.from(data) });
    this.totals[data ? 'written' : 'skipped'] += length;
  }

  protected override close(): void {
    this.closed++;
  }

  get bytes(): Buffer {
    const all = Buffer.alloc(Math.max(...this.parts.map(({ offset, bytes }) => offset + bytes.length)));
    for (const { offset, bytes } of this.parts) bytes.copy(all, offset);
    return all;
  }
}

/** 40 MiB in two blocks: more than a dump holds at a time. */
function guestOf40MiB(): Guest {
  return patternGuest([
    { base: 0, length: 24 * MIB },
    { base: 0x1_0000_0000, length: 16 * MIB },
  ]);
}

function smallGuest(): Guest {
  return patternGuest([{ base: 0x1000, length: 0x3000 }]);
}

t.test('progress goes from 0 to the total, and never back', async (t) => {
  const guest = guestOf40MiB();
  const file = join(t.testdir({}), 'vmcore');
  const job = dump(guest, {}, { file });
  t.ok(job instanceof DumpJob);
  t.equal(job.progress.completed, 0);
  const seen: Progress[] = [];
  job.on('progress', (progress) => {
    t.same(progress, job.progress, 'the event says what the value says');
    seen.push(progress);
  });
  await job.finished;
  t.same([...new Set(seen.map(({ total }) => total))], [40 * MIB]);
  t.ok(seen.every(({ completed }, i) => completed >= (seen[i - 1]?.completed ?? 0)));
  t.equal(seen[0]!.completed, 0, 'headers are no guest memory');
  t.same(seen.at(-1), { completed: 40 * MIB, total: 40 * MIB });
  t.same(job.progress, { completed: 40 * MIB, total: 40 * MIB }, 'and stays');
});

t.test('progress is what the sink has taken: one that waits holds it, and the source with it', async (t) => {
  const guest = guestOf40MiB();
  let open = () => {};
  const gate = new Promise<void>((resolve) => {
    open = resolve;
  });
  let taken = 0;
  const sink = new MemorySink(() => (taken++ < 3 ? undefined : gate));
  const job = dump(guest, {}, sink);
  while (taken < 4) await sleep(1);
  const held = job.progress.completed;
  t.ok(held > 0 && held < 40 * MIB, `${held} bytes: the head and two chunks`);
  await sleep(50);
  t.equal(job.progress.completed, held, 'nothing moves on its own');
  open();
  await job.finished;
  t.equal(job.progress.completed, 40 * MIB);
});

t.test('a machine may run on when its memory has been read, not when it is known where it is', async (t) => {
  const file = join(t.testdir({}), 'memory');
  writeFileSync(file, Buffer.alloc(40 * MIB, 'memory '));
  const guest = await openRawMemory(file);
  t.teardown(() => guest.close());
  let open = () => {};
  const gate = new Promise<void>((resolve) => {
    open = resolve;
  });
  const job = dump(guest, { format: 'kdump-raw-lzo' }, new MemorySink(() => gate));
  let isRead = false;
  job.on('read', () => {
    isRead = true;
  });
  await sleep(200);
  t.notOk(isRead, 'the sink waits, and so does most of the memory');
  open();
  await job.finished;
  t.ok(isRead);
});

t.test('the total is the range', async (t) => {
  const sink = new MemorySink();
  const job = dump(guestOf40MiB(), { range: { base: 24 * MIB - 100, length: 2 ** 40 } }, sink);
  await job.finished;
  t.same(job.progress, { completed: 16 * MIB + 100, total: 16 * MIB + 100 });
});

t.test('the summary', async (t) => {
  const file = join(t.testdir({}), 'vmcore');
  const guest = demoGuest({ memory: 64 * MIB });
  const summary = await dump(guest, { paging: true }, { file }).finished;
  const memory = guest.blocks.reduce((sum, { length }) => sum + length, 0);
  t.match(summary, {
    format: 'elf',
    architecture: 'x86_64',
    output: file,
    size: statSync(file).size,
    pages: { total: memory / 4096 },
    warnings: [],
  });
  t.equal(summary.pages.data + summary.pages.zero, summary.pages.total);
  t.ok(summary.pages.zero > 0);
  t.ok(summary.bytesRead > 0 && summary.bytesRead <= memory);
  t.ok(summary.bytesWritten > 0 && summary.bytesWritten < summary.size);
  t.ok(summary.seconds > 0);
  t.equal(summary.mappings, planElf(guest, {}).programHeaders.length - 1 + (summary.mappings! - guest.blocks.length));
  t.ok(summary.mappings! > guest.blocks.length);
  const flat = await dump(smallGuest(), {}, new MemorySink()).finished;
  t.match(flat, { output: 'memory', mappings: 1, pages: { total: 3, data: 3, zero: 0 }, bytesRead: 0x3000 });
});

t.test('a summary does not depend on how the memory is cut', async (t) => {
  const summary = await dump(smallGuest(), { range: { base: 0x1ffe, length: 4 } }, new MemorySink()).finished;
  t.match(summary, { pages: { total: 1, data: 1, zero: 0 }, bytesRead: 4 });
});

t.test('a file, a descriptor and a sink of the caller’s get the same bytes', async (t) => {
  const folder = t.testdir({});
  const guest = demoGuest({ memory: 64 * MIB });
  await dump(guest, {}, { file: join(folder, 'file') }).finished;
  const bytes = readFileSync(join(folder, 'file'));
  const fd = openSync(join(folder, 'fd'), 'w');
  const { output } = await dump(guest, {}, { fd }).finished;
  t.equal(output, `fd ${fd}`);
  closeSync(fd);
  t.ok(readFileSync(join(folder, 'fd')).equals(bytes), 'a descriptor');
  const sink = new MemorySink();
  await dump(guest, {}, sink).finished;
  t.ok(Buffer.concat([sink.bytes, Buffer.alloc(bytes.length)], bytes.length).equals(bytes), 'a sink');
  t.equal(sink.closed, 1);
  await dump(guest, {}, new FileSink(join(folder, 'sink'))).finished;
  t.ok(readFileSync(join(folder, 'sink')).equals(bytes), 'a FileSink');
  const other = openSync(join(folder, 'other'), 'w');
  await dump(guest, {}, new FdSink(other, { close: true })).finished;
  t.throws(() => closeSync(other), { code: 'EBADF' }, 'closed when asked');
  t.ok(readFileSync(join(folder, 'other')).equals(bytes), 'an FdSink');
  guest.close();
});

t.test('a descriptor of a file that was something else: the vmcore is the same', async (t) => {
  const folder = t.testdir({});
  const guest = demoGuest({ memory: 64 * MIB });
  t.teardown(() => guest.close());
  const want = join(folder, 'want');
  const file = join(folder, 'file');
  for (const format of ['elf', 'kdump-raw-lzo', 'kdump-lzo'] as const) {
    await dump(guest, { format }, { file: want, force: true }).finished;
    const bytes = readFileSync(want);
    const longer = bytes.length + 4096;
    writeFileSync(file, Buffer.alloc(longer, 'x'));
    const fd = openSync(file, 'r+');
    await dump(guest, { format }, { fd, close: true }).finished;
    const found = readFileSync(file);
    t.ok(found.subarray(0, bytes.length).equals(bytes), format);
    t.ok(found.subarray(bytes.length).equals(Buffer.alloc(4096, 'x')), `${format}: what is behind its end stays`);
  }
});

t.test('options of a file are passed on', async (t) => {
  const folder = t.testdir({ vmcore: 'old' });
  const file = join(folder, 'vmcore');
  await t.rejects(dump(smallGuest(), {}, { file }).finished, { code: 'EXISTS' });
  t.equal(readFileSync(file, 'utf8'), 'old');
  await dump(smallGuest(), {}, { file, force: true, sparse: false, sync: true }).finished;
  t.equal(statSync(file).mode & 0o777, 0o600);
  t.same(readdirSync(folder), ['vmcore']);
});

t.test('aborted by a signal, by the job, and before it began', async (t) => {
  const folder = t.testdir({});
  const file = join(folder, 'vmcore');
  const begun = (job: DumpJob) => once(job, 'progress');

  const abort = new AbortController();
  const bySignal = dump(demoGuest({ memory: 2 ** 38 }), {}, { file }, abort.signal);
  await begun(bySignal);
  abort.abort();
  await t.rejects(bySignal.finished, { code: 'ABORTED' }, 'by a signal');
  t.same(readdirSync(folder), []);

  const byJob = dump(demoGuest({ memory: 2 ** 38 }), {}, { file });
  await begun(byJob);
  byJob.abort();
  await t.rejects(byJob.finished, { code: 'ABORTED' }, 'by the job');
  t.same(readdirSync(folder), []);

  const before = dump(smallGuest(), { paging: true }, { file }, AbortSignal.abort());
  await t.rejects(before.finished, { code: 'ABORTED' }, 'before');
  t.same(readdirSync(folder), []);

  const sink = new MemorySink(() => sleep(1));
  const stopped = dump(guestOf40MiB(), {}, sink);
  await begun(stopped);
  stopped.abort();
  await t.rejects(stopped.finished, { code: 'ABORTED' }, 'a sink of the caller’s');
});

t.test('aborted before it began, or while it is planned: nothing is made', async (t) => {
  const folder = t.testdir({});
  const file = join(folder, 'vmcore');
  const guest = demoGuest({ memory: 64 * MIB });
  t.teardown(() => guest.close());
  const aborted = AbortSignal.abort();
  for (const [format, most] of [
    ['elf', 30],
    ['kdump-raw-lzo', 8],
  ] as const) {
    const before = dump(guest, { format }, { file }, aborted);
    await t.rejects(before.finished, { code: 'ABORTED' }, `${format}: before`);
    for (let turns = 0; turns < most; turns++) {
      const job = dump(guest, { format }, { file });
      for (let turn = 0; turn < turns; turn++) await Promise.resolve();
      job.abort();
      await t.rejects(job.finished, { code: 'ABORTED' }, `${format}: after ${turns} turns`);
    }
    const job = dump(guest, { format }, { file });
    setImmediate(() => job.abort());
    await t.rejects(job.finished, { code: 'ABORTED' }, `${format}: while it is planned`);
    t.same(readdirSync(folder), []);
  }

  const read = async () => {
    const options = { range: undefined, signal: aborted };
    for await (const chunk of guest.chunks(options)) t.fail(`a chunk at ${chunk.paddr}`);
  };
  await t.rejects(read(), { code: 'ABORTED' }, 'a source');
  const stage = new ElfFramer(planElf(guest), { signal: aborted });
  await t.rejects(pipelinePromise(guest.chunks(), stage, new MemorySink()), { code: 'ABORTED' }, 'a stage');
  const framer = new ElfFramer(planElf(guest));
  const sink = new FileSink(file, { signal: aborted });
  await sleep(1);
  await t.rejects(pipelinePromise(guest.chunks(), framer, sink), { code: 'ABORTED' }, 'a sink');
  t.same(readdirSync(folder), []);
});

t.test('a target that nothing can be written to', async (t) => {
  const file = join(t.testdir({}), 'vmcore');
  for (const format of ['elf', 'kdump-lzo'] as const) {
    const sink = new FileSink(file, { force: true });
    await dump(smallGuest(), { format }, sink).finished;
    const again = dump(smallGuest(), { format }, sink);
    await t.rejects(again.finished, { code: 'USAGE', message: /vmcore: the sink has been used/ }, `${format}: used`);

    const unused = new MemorySink();
    const job = dump(smallGuest(), { format }, unused);
    unused.destroy();
    await t.rejects(job.finished, { code: 'USAGE' }, `${format}: destroyed while the dump is planned`);

    for (const target of [undefined, null, {}, { file: 1 }, 'file'])
      await t.rejects(dump(smallGuest(), { format }, target as never).finished, { code: 'USAGE' }, format);
  }
});

t.test('a dump that does not come to be leaves no thread behind', async (t) => {
  const lib = new URL('../lib/index.js', import.meta.url);
  const script = `
    import { demoGuest, dump, FileSink } from '${lib}';
    const guest = demoGuest({ memory: 64 << 20 });
    const request = { format: 'kdump-lzo' };
    const sink = new FileSink('used');
    await dump(guest, request, sink).finished;
    await dump(guest, request, sink).finished.catch(({ code }) => console.log(code));
    await dump(guest, request, undefined).finished.catch(({ code }) => console.log(code));
    const job = dump(guest, request, { file: 'aborted' });
    job.abort();
    await job.finished.catch(({ code }) => console.log(code));
  `;
  const args = ['--input-type=module', '-e', script];
  const { stdout } = await promisify(execFile)(process.execPath, args, { cwd: t.testdir({}), timeout: 30_000 });
  t.equal(stdout, 'USAGE\nUSAGE\nABORTED\n', 'the process ends');
});

t.test('a signal that comes too late does nothing', async (t) => {
  const abort = new AbortController();
  const job = dump(smallGuest(), {}, new MemorySink(), abort.signal);
  await job.finished;
  abort.abort();
  t.match(await job.finished, { format: 'elf' });
});

t.test('what fails in a stage is what `finished` rejects with', async (t) => {
  const failing = new MemorySink(() => {
    throw new Error('no more');
  });
  await t.rejects(dump(smallGuest(), {}, failing).finished, { message: 'no more' });
  t.equal(failing.closed, 1);
  await t.rejects(dump(smallGuest(), { range: { base: 0, length: 1 } }, new MemorySink()).finished, {
    code: 'NO_MEMORY',
  });
  await t.rejects(dump(smallGuest(), { paging: true }, new MemorySink()).finished, { code: 'UNSUPPORTED' });
});

t.test('a guest can be dumped again, also after a failure, and two times at once', async (t) => {
  const guest = guestOf40MiB();
  const [one, two] = [new MemorySink(), new MemorySink()];
  await t.rejects(
    dump(
      guest,
      {},
      new MemorySink(() => {
        throw new Error('no');
      }),
    ).finished,
  );
  await Promise.all([dump(guest, {}, one).finished, dump(guest, {}, two).finished]);
  t.ok(one.bytes.equals(two.bytes));
});

t.test('the bound on memory: a dump never has more than its slabs', async (t) => {
  const guest = guestOf40MiB();
  let held = 0;
  let most = 0;
  const pool = new SlabPool(4);
  const chunks = guest.chunks({ pool });
  for await (const chunk of chunks) {
    held++;
    most = Math.max(most, held);
    // Gives back after the next one has been asked for.
    setTimeout(() => {
      held--;
      plain(chunk).release();
    }, 1);
  }
  t.ok(most <= 4, `${most} slabs`);
});

t.test('composed by streamx pipeline', async (t) => {
  const guest = guestOf40MiB();
  const range = { base: 10 * MIB + 5, length: 4 * MIB };
  const folder = t.testdir({});
  const composed = join(folder, 'composed');
  const layout = planElf(guest, { range });
  await pipelinePromise(guest.chunks(), new RangeFilter(range), new ElfFramer(layout), new FileSink(composed));
  const reference = join(folder, 'reference');
  await dump(guest, { range }, { file: reference }).finished;
  t.ok(readFileSync(composed).equals(readFileSync(reference)));
});

t.test('composed by Node’s pipeline', async (t) => {
  const guest = guestOf40MiB();
  const folder = t.testdir({});
  const reference = join(folder, 'reference');
  await dump(guest, {}, { file: reference }).finished;

  const bytes = join(folder, 'bytes');
  await pipeline(
    guest.chunks(),
    nodeStream(new ElfFramer(planElf(guest))),
    nodeStream(new ByteStream()),
    createWriteStream(bytes),
  );
  t.ok(readFileSync(bytes).equals(readFileSync(reference)), 'into a Writable of Node’s');

  const file = join(folder, 'file');
  await pipeline(guest.chunks(), nodeStream(new ElfFramer(planElf(guest))), nodeStream(new FileSink(file)));
  t.ok(readFileSync(file).equals(readFileSync(reference)), 'into a sink of ours');
});

t.test('Node’s pipeline takes an AbortSignal, and reports what fails', async (t) => {
  const folder = t.testdir({});
  const abort = new AbortController();
  const guest = demoGuest({ memory: 2 ** 38 });
  const sink = new FileSink(join(folder, 'vmcore'));
  sink.on('progress' as 'drain', () => abort.abort());
  await t.rejects(
    pipeline(guest.chunks(), nodeStream(new ElfFramer(planElf(guest))), nodeStream(sink), { signal: abort.signal }),
    { name: 'AbortError' },
  );
  while (!sink.destroyed) await sleep(1);
  t.same(readdirSync(folder), [], 'nothing is left');

  const failing = new NodeWritable({ write: (_chunk, _encoding, callback) => callback(new Error('no more')) });
  const framed = nodeStream(new ElfFramer(planElf(guest)));
  await t.rejects(pipeline(guest.chunks(), framed, nodeStream(new ByteStream()), failing), { message: 'no more' });
});

t.test('an AbortSignal given to a stage ends its pipeline', async (t) => {
  const folder = t.testdir({});
  const abort = new AbortController();
  const guest = demoGuest({ memory: 2 ** 38 });
  const sink = new FileSink(join(folder, 'vmcore'), { signal: abort.signal });
  sink.on('progress' as 'drain', () => abort.abort());
  await t.rejects(pipelinePromise(guest.chunks(), new ElfFramer(planElf(guest)), sink));
  t.same(readdirSync(folder), []);
});

t.test('for await over the chunks of a guest', async (t) => {
  const guest = guestOf40MiB();
  let total = 0;
  let last = -1;
  for await (const { paddr, length, data } of plainly(guest.chunks())) {
    t.ok(paddr > last);
    last = paddr;
    total += length;
    t.equal(data!.length, length);
    t.equal(new DataView(data!.buffer, data!.byteOffset).getBigUint64(0, true), BigInt(paddr) | 0x5a00_0000_0000_0000n);
  }
  t.equal(total, 40 * MIB, 'without giving anything back');

  const chunks = guest.chunks();
  for await (const _chunk of chunks) break;
  t.ok(chunks.destroying, 'leaving the loop ends the source');

  const parts: Chunk[] = [];
  for await (const chunk of guest.chunks({ range: { base: 24 * MIB - 10, length: 20 } })) parts.push(chunk);
  t.match(parts, [{ paddr: 24 * MIB - 10, length: 10 }]);
});

t.test('the vmcore of a vmcore is the same, from a file and from a stream', async (t) => {
  const folder = t.testdir({});
  const first = join(folder, 'first');
  await dump(demoGuest({ memory: 64 * MIB }), {}, { file: first }).finished;
  const bytes = readFileSync(first);

  const core = await openElfCore(first);
  await dump(core, {}, { file: join(folder, 'second') }).finished;
  core.close();
  t.ok(readFileSync(join(folder, 'second')).equals(bytes));

  const pieces = async function* () {
    for (let at = 0; at < bytes.length; at += 99_991) yield bytes.subarray(at, at + 99_991);
  };
  const stream = await openElfStream(pieces(), 'pieces');
  await dump(stream, {}, { file: join(folder, 'third') }).finished;
  t.ok(readFileSync(join(folder, 'third')).equals(bytes));
  await t.rejects(dump(stream, {}, new MemorySink()).finished, { code: 'UNSUPPORTED' }, 'a stream passes once');
  stream.close();
});

t.test('a guest whose memory cannot be had leaves no thread behind', async (t) => {
  const guest = patternGuest([{ base: 0, length: MIB }]);
  guest.chunks = () => {
    throw new Error('no memory today');
  };
  const before = readdirSync('/proc/self/task').length;
  for (let i = 0; i < 3; i++) {
    const sink = new MemorySink();
    await t.rejects(dump(guest, { format: 'kdump-raw-lzo', threads: 4 }, sink).finished, {
      message: 'no memory today',
    });
    t.equal(sink.closed, 1, 'and its sink is closed');
  }
  t.ok(readdirSync('/proc/self/task').length <= before + 1, 'threads');
});
