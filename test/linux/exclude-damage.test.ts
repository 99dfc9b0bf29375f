/** Bits that flip in the structures of real kernels: refused, or told; no page is left out in silence. */

import fc from 'fast-check';
import t from 'tap';
import { VmcoreError } from '../../lib/model/errors.js';
import { parseVmcoreinfo, vmcoreinfoNote } from '../../lib/formats/vmcoreinfo.js';
import { excludePages, type ExclusionReport } from '../../lib/linux/exclude-pages.js';
import { type KernelMemory, kernelMemory } from '../../lib/linux/kernel-memory.js';
import { KernelSymbols } from '../../lib/linux/kernel-symbols.js';
import { memoryMap } from '../../lib/linux/memory-map.js';
import { pageLayout } from '../../lib/linux/page-layout.js';
import type { Backing } from '../../lib/model/physical-memory.js';
import { FileBacking } from '../../lib/io/file-backing.js';
import { MemoryGuest } from '../../lib/sources/memory-guest.js';
import { readSmallFile } from '../../lib/io/small-file.js';
import { PAGE_SIZE } from '../../lib/model/stage.js';
import { type BusyName, busyGuest, needsBusyGuests } from '../guests/busy.js';

const LEVEL = 31;
const CASES = 200;
/** Their memory is one block from 0 on. */
const NAMES: readonly BusyName[] = ['busy-6.1', 'busy-6.12'];

/** A file of which one bit is another. */
class FlippedBacking implements Backing {
  readonly name = 'flipped';
  /** its number in the file; below 0 there is none */
  bit = -1;

  constructor(readonly file: FileBacking) {}

  readSync(offset: number, into: Uint8Array): void {
    this.file.readSync(offset, into);
    this.#flip(offset, into);
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    await this.file.read(offset, into);
    this.#flip(offset, into);
  }

  close(): void {
    this.file.close();
  }

  #flip(offset: number, into: Uint8Array): void {
    const at = Math.floor(this.bit / 8) - offset;
    if (this.bit >= 0 && at >= 0 && at < into.length) into[at]! ^= 1 << (this.bit % 8);
  }
}

/** A run of bytes of memory. */
interface Place {
  readonly paddr: number;
  readonly length: number;
}

/** Where the structures are that decide: struct pages, entries of tables that lead to them, and mem_section. */
function structures(kernel: KernelMemory, guest: MemoryGuest, symbols: KernelSymbols): Place[][] {
  const tables = new Set<number>();
  const structs: Place[] = [];
  const footprint = {
    table: (paddr: number) => void tables.add(paddr),
    data: (paddr: number, length: number) => void structs.push({ paddr, length }),
  };
  const { size } = pageLayout(symbols, LEVEL);
  const refuse = (what: string) => {
    throw new Error(what);
  };
  let sections = 0;
  for (const { memMap, pages } of memoryMap(kernel, symbols, size, guest.blocks).within(guest.blocks, refuse)) {
    kernel.read(memMap, new Uint8Array(pages * size), footprint);
    sections++;
  }
  const roots = kernel.translate(symbols.symbol('mem_section'))!;
  const table = kernel.translate(kernel.pointer(symbols.symbol('mem_section'))!)!;
  const { paddr } = table;
  return [
    structs,
    [...tables].flatMap((paddr) => usedEntries(guest, paddr)),
    [
      { paddr: roots.paddr, length: 8 },
      { paddr, length: sections * symbols.size('mem_section') },
    ],
  ];
}

function usedEntries({ memory }: MemoryGuest, table: number): Place[] {
  const entries = new BigUint64Array(512);
  memory.read(table, new Uint8Array(entries.buffer));
  return [...entries.keys()].filter((i) => entries[i] !== 0n).map((i) => ({ paddr: table + 8 * i, length: 8 }));
}

function pagesOf({ exclusion }: ExclusionReport, end: number): Set<number> {
  const pages = new Set<number>();
  for (const { start, end: to } of exclusion.runs(0, end, true)) for (let pfn = start; pfn < to; pfn++) pages.add(pfn);
  return pages;
}

for (const name of NAMES)
  t.test(`${name}: ${CASES} bits`, { skip: await needsBusyGuests(name) }, async () => {
    const { ram, vmcoreinfo } = await busyGuest(name);
    const file = FileBacking.open(ram);
    const backing = new FlippedBacking(file);
    const note = vmcoreinfoNote(await readSmallFile(vmcoreinfo, 'VMCOREINFO'));
    const regions = [{ base: 0, length: file.size, backing, offset: 0 }];
    const guest = new MemoryGuest({ name, arch: 'x86_64', regions, cpus: [], notes: [note] });
    const symbols = new KernelSymbols(parseVmcoreinfo(note.desc), name);
    const places = structures(kernelMemory(guest.memory, symbols), guest, symbols);

    const untouched = await excludePages(guest, { level: LEVEL });
    const before = pagesOf(untouched, file.size / PAGE_SIZE);
    const bit = fc
      .constantFrom(...places)
      .chain((kind) => fc.constantFrom(...kind))
      .chain(({ paddr, length }) => fc.integer({ min: 8 * paddr, max: 8 * (paddr + length) - 1 }));
    const property = fc.asyncProperty(bit, fc.constantFrom('refuse', 'keep'), async (bit, fallback) => {
      backing.bit = bit;
      try {
        const report = await excludePages(guest, { level: LEVEL, fallback });
        const told = report.undecided > 0 || report.warnings.join() !== untouched.warnings.join();
        return told || [...pagesOf(report, file.size / PAGE_SIZE)].every((pfn) => before.has(pfn));
      } catch (error) {
        return error instanceof VmcoreError && error.code === 'BAD_INPUT';
      } finally {
        backing.bit = -1;
      }
    });
    await fc.assert(property, { numRuns: CASES });
    guest.close();
  });
