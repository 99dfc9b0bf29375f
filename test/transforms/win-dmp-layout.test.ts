/** win-dmp without QEMU: what is planned, what is refused, what hostile notes lead to. */

import fc from 'fast-check';
import { pipelinePromise } from 'streamx';
import t from 'tap';
import { VmcoreError } from '../../lib/model/errors.js';
import { encodeNote } from '../../lib/formats/notes.js';
import { encodeWinContext, setWinDmpFields } from '../../lib/formats/win-dmp.js';
import type { Guest } from '../../lib/model/guest.js';
import type { MemoryGuest } from '../../lib/sources/memory-guest.js';
import { runChunks } from '../../lib/sources/run-source.js';
import { MemoryOverlay } from '../../lib/transforms/memory-overlay.js';
import { WinDmpFramer } from '../../lib/transforms/win-dmp-framer.js';
import { planWinDmp, type WinDmpLayout, type WinDmpLayoutOptions } from '../../lib/layouts/win-dmp-layout.js';
import { Collector } from '../kdump-fixture.js';
import { MEMORY, PAGES, PLACES, type WindowsFixtureOptions, windowsGuestFixture } from '../windows-fixture.js';
import { winDmpHeaderOf } from '../../lib/windows/header-note.js';

const BITS = [64, 32] as const;

function plan(guest: Guest, options?: WinDmpLayoutOptions): WinDmpLayout {
  return planWinDmp(guest, winDmpHeaderOf(guest), options);
}

/** The dump as bytes. */
async function dumped(guest: MemoryGuest, layout = plan(guest)): Promise<Collector> {
  const sink = new Collector();
  await pipelinePromise(
    runChunks(guest.memory, layout.runs),
    new MemoryOverlay(layout.pages),
    new WinDmpFramer(layout),
    sink,
  );
  return sink;
}

/** What the file must be, put together without a stage. */
function expected({ bytes, guest }: { bytes: Uint8Array; guest: MemoryGuest }, frames: readonly number[]): Buffer {
  const { header, runs, bits } = plan(guest);
  const memory = Uint8Array.from(bytes);
  frames.forEach((frame, i) => {
    memory.set(encodeWinContext(guest.cpus[i]!, bits), frame);
  });
  const parts = runs.map(({ base, length }) => {
    const part = Buffer.alloc(length);
    part.set(memory.subarray(Math.min(base, MEMORY), Math.min(base + length, MEMORY)));
    return part;
  });
  return Buffer.concat([header, ...parts]);
}

t.test('the dump of a guest of two processors', async (t) => {
  for (const bits of BITS) {
    const fixture = windowsGuestFixture({ bits, cpus: 2 });
    const before = Uint8Array.from(fixture.bytes);
    const { bytes, memory } = await dumped(fixture.guest);
    t.ok(bytes.equals(expected(fixture, [PLACES.frame, PLACES.frame1])), `${bits} bit`);
    t.equal(memory, bytes.length, 'progress is what was written');
    t.same(fixture.bytes, before, 'the guest is as it was');
  }
});

t.test('runs in any order, over each other, over the end of memory', async (t) => {
  const run = fc.record({ BasePage: fc.bigInt(0n, 80n), PageCount: fc.bigInt(0n, 70n) });
  await fc.assert(
    fc.asyncProperty(fc.constantFrom(...BITS), fc.array(run, { maxLength: 8 }), async (bits, runs) => {
      const fixture = windowsGuestFixture({ bits, runs });
      const layout = plan(fixture.guest);
      const { bytes } = await dumped(fixture.guest, layout);
      t.ok(bytes.equals(expected(fixture, [PLACES.frame])));
      t.equal(layout.size, bytes.length);
      const missing = runs.flatMap(({ BasePage, PageCount }) =>
        Array.from({ length: Number(PageCount) }, (_, i) => Number(BasePage) + i).filter((pfn) => pfn >= PAGES),
      );
      t.equal(layout.missingBytes, missing.length * 4096);
    }),
    { numRuns: 60 },
  );
});

