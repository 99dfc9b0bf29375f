/**
 * A guest that came without VMCOREINFO, with the one that its kernel keeps in memory: what a guest without a fw_cfg
 * device, or a snapshot of another hypervisor, lacks to be opened by debuggers.
 */

import { NOTE_NAME_VMCOREINFO } from '../formats/notes.js';
import type { ChunkOptions, Guest } from '../model/guest.js';

/** A guest, and whether its VMCOREINFO had to be looked for. */
export interface CompletedGuest {
  /** the guest as it was, or with a note more; closing either closes both */
  readonly guest: Guest;
  /** guest physical address where VMCOREINFO was found; null when the guest had it, or has none */
  readonly paddr: number | null;
}

/**
 * Looks for VMCOREINFO in a guest's memory, unless the guest has it or is a stream.
 * @throws VmcoreError READ, TRUNCATED, ABORTED
 */
export async function withVmcoreinfo(guest: Guest, signal?: AbortSignal): Promise<CompletedGuest> {
  if (guest.memory === null || guest.notes.some(({ name }) => name === NOTE_NAME_VMCOREINFO))
    return { guest, paddr: null };
  const { findVmcoreinfoInMemory } = await import('./find-vmcoreinfo.js');
  const found = await findVmcoreinfoInMemory(guest, signal);
  if (!found) return { guest, paddr: null };
  const { name, arch, blocks, cpus, notes, memory, missing = null, assumption, live } = guest;
  const completed = {
    name,
    arch,
    blocks,
    cpus,
    notes: [...notes, found.note],
    memory,
    missing,
    assumption,
    live,
    chunks: (options?: ChunkOptions) => guest.chunks(options),
    close: () => guest.close(),
    // Whatever a guest comes to have, this one has to have, too.
  } satisfies Guest & Record<keyof Guest, unknown>;
  return { guest: completed, paddr: found.paddr };
}
