import t from 'tap';
import { decodeWinDmpHeader, type WinDmpBits } from '../../lib/formats/win-dmp.js';
import type { Guest } from '../../lib/model/guest.js';
import { MemoryGuest } from '../../lib/sources/memory-guest.js';
import { findKdbg, windowsHeader } from '../../lib/windows/find-kdbg.js';
import { planWinDmp } from '../../lib/layouts/win-dmp-layout.js';
import { patternGuest } from '../guest-fixture.js';
import { ALL_RUNS, KERN, PAGES, PLACES, type WindowsFixtureOptions, windowsGuestFixture } from '../windows-fixture.js';

async function find(guest: Guest, bits: WinDmpBits) {
  const warnings: string[] = [];
  const header = await findKdbg(guest, { onWarning: (text) => warnings.push(text) });
  return { header: decodeWinDmpHeader(header, bits), bytes: header, warnings };
}

const fixture = (options: WindowsFixtureOptions) => windowsGuestFixture({ ...options, withoutNote: true }).guest;

t.test('by the CPU’s tables: the header that a driver would have left', async (t) => {
  for (const bits of [64, 32] as const) {
    const guest = fixture({ bits, cpus: 2 });
    const { header, bytes, warnings } = await find(guest, bits);
    t.match(header, {
      DirectoryTableBase: 0x1000n,
      KdDebuggerDataBlock: KERN[bits] + BigInt(PLACES.kdbg),
      PsLoadedModuleList: KERN[bits] + 0x12020n,
      PsActiveProcessHead: KERN[bits] + 0x12040n,
      NumberProcessors: 2n,
      MajorVersion: 15n,
      MinorVersion: 22621n,
      MachineImageType: bits === 64 ? 0x8664n : 0x14cn,
      runs: ALL_RUNS,
      DumpType: 1n,
    });
    t.same(warnings, []);
    t.match(planWinDmp(guest, bytes), { bits, fields: { BugcheckCode: 0x161n } });
  }
});

t.test('with PAE, whose top table has bit 5 set by TCG', async (t) => {
  // Tables of PAE in place of those of 32 bits: the kernel's window is in the third GiB, at 4 MiB.
  const [top, directory, table] = [PLACES.tables, PLACES.tables + 0x1000, PLACES.tables + 0x2000];
  const change = (view: DataView) => {
    new Uint8Array(view.buffer, top, 0x4000).fill(0);
    view.setBigUint64(top + 2 * 8, BigInt(directory) | 0x21n, true);
    view.setBigUint64(directory + 2 * 8, BigInt(table) | 0x63n, true);
    for (let page = 0; page < PAGES; page++)
      view.setBigUint64(table + 8 * page, BigInt(page * 4096) | (1n << 63n) | 0x63n, true);
  };
  const guest = fixture({ bits: 32, change });
  const system = { ...guest.cpus[0]!.system!, cr4: 1n << 5n };
  Object.assign(guest, { cpus: [{ ...guest.cpus[0]!, system }] });
  const { header, bytes } = await find(guest, 32);
  t.match(header, { KdDebuggerDataBlock: KERN[32] + BigInt(PLACES.kdbg), PaeEnabled: 1n });
  t.match(planWinDmp(guest, bytes), { bits: 32 });
});

t.test('by the processor start block, where no CPU has the kernel’s tables', async (t) => {
  const change = (view: DataView) => {
    view.setBigUint64(0x8000, 0x1_0006_12e9n, true);
    view.setBigUint64(0x8070, 0xffff_f800_0000_4560n, true);
    view.setBigUint64(0x80a0, 0x1000n, true);
  };
  const inProcess = (guest: ReturnType<typeof fixture>) =>
    Object.assign(guest, {
      cpus: guest.cpus.map((cpu) => ({ ...cpu, system: { ...cpu.system!, cr3: 0x30000n } })),
    });
  t.match((await find(inProcess(fixture({ change })), 64)).header, { DirectoryTableBase: 0x1000n });
  await t.rejects(find(inProcess(fixture({})), 64), {
    code: 'BAD_INPUT',
    message: /a block looks like KDBG .*at physical 0x10e00\), but neither the processor start block nor the CR3/,
  });
});

t.test('a list that leads nowhere: by the kernel’s image', async (t) => {
  const change = (view: DataView) => view.setBigUint64(PLACES.kdbg, 0xffff_ffff_ffff_0000n, true);
  t.match((await find(fixture({ change }), 64)).header, {
    KdDebuggerDataBlock: KERN[64] + BigInt(PLACES.kdbg),
  });
});

