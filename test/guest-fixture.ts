/** Small guests for unit tests: memory is a buffer, blocks are where a test wants them. */

import { VmcoreError } from '../lib/model/errors.js';
import type { CpuState } from '../lib/model/guest.js';
import type { Backing, DataRun, MemoryBlock } from '../lib/model/physical-memory.js';
import { MemoryGuest } from '../lib/sources/memory-guest.js';
import type { ElfNote } from '../lib/model/note.js';

/** A backing over a buffer; `holes` are byte ranges of it that it knows to be zeros. */
export class BufferBacking implements Backing {
  readonly name = 'buffer';
  closed = false;
  reads = 0;

  constructor(
    readonly bytes: Uint8Array,
    readonly data?: readonly DataRun[],
  ) {
    if (data)
      this.nextData = (offset, end) => {
        const run = data.find((run) => run.end > offset && run.start < end);
        return run ? { start: Math.max(run.start, offset), end: Math.min(run.end, end) } : null;
      };
  }

  nextData?: (offset: number, end: number) => DataRun | null;

  readSync(offset: number, into: Uint8Array): void {
    this.reads++;
    if (offset + into.length > this.bytes.length) throw new VmcoreError('TRUNCATED', 'buffer ends');
    into.set(this.bytes.subarray(offset, offset + into.length));
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.readSync(offset, into);
  }

  close(): void {
    this.closed = true;
  }
}

/** Bytes that tell where they are: each 8 bytes hold their own offset, so that a misplaced byte shows. */
export function addressPattern(length: number, base = 0): Uint8Array {
  const words = new BigUint64Array(Math.ceil(length / 8));
  for (let i = 0; i < words.length; i++) words[i] = BigInt(base + 8 * i) | 0x5a00_0000_0000_0000n;
  return new Uint8Array(words.buffer, 0, length);
}

/** A guest whose blocks hold the address pattern. */
export function patternGuest(
  blocks: readonly MemoryBlock[],
  fields: { cpus?: CpuState[]; notes?: ElfNote[]; arch?: 'x86_64' | 'i386' } = {},
): MemoryGuest {
  return new MemoryGuest({
    name: 'pattern',
    arch: fields.arch ?? 'x86_64',
    regions: blocks.map((block) => ({
      ...block,
      backing: new BufferBacking(addressPattern(block.length, block.base)),
      offset: 0,
    })),
    cpus: fields.cpus ?? [],
    notes: fields.notes ?? [],
  });
}
