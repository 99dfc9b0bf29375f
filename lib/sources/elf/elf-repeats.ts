/**
 * Memory that a core stores twice. /proc/vmcore has the kernel's text in two segments, and a Xen core may name a frame
 * again: one of them is taken, and the other has to be the same, or the core contradicts itself.
 *
 * A file is compared as it is opened. Of a stream a digest is made of each as they pass by.
 */

import { createHash, type Hash } from 'node:crypto';
import { VmcoreError } from '../../model/errors.js';
import { blockEnd, lastIndexAtOrBelow, type MemoryBlock } from '../../model/physical-memory.js';
import { badInput, type LoadSegment } from './elf-headers.js';
import type { StoredBlock } from './elf-memory.js';

/** Memory that is at two places of a core. */
export interface RepeatedMemory extends MemoryBlock {
  /** where the bytes are that are taken */
  readonly taken: number;
  /** where the same bytes have to be again */
  readonly again: number;
}

/** What comparing may take: the kernel's image has at most 1 GiB. */
export interface RepeatLimits {
  readonly maxBytes: number;
  /** pieces of memory that are looked at, whether they are compared or not */
  readonly maxPieces: number;
}

export const REPEAT_LIMITS: RepeatLimits = { maxBytes: 2 ** 32, maxPieces: 2 ** 20 };

/** Bytes that are compared at a time. */
const WINDOW_BYTES = 1 << 20;

/** Segments that map memory to bytes in the same way, and so share them. */
interface Aliases {
  /** offset in the core minus physical address */
  readonly shift: number;
  readonly spans: readonly MemoryBlock[];
}

/**
 * What the segments have at another place than the one that was taken.
 * @param pieces the memory as resolveMemory gives it
 * @throws VmcoreError LIMIT
 */
export function repeatedMemory(
  name: string,
  loads: readonly LoadSegment[],
  pieces: readonly StoredBlock[],
  { maxBytes, maxPieces }: RepeatLimits = REPEAT_LIMITS,
): RepeatedMemory[] {
  const repeated: RepeatedMemory[] = [];
  let [bytes, looks] = [0, 0];
  for (const { shift, spans } of aliasesOf(loads))
    for (const span of spans)
      for (let i = Math.max(0, lastIndexAtOrBelow(pieces, span.base)); i < pieces.length; i++) {
        const piece = pieces[i]!;
        if (piece.base >= blockEnd(span)) break;
        const base = Math.max(piece.base, span.base);
        const length = Math.min(blockEnd(piece), blockEnd(span)) - base;
        if (++looks > maxPieces) throw tooMuch(name, `in more than ${maxPieces} pieces`);
        if (piece.offset === null || length <= 0 || piece.offset - piece.base === shift) continue;
        repeated.push({ base, length, taken: piece.offset + (base - piece.base), again: shift + base });
        bytes += length;
        if (bytes > maxBytes) throw tooMuch(name, `in more than ${maxBytes} bytes`);
      }
  return repeated;
}

function tooMuch(name: string, how: string): VmcoreError {
  return new VmcoreError('LIMIT', `${name} has memory at several places of the file ${how}`);
}

/** Segments with bytes by how they map, those that overlap or touch as one. */
function aliasesOf(loads: readonly LoadSegment[]): Aliases[] {
  const byShift = new Map<number, MemoryBlock[]>();
  for (const { paddr, offset, filesz } of loads) {
    if (filesz === 0) continue;
    const spans = byShift.get(offset - paddr);
    if (spans) spans.push({ base: paddr, length: filesz });
    else byShift.set(offset - paddr, [{ base: paddr, length: filesz }]);
  }
  return [...byShift].map(([shift, spans]) => ({ shift, spans: joined(spans) }));
}

function joined(spans: MemoryBlock[]): MemoryBlock[] {
  const all: MemoryBlock[] = [];
  for (const span of spans.sort((a, b) => a.base - b.base)) {
    const last = all.at(-1);
    if (last && span.base <= blockEnd(last))
      all[all.length - 1] = { base: last.base, length: Math.max(blockEnd(last), blockEnd(span)) - last.base };
    else all.push(span);
  }
  return all;
}

/**
 * Compares what a file has twice.
 * @throws VmcoreError BAD_INPUT when it differs; READ, TRUNCATED
 */
export async function checkRepeats(
  file: { readonly name: string; read(offset: number, into: Uint8Array): Promise<void> },
  repeated: readonly RepeatedMemory[],
): Promise<void> {
  const [one, two] = [Buffer.alloc(WINDOW_BYTES), Buffer.alloc(WINDOW_BYTES)];
  for (const { base, length, taken, again } of repeated)
    for (let done = 0; done < length; done += WINDOW_BYTES) {
      const [a, b] = [one, two].map((buffer) => buffer.subarray(0, Math.min(WINDOW_BYTES, length - done)));
      await file.read(taken + done, a!);
      await file.read(again + done, b!);
      if (a!.equals(b!)) continue;
      const at = a!.findIndex((byte, i) => byte !== b![i]) + done;
      throw contradiction(file.name, base + at, taken + at, again + at);
    }
}

function contradiction(name: string, paddr: number, taken: number, again: number): VmcoreError {
  return badInput(
    `${name}: memory at 0x${paddr.toString(16)} is at byte ${taken} and at byte ${again} of the file, and differs; ` +
      'its headers contradict each other',
  );
}

/** A place of the stream whose bytes are digested as they pass. */
interface Place {
  readonly start: number;
  readonly end: number;
  readonly hash: Hash;
}

/** Looks at the bytes of a stream as they pass, in order, and tells in the end whether what it had twice was the same. */
export class RepeatWatch {
  readonly #pairs: readonly { readonly repeat: RepeatedMemory; readonly taken: Place; readonly again: Place }[];
  /** places that have not passed, by where they begin; the next one is the last */
  readonly #coming: Place[];
  /** places that are passing */
  #passing: Place[] = [];

  constructor(
    readonly name: string,
    repeated: readonly RepeatedMemory[],
  ) {
    this.#pairs = repeated.map((repeat) => ({
      repeat,
      taken: placeOf(repeat.taken, repeat.length),
      again: placeOf(repeat.again, repeat.length),
    }));
    this.#coming = this.#pairs.flatMap(({ taken, again }) => [taken, again]).sort((a, b) => b.start - a.start);
  }

  /** Takes the bytes that are at `offset` of the stream. */
  see(offset: number, bytes: Uint8Array): void {
    const end = offset + bytes.length;
    while (this.#coming.length > 0 && this.#coming.at(-1)!.start < end) this.#passing.push(this.#coming.pop()!);
    if (this.#passing.length === 0) return;
    for (const place of this.#passing)
      place.hash.update(bytes.subarray(Math.max(0, place.start - offset), Math.max(0, place.end - offset)));
    this.#passing = this.#passing.filter((place) => place.end > end);
  }

  /** Tells, when all has passed. @throws VmcoreError BAD_INPUT */
  check(): void {
    for (const { repeat, taken, again } of this.#pairs)
      if (!taken.hash.digest().equals(again.hash.digest()))
        throw contradiction(this.name, repeat.base, repeat.taken, repeat.again);
  }
}

function placeOf(start: number, length: number): Place {
  return { start, end: start + length, hash: createHash('sha256') };
}