t.test('NumberOfPages decides RequiredDumpSpace, and nothing else', async (t) => {
  const changeHeader = (header: Uint8Array) => setWinDmpFields(header, 64, { NumberOfPages: 1000n });
  const { guest } = windowsGuestFixture({ changeHeader });
  t.match(plan(guest), { requiredBytes: 0x2000 + 1000 * 4096, size: 0x2000 + MEMORY });
});

t.test('more CPUs, or fewer, than processors: a warning, and the rest is good', async (t) => {
  for (const [cpus, processors, frames, text] of [
    [2, 1, [PLACES.frame], /^win-dump: number of CPUs \(2\) is bigger than NumberProcessors \(1\)/],
    [1, 2, [PLACES.frame], /^win-dump: number of CPUs \(1\) is smaller than NumberProcessors \(2\)/],
    [0, 2, [], /^win-dump: number of CPUs \(0\) is smaller/],
    [1, 0xffff_ffff, [PLACES.frame], /smaller than NumberProcessors \(4294967295\)/],
  ] as const) {
    const fixture = windowsGuestFixture({ cpus, processors });
    const warnings: string[] = [];
    plan(fixture.guest, { onWarning: (text) => warnings.push(text) });
    t.match(warnings, [text]);
    t.equal(warnings.length, 1);
    const { bytes } = await dumped(fixture.guest);
    t.ok(bytes.equals(expected(fixture, frames)));
  }
});

t.test('a guest without control registers: those that such a kernel has', async (t) => {
  for (const bits of BITS) {
    const fixture = windowsGuestFixture({ bits });
    const cpus = fixture.guest.cpus.map((cpu) => ({ ...cpu, system: null }));
    const guest = Object.assign(fixture.guest, { cpus });
    const { bytes } = await dumped(guest);
    t.ok(bytes.equals(expected({ guest, bytes: fixture.bytes }, [PLACES.frame])));
  }
});

function refusal(options: WindowsFixtureOptions): unknown {
  const { guest } = windowsGuestFixture(options);
  try {
    return plan(guest).format;
  } catch (error) {
    return error instanceof VmcoreError && error.code === 'BAD_INPUT' ? error.message : error;
  }
}

t.test('refusals that QEMU has no words for, or crashes instead of', async (t) => {
  const header = (values: Parameters<typeof setWinDmpFields>[2]) =>
    refusal({ changeHeader: (bytes) => setWinDmpFields(bytes, 64, values) });
  t.equal(header({ NumberOfRuns: 44n }), 'win-dump: the dump header claims 44 runs of memory, and has room for 43');
  t.equal(
    header({ NumberOfRuns: 0xffff_ffffn }),
    'win-dump: the dump header claims 4294967295 runs of memory, and has room for 43',
  );
  const run = (BasePage: bigint, PageCount: bigint) => refusal({ runs: [{ BasePage, PageCount }] });
  t.match(run(0n, 1n << 52n), /^win-dump: a run of 0x10000000000000 pages from page 0x0 on ends above the 52 bits/);
  t.match(run((1n << 64n) - 1n, 1n), /ends above the 52 bits/);
  t.match(run((1n << 64n) - 1n, (1n << 64n) - 1n), /ends above the 52 bits/);
  t.match(
    run(0n, 1n << 40n),
    /^win-dump: the runs of the dump header cover 4503599627108352 bytes that are not memory/,
  );
  t.equal(run(1n << 39n, 4n), 'win-dmp', 'a few pages anywhere are zeros');
});

t.test('a note that announces less than it is, more, or nothing', async (t) => {
  const { guest } = windowsGuestFixture();
  const header = winDmpHeaderOf(guest);
  const withNote = (name: string, desc: Uint8Array) => () =>
    winDmpHeaderOf(Object.assign(guest, { notes: [encodeNote(name, 0, desc)] }));
  const message = 'win-dump: invalid vmcoreinfo note size';
  t.throws(withNote('VMCOREINFO', header.subarray(0, 0x1fff - 4)), { message });
  t.throws(withNote('VMCOREINFO', header.subarray(0, 16)), { message });
  t.throws(withNote('VMCOREINFO', Buffer.concat([header, Buffer.alloc(4)])), { message });
  t.throws(withNote('A NAME THAT IS LONGER', header), { message });
  t.throws(withNote('VMCOREINFO', header.subarray(0, 0x1000)), { message }, 'a 64-bit header in the space of 32');
  t.doesNotThrow(withNote('WINDOWS-11', header), 'another name, as long');
});

