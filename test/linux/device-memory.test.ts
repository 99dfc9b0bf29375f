/** Memory above all that the kernel has struct pages for: where it begins, and that dumps at a level are without it. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { type DumpSummary, dump } from '../../lib/dump.js';
import { vmcoreinfoNote } from '../../lib/formats/vmcoreinfo.js';
import type { Guest } from '../../lib/model/guest.js';
import { deviceMemoryStart, withoutDeviceMemory } from '../../lib/linux/device-memory.js';
import type { MemoryRegion } from '../../lib/model/physical-memory.js';
import type { DumpRequest } from '../../lib/request.js';
import { openKdump } from '../../lib/sources/kdump/kdump-core.js';
import { MemoryGuest } from '../../lib/sources/memory-guest.js';
import { openGuest } from '../../lib/open-guest.js';
import { addressPattern, BufferBacking } from '../guest-fixture.js';
import { FIRST_PFN, SyntheticKernel } from './synthetic-kernel.js';
import type { ElfNote } from '../../lib/model/note.js';

const MIB = 2 ** 20;
const ROM = { base: 0xfffc0000, length: 0x40000 };
const RAM_END = 32 * MIB;

const folder = mkdtempSync(join(tmpdir(), 'vmcore-device-'));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));

/** A guest of a kernel's memory and other blocks, whose bytes tell their addresses. */
function guestOf(
  kernel: SyntheticKernel,
  others: readonly MemoryRegion[] = [rom()],
  note: ElfNote = kernel.note,
): Guest {
  const ram = { base: 0, length: kernel.bytes.length, backing: new BufferBacking(kernel.bytes), offset: 0 };
  return new MemoryGuest({ name: 'synthetic', arch: 'x86_64', regions: [ram, ...others], cpus: [], notes: [note] });
}

function rom(base = ROM.base): MemoryRegion {
  return { base, length: ROM.length, backing: new BufferBacking(addressPattern(ROM.length, base)), offset: 0 };
}

/** Clears a bit of the kernel's memory. */
function clear(kernel: SyntheticKernel, at: number, bit: number): void {
  kernel.bytes[at + (bit >> 3)]! &= ~(1 << (bit & 7));
}

/** Where `mem_section` of the last section is. */
function lastSection(kernel: SyntheticKernel): number {
  return kernel.sections + 16;
}

t.test('it begins where the kernel has no more memory', (t) => {
  for (const options of [{}, { nodes: true }, { model: 'plain' }, { levels: 5, leaf: '4 KiB' }] as const) {
    const kernel = new SyntheticKernel(options);
    t.equal(deviceMemoryStart(guestOf(kernel)), RAM_END);
    t.equal(deviceMemoryStart(guestOf(kernel, [])), null, 'there is none');
    t.equal(deviceMemoryStart(guestOf(kernel, [rom(RAM_END), rom()])), RAM_END, 'right behind RAM');
  }
  t.end();
});

t.test('a bit that has flipped cuts no memory off', (t) => {
  const flipped = (nodes: boolean, at: (kernel: SyntheticKernel) => number, bit: number) => {
    const kernel = new SyntheticKernel({ nodes });
    clear(kernel, at(kernel), bit);
    return deviceMemoryStart(guestOf(kernel));
  };
  t.equal(flipped(true, lastSection, 0), RAM_END, 'a section that is not present');
  t.equal(flipped(false, lastSection, 0), RAM_END, 'the same, where nodes are not known');
  t.equal(
    flipped(true, (kernel) => kernel.node + 16, 13),
    RAM_END,
    'a node that spans less',
  );
  t.equal(flipped(true, lastSection, 62), RAM_END, 'a section that leads nowhere');
  t.end();
});

t.test('a block of which but a part is the kernel’s is cut where sections and nodes agree', (t) => {
  for (const [nodes, start] of [
    [true, RAM_END],
    [false, null],
  ] as const) {
    const kernel = new SyntheticKernel({ nodes });
    const backing = new BufferBacking(new Uint8Array(48 * MIB));
    backing.bytes.set(kernel.bytes);
    const regions = [{ base: 0, length: 48 * MIB, backing, offset: 0 }];
    const guest = new MemoryGuest({ name: 'mem=32M', arch: 'x86_64', regions, cpus: [], notes: [kernel.note] });
    t.equal(deviceMemoryStart(guest), start);
  }
  t.end();
});

