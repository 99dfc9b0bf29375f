/** Windows crash dumps as sources: ours, damaged ones, and what is no full dump. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { pipelinePromise } from 'streamx';
import t from 'tap';
import { VmcoreError } from '../../lib/model/errors.js';
import { encodeWinContext, setWinDmpFields, setWinDmpRuns } from '../../lib/formats/win-dmp.js';
import { inspect } from '../../lib/inspect.js';
import { openGuest, openStream } from '../../lib/open-guest.js';
import { runChunks } from '../../lib/sources/run-source.js';
import { openWinDmp, type WinDmpGuest } from '../../lib/sources/windows/win-dmp-core.js';
import { MemoryOverlay } from '../../lib/transforms/memory-overlay.js';
import { WinDmpFramer } from '../../lib/transforms/win-dmp-framer.js';
import { planWinDmp } from '../../lib/layouts/win-dmp-layout.js';
import { Collector } from '../kdump-fixture.js';
import { MEMORY, PLACES, type WindowsFixtureOptions, windowsGuestFixture } from '../windows-fixture.js';
import { winDmpHeaderOf } from '../../lib/windows/header-note.js';

const folder = mkdtempSync(join(tmpdir(), 'vmcore-win-dmp-'));
const path = join(folder, 'memory.dmp');
t.teardown(() => rmSync(folder, { recursive: true, force: true }));

/** A dump by our own stages. */
async function dump(options: WindowsFixtureOptions = {}): Promise<Buffer> {
  const { guest } = windowsGuestFixture(options);
  const layout = planWinDmp(guest, winDmpHeaderOf(guest));
  const sink = new Collector();
  await pipelinePromise(
    runChunks(guest.memory, layout.runs),
    new MemoryOverlay(layout.pages),
    new WinDmpFramer(layout),
    sink,
  );
  return sink.bytes;
}

function open(bytes: Uint8Array): WinDmpGuest {
  writeFileSync(path, bytes);
  return openWinDmp(path);
}

t.test('memory, CPUs, and the header as a note', async (t) => {
  for (const bits of [64, 32] as const) {
    const { guest, bytes: memory } = windowsGuestFixture({ bits, cpus: 2 });
    const bytes = await dump({ bits, cpus: 2 });
    const crash = open(bytes);
    t.match(crash, { arch: bits === 64 ? 'x86_64' : 'i386', header: { bits }, withoutFrames: null });
    t.same(
      crash.blocks.map(({ base, length }) => ({ base, length })),
      [{ base: 0, length: MEMORY }],
    );
    const read = new Uint8Array(MEMORY);
    t.equal(crash.memory.read(0, read), true);
    guest.cpus.forEach((cpu, i) => {
      memory.set(encodeWinContext(cpu, bits), i === 0 ? PLACES.frame : PLACES.frame1);
    });
    t.equal(Buffer.compare(read, memory), 0);
    t.equal(crash.cpus.length, 2);
    crash.cpus.forEach((cpu, i) => {
      const { rip, rsp, rax, debug } = guest.cpus[i]!;
      t.match(cpu, { rip, rsp, rax, debug, system: { cr3: BigInt(PLACES.tables) } });
    });
    t.same(winDmpHeaderOf(crash), bytes.subarray(0, bits === 64 ? 0x2000 : 0x1000));
    crash.close();
  }
});

t.test('runs over each other: the first one’s bytes, each byte once', async (t) => {
  const runs = [
    { BasePage: 10n, PageCount: 20n },
    { BasePage: 25n, PageCount: 39n },
    { BasePage: 0n, PageCount: 64n },
    { BasePage: 12n, PageCount: 1n },
    { BasePage: 70n, PageCount: 2n },
  ];
  const bytes = await dump({ runs });
  // In the copy of page 12 that comes later something else.
  bytes.fill(0xee, 0x2000 + (20 + 39 + 64) * 4096, 0x2000 + (20 + 39 + 64 + 1) * 4096);
  const crash = open(bytes);
  t.same(
    crash.blocks.map(({ base, length }) => [base / 4096, length / 4096]),
    [
      [0, 10],
      [10, 20],
      [30, 34],
      [70, 2],
    ],
  );
  const page = new Uint8Array(4096);
  crash.memory.read(13 * 4096, page);
  t.same(page, windowsGuestFixture({ runs }).bytes.subarray(13 * 4096, 14 * 4096));
  crash.close();
});