t.test('a stream has no random access', async (t) => {
  const { guest } = windowsGuestFixture();
  const stream: Guest = {
    name: 'stdin',
    arch: guest.arch,
    blocks: guest.blocks,
    cpus: guest.cpus,
    notes: guest.notes,
    memory: null,
    chunks: () => guest.chunks(),
    close() {},
  };
  t.throws(() => plan(stream), {
    code: 'UNSUPPORTED',
    message:
      "win-dmp needs random access to the guest's memory, and stdin is a stream; save it to a file, and dump that",
  });
});

t.test('hostile notes and kernels: an error of ours, or a bounded dump', async (t) => {
  const interesting = fc.oneof(
    fc.bigInt(0n, (1n << 64n) - 1n),
    fc.bigInt(0n, BigInt(MEMORY)).map((at) => 0xffff_f800_0000_0000n + at),
    fc.bigInt(0n, BigInt(MEMORY)).map((at) => 0x8040_0000n + at),
    fc.constantFrom(0n, 1n, 43n, 44n, 86n, 87n, 1n << 40n, 1n << 52n, (1n << 32n) - 1n, (1n << 64n) - 1n),
  );
  const inHeader = fc.tuple(
    fc.nat(0xfff).map((at) => at & ~3),
    interesting,
  );
  const inModule = fc.tuple(
    fc.oneof(
      fc.constantFrom(0x10e10, 0x10e88, 0x10ec0, 0x11018, 0x11138, 0x12100, 0x14120, 0x15120, 0x1000, 0x2000, 0x4080),
      fc.nat(MEMORY - 8).map((at) => at & ~3),
    ),
    interesting,
  );
  const early = fc.tuple(
    fc.constantFrom(0x10, 0x34, 0x24, 0x80, 0x60, 0x88, 0x64, 0x90, 0x98, 0xa0, 0x6c, 0x70),
    interesting,
  );
  let planned = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...BITS),
      fc.array(fc.oneof(inHeader, early), { maxLength: 3 }),
      fc.array(inModule, { maxLength: 3 }),
      async (bits, header, kernel) => {
        const fixture = windowsGuestFixture({
          bits,
          cpus: 2,
          change: (view) => {
            for (const [at, value] of kernel) view.setBigUint64(Math.min(at, MEMORY - 8), value, true);
          },
          changeHeader: (bytes) => {
            const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
            for (const [at, value] of header) view.setBigUint64(Math.min(at, bytes.length - 8), value, true);
          },
        });
        const before = Uint8Array.from(fixture.bytes);
        try {
          const layout = plan(fixture.guest);
          const size = 0x2000 + 86 * MEMORY + 2 ** 36;
          t.ok(layout.size <= size);
          if (layout.size < 64 * MEMORY) t.equal((await dumped(fixture.guest, layout)).bytes.length, layout.size);
          planned++;
        } catch (error) {
          if (!(error instanceof VmcoreError) || /\n/.test(error.message)) throw error;
        }
        t.ok(Buffer.compare(before, fixture.bytes) === 0);
      },
    ),
    { numRuns: 400 },
  );
  t.ok(planned > 20, `${planned} of 400 were dumped`);
});

t.test('framer: chunks that come out of turn, or not at all, fail', async (t) => {
  const { guest } = windowsGuestFixture({
    runs: [
      { BasePage: 2n, PageCount: 1n },
      { BasePage: 1n, PageCount: 1n },
    ],
  });
  const layout = plan(guest);
  const through = (runs: { base: number; length: number }[]) =>
    pipelinePromise(runChunks(guest.memory, runs), new WinDmpFramer(layout), new Collector());
  await t.rejects(through([{ base: 0x1000, length: 0x1000 }]), {
    code: 'BAD_INPUT',
    message: 'memory 0x1000+0x1000 came, but 0x2000 is next',
  });
  await t.rejects(through([...layout.runs, { base: 0, length: 0x1000 }]), { message: /but all runs have come/ });
  await t.rejects(through(layout.runs.slice(0, 1)), {
    code: 'TRUNCATED',
    message: 'the source gave 4096 of 8192 bytes of guest memory',
  });
});
