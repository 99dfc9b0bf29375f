/**
 * ELF cores made by hand for the tests: every field is written at its offset of the gABI's tables, and not by the
 * encoders of lib/formats/elf.ts, so that a mistake in these cannot hide one in the decoders.
 */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Guest } from '../../lib/model/guest.js';
import type { Chunk } from '../../lib/model/stage.js';
import { plainly } from '../plain-chunk.js';

/** A program header; fields default to 0, `type` to PT_LOAD, `memsz` to `filesz`. */
export interface Segment {
  readonly type?: number;
  readonly offset?: number | bigint;
  readonly vaddr?: number | bigint;
  readonly paddr?: number | bigint;
  readonly filesz?: number | bigint;
  readonly memsz?: number | bigint;
}

/** A core; header fields default to what fits the segments. */
export interface CoreSpec {
  readonly class?: 1 | 2;
  readonly data?: number;
  readonly type?: number;
  readonly machine?: number;
  readonly phoff?: number | bigint;
  readonly phentsize?: number;
  readonly phnum?: number;
  readonly shoff?: number | bigint;
  readonly shentsize?: number;
  readonly shnum?: number;
  readonly shstrndx?: number;
  readonly segments?: readonly Segment[];
  /** bytes and where they go */
  readonly parts?: readonly (readonly [at: number, bytes: Uint8Array])[];
}

export const PT_LOAD = 1;
export const PT_NOTE = 4;
export const EM_386 = 3;
export const EM_X86_64 = 62;

/** The bytes of a core. */
export function makeCore(spec: CoreSpec): Uint8Array {
  const is64 = (spec.class ?? 2) === 2;
  const { segments = [], parts = [] } = spec;
  const sizes = is64 ? { ehdr: 64, phdr: 56 } : { ehdr: 52, phdr: 32 };
  const phoff = Number(spec.phoff ?? sizes.ehdr);
  // A lie about e_phoff leaves the segments out.
  const fits = phoff >= sizes.ehdr && phoff < 2 ** 20;
  const end = Math.max(
    sizes.ehdr,
    fits ? phoff + segments.length * sizes.phdr : 0,
    ...parts.map(([at, bytes]) => at + bytes.length),
  );
  const core = new Uint8Array(end);
  const view = new DataView(core.buffer);
  core.set([0x7f, 0x45, 0x4c, 0x46, spec.class ?? 2, spec.data ?? 1, 1]);
  view.setUint16(0x10, spec.type ?? 4, true);
  view.setUint16(0x12, spec.machine ?? EM_X86_64, true);
  view.setUint32(0x14, 1, true);
  if (is64) {
    view.setBigUint64(0x20, BigInt(spec.phoff ?? phoff), true);
    view.setBigUint64(0x28, BigInt(spec.shoff ?? 0), true);
  } else {
    view.setUint32(0x1c, phoff, true);
    view.setUint32(0x20, Number(spec.shoff ?? 0), true);
  }
  const tail = is64 ? 0x34 : 0x28;
  view.setUint16(tail, sizes.ehdr, true);
  view.setUint16(tail + 2, spec.phentsize ?? sizes.phdr, true);
  view.setUint16(tail + 4, spec.phnum ?? segments.length, true);
  view.setUint16(tail + 6, spec.shentsize ?? (is64 ? 64 : 40), true);
  view.setUint16(tail + 8, spec.shnum ?? 0, true);
  view.setUint16(tail + 10, spec.shstrndx ?? 0, true);
  if (fits) for (const [i, segment] of segments.entries()) putSegment(view, phoff + i * sizes.phdr, is64, segment);
  for (const [at, bytes] of parts) core.set(bytes, at);
  return core;
}

function putSegment(view: DataView, at: number, is64: boolean, segment: Segment): void {
  const u64 = (value: number | bigint | undefined): bigint => BigInt.asUintN(64, BigInt(value ?? 0));
  const [offset, vaddr, paddr] = [u64(segment.offset), u64(segment.vaddr), u64(segment.paddr)];
  const [filesz, memsz] = [u64(segment.filesz), u64(segment.memsz ?? segment.filesz)];
  view.setUint32(at, segment.type ?? PT_LOAD, true);
  if (is64)
    [offset, vaddr, paddr, filesz, memsz].forEach((value, i) => {
      view.setBigUint64(at + 8 + 8 * i, value, true);
    });
  else
    [offset, vaddr, paddr, filesz, memsz].forEach((value, i) => {
      view.setUint32(at + 4 + 4 * i, Number(BigInt.asUintN(32, value)), true);
    });
}

