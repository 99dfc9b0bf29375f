/**
 * Random access to the memory in a vmcore, for programs: ELF cores and kdumps, raw or flattened.
 */

import { VmcoreError } from './model/errors.js';
import type { Guest } from './model/guest.js';
import type { MemoryBlock, PhysicalMemory } from './model/physical-memory.js';
import { openGuest } from './open-guest.js';

/** A vmcore that is open for reading. Compressed pages are kept decompressed, the last 4 MiB of them. */
export class VmcoreReader {
  readonly #memory: PhysicalMemory;

  /** @param guest what the vmcore holds beside memory: CPUs, notes, architecture; closed with the reader */
  constructor(readonly guest: Guest) {
    if (!guest.memory)
      throw new VmcoreError('UNSUPPORTED', `${guest.name} is a stream, which cannot be read at random`);
    this.#memory = guest.memory;
  }

  /** The memory that the vmcore has, sorted by address. */
  get blocks(): readonly MemoryBlock[] {
    return this.guest.blocks;
  }

  /**
   * Reads guest physical memory. Pages that makedumpfile left out read as zeros.
   * @param paddr  guest physical address
   * @param length number of bytes
   * @throws VmcoreError NO_MEMORY when not all of it is memory; BAD_INPUT, TRUNCATED, READ when the file is damaged
   */
  read(paddr: number, length: number): Uint8Array {
    if (!Number.isSafeInteger(paddr) || paddr < 0 || !Number.isSafeInteger(length) || length < 0)
      throw new VmcoreError('USAGE', `${length} bytes at ${paddr}: address and length must be integers from 0 on`);
    const last = paddr + length - 1;
    if (length > 0 && !(this.#memory.has(paddr) && this.#memory.has(last))) throw this.#noMemory(paddr, length);
    const bytes = new Uint8Array(length);
    if (!this.#memory.read(paddr, bytes)) throw this.#noMemory(paddr, length);
    return bytes;
  }

  /** Closes the file. */
  close(): void {
    this.guest.close();
  }

  #noMemory(paddr: number, length: number): VmcoreError {
    return new VmcoreError(
      'NO_MEMORY',
      `${this.guest.name} has not all of the memory 0x${paddr.toString(16)}+0x${length.toString(16)}; 'blocks' lists what it has`,
    );
  }
}

/**
 * Opens a vmcore for random access. What it is shows in its content, not in its name.
 * @throws VmcoreError READ, BAD_INPUT and others when it is no vmcore, or none that can be read at random
 */
export async function openVmcore(path: string): Promise<VmcoreReader> {
  const guest = await openGuest(path);
  try {
    return new VmcoreReader(guest);
  } catch (error) {
    guest.close();
    throw error;
  }
}
