/** Compares an ELF vmcore of ours with QEMU's of the same paused guest, field by field and byte by byte. */

import { spawnSync } from 'node:child_process';
import { statSync } from 'node:fs';
import type { Test } from 'tap';
import { type ElfOracle, type ElfSegment, readElf } from '../guests/elf-oracle.js';

/** e_phnum of which QEMU writes a section header for the real number; one fewer than the gABI asks for. */
const PN_XNUM = 0xffff;
const HEADER = { 32: { ehdr: 52, phdr: 32 }, 64: { ehdr: 64, phdr: 56 } } as const;

/** Where memory begins in QEMU's file: right behind the notes, which are the first segment. */
function qemuMemoryOffset(elf: ElfOracle): number {
  const notes = elf.segments[0]!;
  return Number(notes.offset + notes.filesz);
}

/** A segment with the file offset relative to the memory, or as it is when nothing is stored. */
function comparable(segment: ElfSegment, memoryOffset: number) {
  const stored = segment.offset < 0xffff_ffffn || segment.filesz > 0n;
  return {
    ...segment,
    offset: stored ? `memory+0x${(segment.offset - BigInt(memoryOffset)).toString(16)}` : 'not stored',
    vaddr: `0x${segment.vaddr.toString(16)}`,
    paddr: `0x${segment.paddr.toString(16)}`,
    filesz: `0x${segment.filesz.toString(16)}`,
    memsz: `0x${segment.memsz.toString(16)}`,
  };
}

/** What else the comparison has to know. */
export interface Expectation {
  /** bytes of guest memory in either file; QEMU's has the names of its sections behind it */
  readonly memoryBytes: number;
  /** zeros what the source of ours did not have, such as `cpu0.gs.flags`, in the descriptor of a note */
  readonly mask?: ((name: string, desc: Buffer, index: number) => Buffer) | undefined;
}

/** Checks that two vmcores are equal but for where the program headers stand and what follows from it. */
export function compareElf(t: Test, ours: string, qemus: string, { memoryBytes, mask }: Expectation): void {
  const a = readElf(ours);
  const b = readElf(qemus);
  t.same(
    { class: a.class, machine: a.machine, type: a.type, phnum: a.phnum },
    { class: b.class, machine: b.machine, type: b.type, phnum: b.phnum },
    'ELF header',
  );
  const { ehdr, phdr } = HEADER[a.class];
  t.equal(a.phoff, ehdr, 'program headers stand behind the ELF header, where makedumpfile looks for them');
  t.equal(a.shnum, a.phnum === PN_XNUM ? 1 : 0, 'a section header only with PN_XNUM');
  t.ok(Number(a.segments[0]!.offset) >= ehdr + phdr * a.segments.length);

  const memoryB = qemuMemoryOffset(b);
  const memoryA = statSync(ours).size - memoryBytes;
  const loads = (elf: ElfOracle, offset: number) => elf.loads.map((load) => comparable(load, offset));
  compareTables(t, loads(a, memoryA), loads(b, memoryB));

  const counts = new Map<string, number>();
  const notes = (elf: ElfOracle) => {
    counts.clear();
    return elf.notes.map(({ name, type, desc, raw }) => {
      const index = counts.get(name) ?? 0;
      counts.set(name, index + 1);
      return { name, type, rawLength: raw.length, desc: (mask?.(name, desc, index) ?? desc).toString('hex') };
    });
  };
  t.same(notes(a), notes(b), 'notes');
  const cmp = spawnSync('cmp', [`--ignore-initial=${memoryA}:${memoryB}`, `--bytes=${memoryBytes}`, ours, qemus], {
    encoding: 'utf8',
  });
  t.equal(cmp.status, 0, `memory ${cmp.stdout}${cmp.stderr}`);
}

/** Tables can have thousands of entries: say the first that differs, not all of them. */
function compareTables(t: Test, ours: object[], qemus: object[]): void {
  const differs = ours.findIndex((load, i) => JSON.stringify(load, bigint) !== JSON.stringify(qemus[i], bigint));
  if (differs >= 0) t.same(ours[differs], qemus[differs], `PT_LOAD ${differs}`);
  t.equal(ours.length, qemus.length, 'number of PT_LOADs');
  t.equal(differs, -1, `PT_LOADs, entry by entry (${qemus.length})`);
}

function bigint(_: string, value: unknown): unknown {
  return typeof value === 'bigint' ? value.toString() : value;
}