t.test('several candidates: that which translates to itself, and it is said', async (t) => {
  const copy = (to: number) => (view: DataView) => {
    const bytes = new Uint8Array(view.buffer);
    bytes.copyWithin(to, PLACES.kdbg, PLACES.kdbgEnd);
  };
  // A copy whose page is not mapped: before the true one, and not found by list or image.
  const change = (view: DataView) => {
    copy(0x8000)(view);
    view.setBigUint64(PLACES.tables + 0x3000 + 8 * 8, 0n, true);
  };
  const { header, warnings } = await find(fixture({ change }), 64);
  t.equal(header.KdDebuggerDataBlock, KERN[64] + BigInt(PLACES.kdbg));
  t.match(warnings, [
    /^2 blocks look like KDBG; taken is that at 0xfffff80000010e00 \(physical 0x10e00\), which translates/,
  ]);
});

t.test('the runs of the kernel, where they make sense, else the memory blocks', async (t) => {
  const runs = [
    { BasePage: 1n, PageCount: 10n },
    { BasePage: 20n, PageCount: 44n },
  ];
  t.same((await find(fixture({ runs }), 64)).header.runs, runs);
  for (const bad of [[{ BasePage: 1n << 60n, PageCount: 1n }], [{ BasePage: 0n, PageCount: 0n }], []])
    t.same((await find(fixture({ runs: bad }), 64)).header.runs, ALL_RUNS);
  const change = (view: DataView) => view.setUint32(PLACES.runs, 0xffff_ffff, true);
  t.same((await find(fixture({ change }), 64)).header.runs, ALL_RUNS);
});

t.test('more memory blocks than there is room for: those that are nearest each other become one', async (t) => {
  const { guest } = windowsGuestFixture({ runs: [], withoutNote: true });
  // One page each; before the last 41 the gaps are of two pages, else of one.
  const regions = Array.from({ length: 150_000 }, (_, i) => ({
    base: (1000 + 2 * i + Math.max(0, i - 149_958)) * 4096,
    length: 4096,
    backing: null,
    offset: 0,
  }));
  const { name, arch, cpus, notes, memory } = guest;
  const many = new MemoryGuest({ name, arch, cpus, notes, regions: [...memory.regions, ...regions] });
  const { runs } = (await find(many, 64)).header;
  t.equal(runs.length, 43);
  t.same(runs[0], ALL_RUNS[0]);
  t.same(runs[1], { BasePage: 1000n, PageCount: BigInt(2 * 149_959 - 1) });
  t.ok(runs.slice(2).every(({ PageCount }) => PageCount === 1n));
});

t.test('none, or an encoded one: what was looked for is said', async (t) => {
  const message =
    /^win-dump: there is no dump header in a VMCOREINFO note, and no KDBG block \(tag 'KDBG', its size, a kernel address for KernBase\) is in the memory of windows: it is no Windows guest, or the block is encoded/;
  const encoded = (view: DataView) => view.setUint32(PLACES.kdbg + 0x10, 0x1234_5678, true);
  const tooSmall = (view: DataView) => view.setUint32(PLACES.kdbg + 0x14, 0x100, true);
  const user = (view: DataView) => view.setBigUint64(PLACES.kdbg + 0x18, 0x7fff_0000n, true);
  for (const change of [encoded, tooSmall, user])
    await t.rejects(find(fixture({ change }), 64), { code: 'BAD_INPUT', message });
  await t.rejects(findKdbg(patternGuest([{ base: 0, length: 0x10000 }])), { code: 'BAD_INPUT' });
});

t.test('a note comes first; without one, and without leave to search, QEMU’s words', async (t) => {
  const { guest } = windowsGuestFixture();
  t.equal(decodeWinDmpHeader(await windowsHeader(guest, {}), 64).MinorVersion, 0n);
  t.equal(decodeWinDmpHeader(await windowsHeader(fixture({}), {}), 64).MinorVersion, 22621n);
  await t.rejects(windowsHeader(fixture({}), { findKdbg: false }), {
    message: 'win-dump: invalid vmcoreinfo note size',
  });
  const aborted = AbortSignal.abort();
  await t.rejects(windowsHeader(fixture({}), {}, { signal: aborted }), { code: 'ABORTED' });
});

t.test('memory full of tags ends', async (t) => {
  const change = (view: DataView) => {
    for (let at = 0x20000; at < 0x40000; at += 0x40) {
      new Uint8Array(view.buffer).copyWithin(at, PLACES.kdbg, PLACES.kdbg + 0x40);
    }
  };
  const started = performance.now();
  await find(fixture({ change }), 64);
  t.ok(performance.now() - started < 20_000);
});