/** `length` bytes that differ from each other and from zero. */
export function pattern(length: number, seed = 1): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => 1 + ((i * 7 + (i >> 8) * 31 + seed * 53) % 255));
}

/** A note by hand: n_namesz, n_descsz, n_type, name and descriptor padded to 4 bytes. */
export function makeNote(name: string, type: number, desc: Uint8Array): Uint8Array {
  const nameSize = name.length + 1;
  const pad = (size: number): number => (size + 3) & ~3;
  const note = new Uint8Array(12 + pad(nameSize) + pad(desc.length));
  const view = new DataView(note.buffer);
  view.setUint32(0, nameSize, true);
  view.setUint32(4, desc.length, true);
  view.setUint32(8, type, true);
  note.set(Buffer.from(name, 'latin1'), 12);
  note.set(desc, 12 + pad(nameSize));
  return note;
}

/** An NT_PRSTATUS descriptor of x86_64 (336 bytes) whose rip is at 112 + 16 * 8, rsp at 112 + 19 * 8. */
export function prstatus64(rip: bigint, rsp = 0n): Uint8Array {
  const desc = new Uint8Array(336);
  const view = new DataView(desc.buffer);
  view.setBigUint64(112 + 16 * 8, rip, true);
  view.setBigUint64(112 + 19 * 8, rsp, true);
  return desc;
}

/** An NT_PRSTATUS descriptor of i386 (144 bytes) whose eip is at 72 + 12 * 4. */
export function prstatus32(eip: number): Uint8Array {
  const desc = new Uint8Array(144);
  new DataView(desc.buffer).setUint32(72 + 12 * 4, eip, true);
  return desc;
}

export function concat(...parts: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}

/** A small core with everything: a CPU, VMCOREINFO, two blocks, a tail of zeros. */
export function smallCore(): Uint8Array {
  const notes = concat(
    makeNote('CORE', 1, prstatus64(0xffffffff81000000n)),
    makeNote('VMCOREINFO', 0, Buffer.from('OSRELEASE=6.1\n')),
  );
  const [low, high] = [pattern(0x180, 1), pattern(0x100, 2)];
  const notesAt = 64 + 3 * 56;
  const lowAt = notesAt + notes.length;
  const highAt = lowAt + low.length;
  return makeCore({
    segments: [
      { type: PT_NOTE, offset: notesAt, filesz: notes.length },
      { offset: lowAt, paddr: 0, filesz: low.length },
      { offset: highAt, paddr: 0x100000, filesz: high.length, memsz: 0x200 },
    ],
    parts: [
      [notesAt, notes],
      [lowAt, low],
      [highAt, high],
    ],
  });
}

/** A scratch directory that goes when the process does, and a way to put a file in it. */
export class Scratch {
  readonly directory = mkdtempSync(join(tmpdir(), 'vmcore-elf-'));

  constructor() {
    process.on('exit', () => rmSync(this.directory, { recursive: true, force: true }));
  }

  write(bytes: Uint8Array, name = 'core'): string {
    const path = join(this.directory, name);
    writeFileSync(path, bytes);
    return path;
  }
}

/** A chunk as values that can be compared. */
export interface PlainChunk {
  readonly paddr: number;
  readonly length: number;
  readonly data: string | null;
}

/** All chunks of a guest, copied, and their slabs given back. */
export async function collect(chunks: AsyncIterable<Chunk>): Promise<PlainChunk[]> {
  const all: PlainChunk[] = [];
  for await (const { paddr, length, data, release } of plainly(chunks)) {
    all.push({ paddr, length, data: data ? Buffer.from(data).toString('hex') : null });
    release?.();
  }
  return all;
}

/** A guest's memory by address, whatever its chunks are: pairs of address and bytes for each block. */
export async function memoryOf(guest: Guest): Promise<Map<number, string>> {
  const memory = new Map<number, Buffer>(guest.blocks.map(({ base, length }) => [base, Buffer.alloc(length)]));
  for (const { paddr, data } of await collect(guest.chunks())) {
    const block = guest.blocks.find(({ base, length }) => paddr >= base && paddr < base + length)!;
    if (data) Buffer.from(data, 'hex').copy(memory.get(block.base)!, paddr - block.base);
  }
  return new Map([...memory].map(([base, bytes]) => [base, bytes.toString('hex')]));
}

/** Cuts bytes into chunks of the given sizes, in turn; the rest comes as one. */
export async function* inChunks(
  bytes: Uint8Array,
  sizes: readonly number[] = [bytes.length],
): AsyncGenerator<Uint8Array> {
  let at = 0;
  for (const size of sizes) {
    yield bytes.subarray(at, at + size);
    at += size;
  }
  if (at < bytes.length) yield bytes.subarray(at);
}
