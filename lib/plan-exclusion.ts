/**
 * What a request leaves out: decided before the format is planned, for all formats in the same way.
 */

import { findVmcoreinfo } from './formats/vmcoreinfo.js';
import type { CompletedGuest } from './linux/with-vmcoreinfo.js';
import { DL_EXCLUDE_ZERO } from './model/dump-level.js';
import { VmcoreError } from './model/errors.js';
import type { Guest } from './model/guest.js';
import { EXCLUDE_REASONS, type ExcludeReason, PageExclusion } from './model/page-exclusion.js';
import type { PlanContext } from './plan-context.js';
import type { DumpRequest } from './request.js';

/** Pages that are left out, by the first reason that each had. */
export type ExcludedByReason = Readonly<Partial<Record<ExcludeReason, number>>>;

/** What is known before a format is planned. */
export interface Prepared {
  /** the guest, with VMCOREINFO if it was looked for and found */
  readonly guest: Guest;
  /** guest physical address where VMCOREINFO was found; null when it was not looked for or not found */
  readonly vmcoreinfoAt: number | null;
  /** the pages that are left out; null when neither the request nor the source leaves any out */
  readonly exclusion: PageExclusion | null;
  /** pages that are kept because the kernel's structures contradict themselves, or tell nothing of them (not online) */
  readonly undecided: number;
  /** device memory that the guest above has no more, or has */
  readonly deviceMemory: DeviceMemory;
}

/** Pages of memory above all that the guest's kernel has struct pages for, such as video memory and ROMs. */
export interface DeviceMemory {
  /** kdump: pages that a dump level leaves out; absent when there are none */
  readonly deviceLeftOut?: number;
  /** kdump: pages that are in the dump, for which makedumpfile is not to be used on it; absent when there are none */
  readonly deviceKept?: number;
}

/**
 * Looks for VMCOREINFO where that is asked for or needed, and decides which pages are left out.
 * @throws VmcoreError USAGE when the request makes no sense; what excludePages throws
 */
export async function prepare(guest: Guest, request: DumpRequest, context: PlanContext): Promise<Prepared> {
  checkExclusion(guest, request);
  const { dumpLevel } = request;
  // Zeros are found without knowing anything of the kernel.
  const byKernel = ((dumpLevel ?? 0) & ~DL_EXCLUDE_ZERO) !== 0;
  const completed =
    (request.findVmcoreinfo ?? byKernel)
      ? await complete(guest, { isNeeded: byKernel, replace: request.findVmcoreinfo === true }, context)
      : { guest, paddr: null };
  const { guest: dumped, deviceMemory } = await decideDeviceMemory(completed.guest, request);
  const decided = byKernel ? await decide(dumped, request, context) : { exclusion: null, undecided: 0 };
  const exclusion = withMissing(dumped, request, decided.exclusion, context);
  return { guest: dumped, vmcoreinfoAt: completed.paddr, exclusion, undecided: decided.undecided, deviceMemory };
}

/**
 * Leaves device memory out of a kdump where pages are left out, and of others says how much there is. ELF vmcores have it
 * in a segment of its own, those of makedumpfile -E too.
 */
async function decideDeviceMemory(
  guest: Guest,
  { format = 'elf', dumpLevel = 0, keepDeviceMemory }: DumpRequest,
): Promise<Pick<Prepared, 'guest' | 'deviceMemory'>> {
  if (!format.startsWith('kdump-')) return { guest, deviceMemory: {} };
  const { deviceMemoryStart, pagesFrom, withoutDeviceMemory } = await import('./linux/device-memory.js');
  const start = deviceMemoryStart(guest);
  if (start === null) return { guest, deviceMemory: {} };
  const pages = pagesFrom(guest.blocks, start);
  if (dumpLevel === 0 || keepDeviceMemory) return { guest, deviceMemory: { deviceKept: pages } };
  return { guest: withoutDeviceMemory(guest, start), deviceMemory: { deviceLeftOut: pages } };
}

/** What the kernel's structures say. */
async function decide(
  guest: Guest,
  { dumpLevel: level = 0, excludeFallback: fallback }: DumpRequest,
  { signal, onWarning }: PlanContext,
): Promise<Pick<Prepared, 'exclusion' | 'undecided'>> {
  const { excludePages } = await import('./linux/exclude-pages.js');
  const { exclusion, undecided, warnings } = await excludePages(guest, { level, fallback, signal });
  for (const text of warnings) onWarning(text);
  return { exclusion, undecided };
}

