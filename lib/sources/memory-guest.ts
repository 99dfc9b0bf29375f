/**
 * A guest whose memory is at hand as random access: all sources but streams end as one of these.
 */

import type { Chunk } from '../model/chunk.js';
import type { Architecture, ChunkOptions, CpuState, Guest } from '../model/guest.js';
import type { ElfNote } from '../model/note.js';
import { type MemoryBlock, type MemoryRegion, PhysicalMemory } from '../model/physical-memory.js';
import type { Source, StageOptions } from '../model/stage.js';
import { MemorySource } from './memory-source.js';

/** What a MemoryGuest is made of. */
export interface MemoryGuestFields {
  /** what it came from, for messages */
  readonly name: string;
  readonly arch: Architecture;
  /** memory and where its bytes are; need not be sorted, must not overlap */
  readonly regions: readonly MemoryRegion[];
  readonly cpus: readonly CpuState[];
  /** notes other than those of the CPUs */
  readonly notes: readonly ElfNote[];
  /** what the source leaves open and was decided by a rule */
  readonly assumption?: string | undefined;
}

/** A guest over regions of memory. It owns their backings and closes them. */
export class MemoryGuest implements Guest {
  readonly name: string;
  readonly arch: Architecture;
  readonly cpus: readonly CpuState[];
  readonly notes: readonly ElfNote[];
  readonly assumption: string | undefined;
  readonly memory: PhysicalMemory;

  /** @throws VmcoreError BAD_INPUT when regions overlap */
  constructor(fields: MemoryGuestFields) {
    this.name = fields.name;
    this.arch = fields.arch;
    this.cpus = fields.cpus;
    this.notes = fields.notes;
    this.assumption = fields.assumption;
    this.memory = new PhysicalMemory(fields.regions);
  }

  get blocks(): readonly MemoryBlock[] {
    return this.memory.regions;
  }

  chunks(options: ChunkOptions & StageOptions = {}): Source<Chunk> {
    return new MemorySource(this.memory.regions, options);
  }

  close(): void {
    for (const backing of new Set(this.memory.regions.map((region) => region.backing))) backing?.close();
  }
}
