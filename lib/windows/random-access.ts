/** What reads a Windows kernel needs random access to its memory. */

import { VmcoreError } from '../model/errors.js';
import type { Guest } from '../model/guest.js';
import type { PhysicalMemory } from '../model/physical-memory.js';

/**
 * The guest's memory, or a refusal where there is no random access to it.
 * @throws VmcoreError UNSUPPORTED
 */
export function requireMemory({ name, memory }: Pick<Guest, 'name' | 'memory'>): PhysicalMemory {
  if (memory) return memory;
  throw new VmcoreError(
    'UNSUPPORTED',
    `win-dmp needs random access to the guest's memory, and ${name} is a stream; save it to a file, and dump that`,
  );
}
