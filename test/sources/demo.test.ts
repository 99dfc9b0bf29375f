import { createHash } from 'node:crypto';
import fc from 'fast-check';
import t from 'tap';
import { findVmcoreinfo, vmcoreinfoFacts } from '../../lib/formats/vmcoreinfo.js';
import { type Guest, pagingEnabled } from '../../lib/model/guest.js';
import { blockEnd } from '../../lib/model/physical-memory.js';
import { demoGuest } from '../../lib/sources/demo/demo.js';
import { plainly } from '../plain-chunk.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const PHYSICAL = 0x000f_ffff_ffff_f000n;

function read(guest: Guest, paddr: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  if (!guest.memory!.read(paddr, bytes)) throw new Error(`no memory at 0x${paddr.toString(16)}`);
  return bytes;
}

/** A walk of 4-level tables, as the processor does it. */
function translate(
  guest: Guest,
  vaddr: bigint,
  cr3 = guest.cpus[0]!.system!.cr3,
): { paddr: number; page: number } | null {
  let table = cr3 & PHYSICAL;
  for (const shift of [39n, 30n, 21n, 12n]) {
    const entry = read(guest, Number(table + ((vaddr >> shift) & 511n) * 8n), 8).readBigUInt64LE();
    if ((entry & 1n) === 0n) return null;
    const size = 1n << shift;
    if (shift === 12n || (shift < 39n && (entry & 0x80n) !== 0n))
      return { paddr: Number((entry & PHYSICAL & ~(size - 1n)) + (vaddr & (size - 1n))), page: Number(size) };
    table = entry & PHYSICAL;
  }
  return null;
}

t.test('it is a PC with memory around its holes', async (t) => {
  const guest = demoGuest();
  t.match(guest, { name: 'demo:', arch: 'x86_64' });
  t.match(guest.blocks, [
    { base: 0, length: 0xa0000 },
    { base: MIB, length: 191 * MIB },
    { base: 4 * GIB, length: 64 * MIB },
  ]);
  t.match(demoGuest({ memory: 8 * GIB }).blocks.slice(1), [
    { base: MIB, length: 3 * GIB - MIB },
    { base: 4 * GIB, length: 5 * GIB },
  ]);
});

t.test('it is the same each time, to the byte', async (t) => {
  const digest = async () => {
    const hash = createHash('sha256');
    for await (const { length, data, release } of plainly(demoGuest({ memory: 64 * MIB }).chunks())) {
      hash.update(data ?? Buffer.alloc(length));
      release?.();
    }
    return hash.digest('hex');
  };
  t.equal(await digest(), await digest());
  t.strictSame(demoGuest().cpus, demoGuest().cpus);
});

t.test('random access and the stream have the same bytes', async (t) => {
  const guest = demoGuest({ memory: 64 * MIB });
  let bytes = 0;
  let zeros = 0;
  for await (const { paddr, length, data, release } of plainly(guest.chunks())) {
    const expected = read(guest, paddr, length);
    if (!expected.equals(data ?? Buffer.alloc(length))) t.fail(`bytes at 0x${paddr.toString(16)}`);
    if (!data) zeros += length;
    bytes += length;
    release?.();
  }
  t.equal(bytes, 64 * MIB - 384 * 1024);
  t.ok(zeros > bytes / 3 && zeros < bytes, 'some of it is known to be zeros');

  const middle = guest.blocks[1]!;
  const whole = read(guest, middle.base, 4 * MIB);
  fc.assert(
    fc.property(fc.nat(4 * MIB - 1), fc.nat(600_000), (from, length) => {
      const to = Math.min(from + length, whole.length);
      return read(guest, middle.base + from, to - from).equals(whole.subarray(from, to));
    }),
    { numRuns: 50 },
  );
});

t.test('what the backing calls a hole is zeros', async () => {
  const { backing } = demoGuest().memory!.regions[0]!;
  const end = 64 * MIB;
  const bytes = new Uint8Array(end);
  backing!.readSync(0, bytes);
  fc.assert(
    fc.property(fc.nat(end - 1), fc.nat(16 * MIB), (from, length) => {
      const to = Math.min(from + length + 1, end);
      const run = backing!.nextData!(from, to);
      const zerosTo = run ? run.start : to;
      const clipped = !run || (run.start >= from && run.end <= to && run.start < run.end);
      return clipped && !Buffer.from(bytes.buffer, from, zerosTo - from).some((byte) => byte !== 0);
    }),
    { numRuns: 30 },
  );
});