t.test('an encoded KDBG: the CPU of the header’s own context, or none', async (t) => {
  const bytes = await dump();
  setWinDmpFields(bytes, 64, { KdDebuggerDataBlock: 0xffff_f800_7000_0000n });
  const without = open(bytes);
  t.match(without, { cpus: [], withoutFrames: 'failed to read KiProcessorBlock' });
  without.close();
  bytes.set(encodeWinContext(windowsGuestFixture().guest.cpus[0]!, 64), 0x348);
  const crash = open(bytes);
  t.match(crash, { cpus: [{ rsp: windowsGuestFixture().guest.cpus[0]!.rsp }], withoutFrames: /KiProcessorBlock/ });
  crash.close();
});

t.test('what is no full dump, or not whole', async (t) => {
  const bytes = await dump();
  const refused = (
    change: (bytes: Buffer) => Uint8Array | undefined,
    expected: { code: string; message?: string | RegExp },
  ) => {
    const changed = Buffer.from(bytes);
    writeFileSync(path, change(changed) ?? changed);
    t.throws(() => openWinDmp(path), expected);
  };
  for (const [type, text] of [
    [2n, 'a kernel dump'],
    [4n, 'a minidump'],
    [5n, 'a full dump with a bitmap'],
    [77n, 'of a kind that is not known'],
  ] as const)
    refused((bytes) => void setWinDmpFields(bytes, 64, { DumpType: type }), {
      code: 'UNSUPPORTED',
      message: `${path}: the Windows crash dump is ${text} (DumpType ${type}), not a full one; make a complete memory dump`,
    });
  refused((bytes) => bytes.subarray(0, 0x1fff), {
    code: 'TRUNCATED',
    message: `${path} ends at byte 8191, but its header reaches to byte 8192`,
  });
  refused((bytes) => bytes.subarray(0, -1), {
    code: 'TRUNCATED',
    message: /but the memory of its runs reaches to byte/,
  });
  refused((bytes) => void setWinDmpRuns(bytes, 64, []), { code: 'BAD_INPUT', message: /it has no runs/ });
  refused((bytes) => void setWinDmpFields(bytes, 64, { NumberOfRuns: 99n }), {
    code: 'BAD_INPUT',
    message: `${path}: the dump header claims 99 runs of memory, and has room for 43`,
  });
  refused((bytes) => void setWinDmpRuns(bytes, 64, [{ BasePage: 1n, PageCount: 1n << 51n }]), { code: 'BAD_INPUT' });
  refused((bytes) => bytes.subarray(0, 3), { code: 'BAD_INPUT', message: `${path} is not a Windows crash dump` });
});

t.test('it is recognised by its content; from a pipe it is refused', async (t) => {
  writeFileSync(path, await dump());
  const guest = await openGuest(path);
  t.equal(guest.cpus.length, 1);
  guest.close();
  t.match(await inspect(path), { format: 'Windows crash dump, full, 64 bit', winDmp: { header: { DumpType: 1 } } });
  const { Readable } = await import('node:stream');
  await t.rejects(openStream(Readable.from([await dump()]), 'pipe'), {
    code: 'UNSUPPORTED',
    message: /^pipe is a Windows crash dump, .*save it to a file$/,
  });
});

t.test('damaged dumps: an error of ours, or a guest that can be read', async () => {
  const originals = { 64: await dump(), 32: await dump({ bits: 32 }) };
  const damage = fc.array(
    fc.tuple(
      fc.oneof(fc.nat(0x200), fc.nat(0x2000), fc.integer({ min: 0x11000, max: 0x18000 })),
      fc.oneof(fc.nat(255), fc.constantFrom(0, 1, 255)),
    ),
    { minLength: 1, maxLength: 6 },
  );
  fc.assert(
    fc.property(fc.constantFrom(64, 32), damage, fc.option(fc.nat(MEMORY)), (bits, damage, cut) => {
      const bytes = Buffer.from(originals[bits as 64 | 32]);
      for (const [at, value] of damage) bytes[at] = value;
      try {
        const guest = open(cut === null ? bytes : bytes.subarray(0, cut));
        for (const { base } of guest.blocks) guest.memory.read(base, new Uint8Array(4096));
        guest.close();
      } catch (error) {
        if (!(error instanceof VmcoreError) || /\n/.test(error.message)) throw error;
      }
    }),
    { numRuns: 300 },
  );
});
