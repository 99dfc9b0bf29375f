/** The axes of the fault matrix: what is dumped, from where, to where. */

import type { Format } from '../../lib/request.js';

export const FORMATS = ['elf', 'kdump-raw-lzo', 'kdump-zlib', 'win-dmp'] as const satisfies readonly Format[];
export const TARGETS = ['file', 'forced', 'fd', 'pipe', 'FIFO', 'socket'] as const;
export const SOURCES = ['memory', 'ELF', 'stream', 'kdump', 'live-file', 'live-proc'] as const;

export type FaultFormat = (typeof FORMATS)[number];
export type TargetName = (typeof TARGETS)[number];
export type SourceName = (typeof SOURCES)[number];

/** One dump. */
export interface Combination {
  readonly format: FaultFormat;
  readonly target: TargetName;
  readonly source: SourceName;
}

/** Targets that a reader is behind, which gets bytes in their order. */
const READ_BY_SOMEBODY: readonly TargetName[] = ['pipe', 'FIFO', 'socket'];

/** Whether a target is a file that a dump gives a name when it is whole. */
export function isNamed(target: TargetName): boolean {
  return target === 'file' || target === 'forced';
}

/** Whether a format's pages are compressed, by threads. */
export function isKdump(format: FaultFormat): boolean {
  return format.startsWith('kdump-');
}

/** Whether somebody reads what is written to a target. */
export function isRead(target: TargetName): boolean {
  return READ_BY_SOMEBODY.includes(target);
}

/** Whether a source is a machine that runs. */
export function isLive(source: SourceName): boolean {
  return source.startsWith('live-');
}

/** A kdump-raw goes back in its file; processors of Windows are looked for all over a guest. */
export function isOffered({ format, target, source }: Combination): boolean {
  if (format === 'kdump-raw-lzo' && isRead(target)) return false;
  return !(format === 'win-dmp' && source === 'stream');
}

/** All dumps that there are. */
export function combinations(): Combination[] {
  return FORMATS.flatMap((format) =>
    TARGETS.flatMap((target) => SOURCES.map((source) => ({ format, target, source }))),
  ).filter(isOffered);
}