t.test('the CPUs are in kernel code that the tables map', async (t) => {
  const guest = demoGuest();
  const code = [
    [0x48, 0xff, 0xc0, 0x0f, 0x1f, 0x00, 0x48, 0xff, 0xc9, 0x75, 0xf5],
    [0xeb, 0xfb],
  ];
  t.equal(guest.cpus.length, 2);
  for (const [i, cpu] of guest.cpus.entries()) {
    t.ok(cpu.longMode && pagingEnabled(cpu));
    const at = translate(guest, cpu.rip, cpu.system!.cr3)!;
    t.equal(at.page, 2 * MIB);
    t.same([...read(guest, at.paddr, code[i]!.length)], code[i]);
    for (const address of [cpu.rsp, cpu.gs.base, cpu.system!.gdt.base, cpu.system!.idt.base, cpu.system!.tr.base])
      t.equal(translate(guest, address, cpu.system!.cr3)?.page, 4096, `0x${address.toString(16)}`);
    const stackBottom = cpu.rsp & ~0x3fffn;
    t.ok(stackBottom < cpu.rsp);
  }
});

t.test('the kernel is where VMCOREINFO says, and has a name', async (t) => {
  const guest = demoGuest();
  const info = findVmcoreinfo(guest.notes)!;
  const facts = vmcoreinfoFacts(info);
  t.match(facts, {
    osRelease: '6.1.0-vmcore-demo',
    pageSize: 4096,
    physBase: 20_971_520n,
    kernelOffset: 0n,
    fiveLevels: false,
  });
  const physical = (address: bigint) => Number(address - 0xffff_ffff_8000_0000n + facts.physBase!);
  t.equal(BigInt(physical(info.symbol('swapper_pg_dir')!)), guest.cpus[0]!.system!.cr3);

  const names = info.symbol('init_uts_ns')! + info.offset('uts_namespace.name')!;
  t.equal(translate(guest, names)?.paddr, physical(names));
  const fields = Array.from({ length: 6 }, (_, i) => read(guest, physical(names) + 65 * i, 65).toString('latin1'));
  t.match(
    fields.map((field) => field.replace(/\0+$/, '')),
    ['Linux', 'demo', facts.osRelease!, /^#1 SMP/, 'x86_64', '(none)'],
  );
  t.equal(translate(guest, info.symbol('_stext')!)?.paddr, physical(info.symbol('_stext')!));
  const banner = read(guest, translate(guest, info.symbol('_stext')! + 0x20_0040n)!.paddr, 40).toString('latin1');
  t.match(banner, /^Linux version 6\.1\.0-vmcore-demo /);
});

t.test('the direct map has all memory, in pages as large as can be, and no more', async (t) => {
  for (const memory of [64 * MIB, 256 * MIB, 9 * GIB]) {
    const guest = demoGuest({ memory });
    const seen = new Set<number>();
    for (const block of guest.blocks) {
      for (let at = block.base; at < blockEnd(block);) {
        const found = translate(guest, 0xffff_8880_0000_0000n + BigInt(at));
        if (found?.paddr !== at) t.fail(`0x${at.toString(16)} is mapped to ${found?.paddr}`);
        seen.add(found!.page);
        at += found!.page;
      }
      t.equal(translate(guest, 0xffff_8880_0000_0000n + BigInt(blockEnd(block))), null);
    }
    t.same(
      [...seen].sort((a, b) => a - b),
      memory > 4 * GIB ? [4096, 2 * MIB, GIB] : [4096, 2 * MIB],
    );
  }
});

t.test('pages in reverse order and a page that is not there', async (t) => {
  const guest = demoGuest();
  const module = [0, 1, 2, 3].map((page) => translate(guest, 0xffff_ffff_c000_0000n + BigInt(4096 * page))!.paddr);
  t.same(
    module,
    module.map((_, i) => module[0]! - 4096 * i),
  );
  t.equal(translate(guest, 0xffff_ffff_8143_0000n), null, 'a guard page');
});

t.test('a size that cannot be had', async (t) => {
  for (const memory of [0, -1, 63 * MIB, 64 * MIB + 4096, 257 * GIB, 1.5, Number.NaN])
    t.throws(() => demoGuest({ memory }), { code: 'USAGE', message: /^the demo guest has from 64 MiB to 256 GiB/ });
  demoGuest({ memory: 256 * GIB }).close();
});
