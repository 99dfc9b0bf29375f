/**
 * A guest that came without VMCOREINFO, or with a wrong one (that of a kernel that ran before), with the one that its
 * kernel keeps in memory, or that somebody has: what a guest without a fw_cfg device, or a snapshot of another
 * hypervisor, lacks to be opened by debuggers.
 */

import { NOTE_NAME_VMCOREINFO } from '../formats/notes.js';
import type { ChunkOptions, Guest } from '../model/guest.js';
import type { ElfNote } from '../model/note.js';

/** A guest, and whether its VMCOREINFO had to be looked for. */
export interface CompletedGuest {
  /** the guest as it was, or with a note more; closing either closes both */
  readonly guest: Guest;
  /** guest physical address where VMCOREINFO was found; null when the guest had it, or has none */
  readonly paddr: number | null;
}

/** How to look. */
export interface WithVmcoreinfoOptions {
  /** look for it although the guest came with one, which may be wrong; what is found takes its place */
  readonly replace?: boolean | undefined;
}

/** The same guest with another VMCOREINFO than it came with, if it did; closing either closes both. */
export function withVmcoreinfoNote(guest: Guest, note: ElfNote): Guest {
  const { name, arch, blocks, cpus, memory, missing = null, assumption, live } = guest;
  return {
    name,
    arch,
    blocks,
    cpus,
    notes: replaceVmcoreinfo(guest.notes, note),
    memory,
    missing,
    assumption,
    live,
    chunks: (options?: ChunkOptions) => guest.chunks(options),
    close: () => guest.close(),
    // Whatever a guest comes to have, this one has to have, too.
  } satisfies Guest & Record<keyof Guest, unknown>;
}

/** Notes with another VMCOREINFO, behind all others. */
export function replaceVmcoreinfo(notes: readonly ElfNote[], note: ElfNote): readonly ElfNote[] {
  return [...notes.filter(({ name }) => name !== NOTE_NAME_VMCOREINFO), note];
}

/**
 * Looks for VMCOREINFO in a guest's memory, unless the guest has it or is a stream.
 * @throws VmcoreError READ, TRUNCATED, ABORTED
 */
export async function withVmcoreinfo(
  guest: Guest,
  signal?: AbortSignal,
  { replace = false }: WithVmcoreinfoOptions = {},
): Promise<CompletedGuest> {
  const hasOne = guest.notes.some(({ name }) => name === NOTE_NAME_VMCOREINFO);
  if (guest.memory === null || (hasOne && !replace)) return { guest, paddr: null };
  const { findVmcoreinfoInMemory } = await import('./find-vmcoreinfo.js');
  const found = await findVmcoreinfoInMemory(guest, signal);
  return found ? { guest: withVmcoreinfoNote(guest, found.note), paddr: found.paddr } : { guest, paddr: null };
}