/** What a dump that was made with a level lacks stays left out, or a reader would take it for zeros. */
function withMissing(
  { name, missing }: Guest,
  { format, dumpLevel }: DumpRequest,
  decided: PageExclusion | null,
  { onWarning }: PlanContext,
): PageExclusion | null {
  const exclusion = decided ?? (dumpLevel === undefined ? null : new PageExclusion(dumpLevel));
  if (!missing) return exclusion;
  if (format === 'win-dmp') {
    onWarning(`${name} lacks ${missing.count} pages, left out when it was made; here they will be zeros`);
    return null;
  }
  const all = exclusion ?? new PageExclusion(0);
  all.addMissing(missing);
  return all;
}

/** Looks for VMCOREINFO; a dump that can do without goes on when that fails for what the memory holds. */
async function complete(
  guest: Guest,
  { isNeeded, replace }: { readonly isNeeded: boolean; readonly replace: boolean },
  { signal, onWarning }: PlanContext,
): Promise<CompletedGuest> {
  const { withVmcoreinfo } = await import('./linux/with-vmcoreinfo.js');
  const hasOne = findVmcoreinfo(guest.notes) !== null;
  try {
    const completed = await withVmcoreinfo(guest, signal, { replace });
    if (hasOne && replace && completed.paddr === null)
      onWarning(`no VMCOREINFO was found in the memory of ${guest.name}: it keeps the one that it came with`);
    return completed;
  } catch (error) {
    if (isNeeded || !(error instanceof VmcoreError) || error.code !== 'BAD_INPUT') throw error;
    onWarning(`the vmcore ${hasOne ? 'keeps its' : 'goes without'} VMCOREINFO: ${error.message}`);
    return { guest, paddr: null };
  }
}

/** What of a request does not go together, before anything is read. */
function checkExclusion(
  { missing }: Guest,
  { format = 'elf', dumpLevel, keepLayout, keepDeviceMemory, excludeFallback }: DumpRequest,
): void {
  if (dumpLevel === undefined) {
    const pointless = [
      ...(keepLayout && !missing ? ['--keep-layout'] : []),
      ...(keepDeviceMemory ? ['--keep-device-memory'] : []),
      ...(excludeFallback === undefined ? [] : ['--exclude-fallback']),
    ];
    if (pointless.length > 0)
      throw new VmcoreError('USAGE', `${pointless[0]} says how pages are left out: give --dump-level or --exclude too`);
    return;
  }
  if (format === 'win-dmp')
    throw new VmcoreError('USAGE', 'win-dmp has no way to leave pages out: dump levels go with elf and kdump');
  if (keepLayout && format !== 'elf')
    throw new VmcoreError('USAGE', 'a kdump has no segments whose layout could be kept: --keep-layout goes with elf');
  if (keepDeviceMemory && format === 'elf')
    throw new VmcoreError(
      'USAGE',
      'an ELF vmcore has device memory at any level: --keep-device-memory goes with kdump',
    );
}

/** What the summary of a dump says of pages that are left out. */
export interface LeftOut extends DeviceMemory {
  /** pages that the dump level leaves out; absent when the request has none */
  readonly excluded?: number;
  /** the same by reason; absent when a range holds but some of them */
  readonly excludedByReason?: ExcludedByReason | undefined;
  /** pages that are kept only because the kernel's structures contradict themselves, or tell nothing of them */
  readonly undecided?: number;
}

/**
 * Says what was left out.
 * @param excluded pages of the dump that are left out; when a range holds but some of all, their reasons are not known
 */
export function describeLeftOut({ exclusion, undecided, deviceMemory }: Prepared, excluded: number): LeftOut {
  if (!exclusion) return deviceMemory;
  const counts = EXCLUDE_REASONS.map((reason) => [reason, exclusion.count(reason)] as const);
  const byReason = Object.fromEntries(counts.filter(([, count]) => count > 0));
  return {
    ...deviceMemory,
    excluded,
    undecided,
    excludedByReason: exclusion.total === excluded ? byReason : undefined,
  };
}
