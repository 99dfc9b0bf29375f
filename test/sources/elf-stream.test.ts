import { spawn, spawnSync } from 'node:child_process';
import { closeSync, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import fc from 'fast-check';
import t from 'tap';
import { VmcoreError } from '../../lib/model/errors.js';
import type { Guest } from '../../lib/model/guest.js';
import { SlabPool } from '../../lib/model/slab-pool.js';
import { openElfCore } from '../../lib/sources/elf/elf-core.js';
import { releaseChunk } from '../../lib/model/stage.js';
import { openElfStream } from '../../lib/sources/elf/elf-stream.js';
import {
  collect,
  inChunks,
  makeCore,
  makeNote,
  memoryOf,
  PT_NOTE,
  pattern,
  prstatus64,
  Scratch,
  type Segment,
  smallCore,
} from './elf-fixtures.js';

const scratch = new Scratch();
const hasMkfifo = process.platform === 'linux' && spawnSync('mkfifo', ['--version']).status === 0;

/** A core with aliases, memory that is there twice, a gap that no PT_LOAD names, zeros, and a tail behind the memory. */
function nastyCore(): Uint8Array {
  const bytes = pattern(0x5000);
  const note = makeNote('CORE', 1, prstatus64(7n));
  return makeCore({
    segments: [
      { type: PT_NOTE, offset: 0x400, filesz: note.length },
      { paddr: 0x1000, vaddr: 0xffffffff81000000n, offset: 0x1000, filesz: 0x800 },
      { paddr: 0x1800, vaddr: 0xffff888000001800n, offset: 0x1800, filesz: 0x800, memsz: 0x1000 },
      { paddr: 0x1200, vaddr: 0xffff888000001200n, offset: 0x1200, filesz: 0x100 },
      { paddr: 0x1400, vaddr: 0xffffc90000000000n, offset: 0x2400, filesz: 0x800 },
      { paddr: 0x9000, vaddr: 0xffff888000009000n, offset: 0x3000, filesz: 0x1234 },
    ],
    parts: [
      [0x400, note],
      [0x1000, bytes],
      [0x2400, bytes.subarray(0x400, 0xc00)],
    ],
  });
}

function stream(bytes: Uint8Array, sizes?: readonly number[]): Promise<Guest> {
  return openElfStream(inChunks(bytes, sizes), 'stream');
}

function describe(guest: Guest): unknown {
  const { arch, cpus, notes } = guest;
  return {
    arch,
    cpus,
    notes,
    blocks: guest.blocks.map(({ base, length }) => [base, length]),
    missing: guest.missing?.count,
  };
}

t.test('a stream is the same guest as the file, however its bytes come', async (t) => {
  for (const core of [smallCore(), nastyCore()]) {
    const file = await openElfCore(scratch.write(core));
    const [wanted, memory] = [describe(file), await memoryOf(file)];
    await fc.assert(
      fc.asyncProperty(fc.array(fc.integer({ min: 0, max: 3000 }), { maxLength: 20 }), async (sizes) => {
        const guest = await stream(core, sizes);
        t.equal(guest.memory, null);
        t.same(describe(guest), wanted);
        t.same(await memoryOf(guest), memory);
      }),
      { numRuns: 30 },
    );
    file.close();
  }
});

t.test('chunks are full slabs in order of addresses, cut at the same addresses as those of the file', async (t) => {
  const core = smallCore();
  const file = await openElfCore(scratch.write(core));
  const guest = await stream(
    core,
    Array.from({ length: core.length }, () => 1),
  );
  const chunks = await collect(guest.chunks({ pool: new SlabPool(2, 64) }));
  t.same(chunks, await collect(file.chunks({ pool: new SlabPool(2, 64) })));
  t.ok(chunks.every((chunk) => chunk.length === 64 || chunk.data === null));
  file.close();
});

t.test('a range', async (t) => {
  const core = nastyCore();
  const ranges = [
    { base: 0, length: 0x100000 },
    { base: 0x1123, length: 0x1777 },
    { base: 0x2100, length: 0x800 },
    { base: 0x9005, length: 1 },
    { base: 0x5000, length: 0x1000 },
  ];
  for (const range of ranges) {
    const file = await openElfCore(scratch.write(core));
    const guest = await stream(core, [5000, 3000]);
    const join = (chunks: { data: string | null; length: number }[]): string =>
      chunks.map(({ data, length }) => data ?? '00'.repeat(length)).join('');
    const wanted = await collect(file.chunks({ range }));
    const got = await collect(guest.chunks({ range }));
    t.equal(join(got), join(wanted));
    t.equal(got[0]?.paddr, wanted[0]?.paddr);
    file.close();
  }
});

t.test('PT_LOADs that are not sorted come in the order of the file, each with its zeros', async (t) => {
  const segments: Segment[] = [
    { paddr: 0x9000, offset: 0x1000, filesz: 0x100, memsz: 0x200 },
    { paddr: 0x1000, offset: 0x2000, filesz: 0x100, memsz: 0x200 },
  ];
  const guest = await stream(makeCore({ segments, parts: [[0x1000, pattern(0x2000)]] }));
  t.same(
    (await collect(guest.chunks())).map(({ paddr, length, data }) => [paddr, length, data !== null]),
    [
      [0x9000, 0x100, true],
      [0x9100, 0x100, false],
      [0x1000, 0x100, true],
      [0x1100, 0x100, false],
    ],
  );
  t.same(guest.blocks[0], { base: 0x1000, length: 0x200 }, 'blocks are sorted all the same');
});

t.test('memory that comes twice has to be the same both times, or the stream fails in the end', async (t) => {
  const core = nastyCore();
  await t.resolves(stream(core).then((guest) => collect(guest.chunks())));
  core[0x2400 + 0x123]! ^= 1;
  const refused = { code: 'BAD_INPUT', message: /memory at 0x1400 is at byte 5120 and at byte 9216 .* and differs/ };
  for (const sizes of [[], [1, 0x2000, 0x600]])
    await t.rejects(
      stream(core, sizes).then((guest) => collect(guest.chunks())),
      refused,
    );
});

t.test('cut anywhere, a stream is a VmcoreError when it is opened or read', async (t) => {
  const core = nastyCore();
  const needed = 0x3000 + 0x1234;
  for (const step of [1, 97])
    for (let length = step === 1 ? 0 : 0x400; length < (step === 1 ? 0x400 : needed); length += step) {
      const error: unknown = await stream(core.subarray(0, length), [100, 200])
        .then((guest) => collect(guest.chunks()))
        .catch((error: unknown) => error);
      if (!(error instanceof VmcoreError) || error.code !== 'TRUNCATED') t.fail(`cut at ${length}`, { error });
    }
  const guest = await stream(core.subarray(0, needed - 1));
  await t.rejects(collect(guest.chunks()), {
    message: 'stream ends at byte 16947, but memory at 0x9000 reaches to byte 16948',
  });
  await t.resolves(collect((await stream(core.subarray(0, needed))).chunks()));
});

t.test('what a stream cannot do', async (t) => {
  const note = makeNote('CORE', 1, prstatus64(1n));
  const load = { paddr: 0, offset: 0x1000, filesz: 0x100 };
  const behind = makeCore({
    segments: [load, { type: PT_NOTE, offset: 0x2000, filesz: note.length }],
    parts: [[0x2000, note]],
  });
  await t.rejects(stream(behind), {
    code: 'UNSUPPORTED',
    message: /notes .* stand behind the memory .* save it to a file/,
  });
  const far = makeCore({ segments: [load], phnum: 0xffff, shoff: 2 ** 40, parts: [[0x1000, pattern(0x100)]] });
  await t.rejects(stream(far), { code: 'UNSUPPORTED', message: /too far into a stream/ });
  const xen = makeCore({ phnum: 0, shoff: 64, shnum: 3, parts: [[64, new Uint8Array(192)]] });
  await t.rejects(stream(xen), { code: 'UNSUPPORTED', message: /sections only/ });
  const guest = await stream(smallCore());
  await collect(guest.chunks());
  t.throws(() => guest.chunks(), { name: 'VmcoreError', code: 'UNSUPPORTED', message: /only once/ });
});

t.test('a source that fails, and one that yields no bytes', async (t) => {
  async function* failing(): AsyncGenerator<Uint8Array> {
    yield smallCore().subarray(0, 300);
    throw new Error('the cable was pulled');
  }
  await t.rejects(openElfStream(failing(), 'wire'), {
    code: 'READ',
    message: 'cannot read wire: the cable was pulled',
  });
  await t.rejects(openElfStream(Readable.from(['text']) as AsyncIterable<Uint8Array>, 'text'), { code: 'USAGE' });
});

t.test('an iterable is told when nobody reads it any more', async (t) => {
  let returned = 0;
  async function* source(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
    try {
      yield* inChunks(bytes, [100, 100, 100, 100]);
    } finally {
      returned++;
    }
  }
  await t.rejects(openElfStream(source(Buffer.alloc(1000)), 'zeros'));
  t.equal(returned, 1, 'refused');
  const guest = await openElfStream(source(smallCore()), 'core');
  guest.close();
  await new Promise(setImmediate);
  t.equal(returned, 2, 'closed');
  const chunks = (await openElfStream(source(smallCore()), 'core')).chunks();
  for await (const chunk of chunks) {
    releaseChunk(chunk);
    break;
  }
  t.equal(returned, 3, 'left in the middle');
});

t.test('a guest of 512 MiB takes four slabs', async (t) => {
  const total = 512 << 20;
  const piece = pattern(100_000);
  async function* endless(): AsyncGenerator<Uint8Array> {
    yield makeCore({ segments: [{ offset: 0x1000, filesz: total }], parts: [[0x1000, new Uint8Array(0)]] });
    for (let sent = 0; sent < total; sent += piece.length) yield piece;
  }
  const pool = new SlabPool(4);
  const guest = await openElfStream(endless(), 'endless');
  const before = process.memoryUsage.rss();
  let peak = 0;
  let bytes = 0;
  for await (const chunk of guest.chunks({ pool })) {
    bytes += chunk.length;
    peak = Math.max(peak, process.memoryUsage.rss());
    releaseChunk(chunk);
  }
  t.equal(bytes, total);
  t.ok(peak - before < 64 << 20, `grew by ${(peak - before) >> 20} MiB`);
});

t.test('a descriptor: a pipe, a file, and neither is closed', { skip: hasMkfifo ? false : 'no mkfifo' }, async (t) => {
  const core = nastyCore();
  const path = scratch.write(core, 'descriptor');
  const file = await openElfCore(path);
  const wanted = await memoryOf(file);
  file.close();

  const fifo = join(scratch.directory, 'fifo');
  spawnSync('mkfifo', [fifo]);
  const writer = spawn('sh', ['-c', 'dd if="$0" of="$1" bs=777', path, fifo], { stdio: 'ignore' });
  const written = new Promise((resolve) => writer.on('exit', resolve));
  for (const fd of [openSync(fifo, 'r'), openSync(path, 'r')]) {
    const guest = await openElfStream({ fd }, 'descriptor');
    t.same(await memoryOf(guest), wanted);
    guest.close();
    t.doesNotThrow(() => closeSync(fd), 'still open');
  }
  t.equal(await written, 0, 'all was read: the writer is content');
  await t.rejects(openElfStream({ fd: 12345 }, 'nothing'), { code: 'READ', message: /bad file descriptor/ });
});

t.test('a child that writes to our end of a socket', async (t) => {
  const path = scratch.write(nastyCore(), 'socket');
  const child = spawn('cat', [path], { stdio: ['ignore', 'pipe', 'inherit'] });
  const guest = await openElfStream(child.stdout, 'child');
  t.same([...(await memoryOf(guest)).keys()], [0x1000, 0x9000]);
});

t.test('a silent writer does not keep us', { skip: hasMkfifo ? false : 'no mkfifo' }, async (t) => {
  const fifo = join(scratch.directory, 'silent');
  spawnSync('mkfifo', [fifo]);
  // Writes the headers and then nothing, until it is told to go.
  const path = scratch.write(smallCore().subarray(0, 0x380), 'head');
  const writer = spawn('sh', ['-c', 'exec > "$1"; cat "$0"; exec sleep 60', path, fifo], { stdio: 'ignore' });
  const fd = openSync(fifo, 'r');
  const guest = await openElfStream({ fd }, 'silent');
  const abort = new AbortController();
  const chunks = guest.chunks({ signal: abort.signal } as object);
  setTimeout(() => abort.abort(), 100);
  const started = performance.now();
  await t.rejects(collect(chunks));
  t.ok(performance.now() - started < 5000);
  writer.kill();
  closeSync(fd);
  t.throws(() => readSync(fd, new Uint8Array(1)));
});