t.test('where it is not known where it begins', (t) => {
  const kernel = new SyntheticKernel();
  const known = guestOf(kernel);
  t.equal(deviceMemoryStart({ ...known, blocks: known.blocks, notes: [], memory: known.memory }), null);
  t.equal(deviceMemoryStart({ ...known, blocks: known.blocks, notes: known.notes, memory: null }), null);
  const text = (without: RegExp) => vmcoreinfoNote(Buffer.from(kernel.vmcoreinfo().replace(without, '')));
  t.equal(deviceMemoryStart(guestOf(kernel, [rom()], text(/^SYMBOL\(mem_section\).*\n/m))), null);
  kernel.bytes.fill(0, kernel.root, kernel.root + 4096);
  t.equal(deviceMemoryStart(guestOf(kernel)), null);
  t.end();
});

let files = 0;

async function write(guest: Guest, request: DumpRequest): Promise<{ path: string; pages: DumpSummary['pages'] }> {
  const path = join(folder, `${++files}`);
  const { pages } = await dump(guest, request, { file: path }).finished;
  return { path, pages };
}

async function blocksOf(path: string): Promise<readonly (readonly [number, number])[]> {
  const guest = await openGuest(path);
  const blocks = guest.blocks.map(({ base, length }) => [base, length] as const);
  guest.close();
  return blocks;
}

/** A kernel with some pages that a level leaves out. */
function kernelWithFree(): SyntheticKernel {
  const kernel = new SyntheticKernel({ nodes: true });
  kernel.free(FIRST_PFN + 512 - (FIRST_PFN % 512), 9);
  kernel.cache(FIRST_PFN);
  return kernel;
}

t.test('kdumps at a level end where the kernel’s memory does', async (t) => {
  const guest = guestOf(kernelWithFree());
  const ram = [[0, RAM_END]];
  for (const dumpLevel of [1, 31]) {
    const kdump = await write(guest, { format: 'kdump-raw-lzo', dumpLevel });
    t.match(kdump.pages, { total: 8192, deviceLeftOut: 64 });
    const opened = await openKdump(kdump.path);
    t.match(opened.headers, { maxMapnr: 8192, header: { maxMapnr: 8192 } });
    opened.close();
    t.same(await blocksOf(kdump.path), ram);
  }
  const range = { base: RAM_END - MIB, length: 2 ** 40 };
  const part = await write(guest, { format: 'kdump-zlib', dumpLevel: 1, range });
  t.same(await blocksOf(part.path), [[RAM_END - MIB, MIB]]);
});

t.test('without a level, at level 0, when that is asked for, and in ELF, device memory is kept', async (t) => {
  const guest = guestOf(kernelWithFree());
  const all = [
    [0, RAM_END],
    [ROM.base, ROM.length],
  ];
  for (const request of [{}, { dumpLevel: 0 }, { dumpLevel: 31, keepDeviceMemory: true }]) {
    const kdump = await write(guest, { format: 'kdump-raw-lzo', ...request });
    t.match(kdump.pages, { total: 8256, deviceKept: 64 });
    t.equal(kdump.pages.deviceLeftOut, undefined);
    t.same(await blocksOf(kdump.path), all);
  }
  for (const request of [{}, { dumpLevel: 31 }, { dumpLevel: 31, keepLayout: true }]) {
    const elf = await write(guest, request);
    t.match(elf.pages, { total: 8256, deviceKept: undefined, deviceLeftOut: undefined });
    t.same((await blocksOf(elf.path)).at(-1), all[1], 'in a segment of its own');
  }
});

t.test('a partial kdump with device memory, made into another', async (t) => {
  const partial = await write(guestOf(kernelWithFree()), {
    format: 'kdump-raw-lzo',
    dumpLevel: 31,
    keepDeviceMemory: true,
  });
  const guest = await openGuest(partial.path);
  const { pages } = await write(guest, { format: 'kdump-raw-zlib', dumpLevel: 31 });
  t.match(pages, { total: 8192, deviceLeftOut: 64, excluded: 513, excludedByReason: { free: 512, cache: 1 } });
  guest.close();
});

t.test('pages that a source lacks are counted as far as they are left', (t) => {
  const missing = {
    level: 31,
    count: 30,
    runs: () => [
      { start: 0, end: 10 },
      { start: 90, end: 110 },
    ],
  };
  const guest = Object.assign(guestOf(new SyntheticKernel()), { missing });
  const cut = withoutDeviceMemory(guest, 100 * 4096).missing!;
  t.equal(cut.count, 20);
  t.same(
    [...cut.runs()],
    [
      { start: 0, end: 10 },
      { start: 90, end: 100 },
    ],
  );
  t.equal(
    withoutDeviceMemory(Object.assign(guest, { missing: { ...missing, runs: () => [{ start: 99, end: 105 }] } }), 4096)
      .missing,
    null,
  );
  t.end();
});
