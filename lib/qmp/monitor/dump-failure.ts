/** Why a dump failed, in QEMU's words where QEMU has some. */

import { messageOf, VmcoreError } from '../../model/errors.js';
import type { Guest } from '../../model/guest.js';
import type { DumpRequest } from '../../request.js';
import type { Progress } from '../../model/stage.js';
import { QmpCommandError } from '../protocol/client.js';
import { canMake } from './schema.js';
import { strerror, systemCode } from '../protocol/strerror.js';

/** What QEMU says when bytes cannot be written. */
interface WriteFailure {
  readonly formats: RegExp;
  /** of the first bytes */
  readonly first: string;
  /** of later ones */
  readonly later: string;
  /** whether it says why */
  readonly reason: boolean;
}

const WRITE_FAILURES: readonly WriteFailure[] = [
  {
    formats: /^elf$/,
    first: 'dump: failed to write elf header',
    later: 'dump: failed to save memory',
    reason: true,
  },
  {
    formats: /^kdump-raw-/,
    first: 'dump: failed to write disk dump header',
    later: 'dump: failed to write page data',
    reason: false,
  },
  {
    formats: /^kdump-/,
    first: 'dump: failed to write start flat header',
    later: 'dump: failed to write page data',
    reason: false,
  },
  {
    formats: /^win-dmp$/,
    first: 'win-dump: failed to write header',
    later: 'win-dump: failed to write memory',
    reason: true,
  },
];

const CANCELLED = 'dump: cancelled';

/** Bytes of what the Windows driver of QEMU puts into the VMCOREINFO note: a dump header of 32 or 64 bits. */
const WINDOWS_HEADER_BYTES: readonly number[] = [0x1000, 0x2000];

/** What QEMU finds out only when the dump has begun; null when there is nothing. */
export function refusal(guest: Guest, format: string): string | null {
  if (format === 'win-dmp' && !isWindows(guest)) return 'win-dump: invalid vmcoreinfo note size';
  return canMake(format) ? null : `${format} is not available now`;
}

function isWindows({ notes }: Guest): boolean {
  return notes.some(({ name, desc }) => name === 'VMCOREINFO' && WINDOWS_HEADER_BYTES.includes(desc.length));
}

/** Why there is no guest to dump: QEMU's words as they are, where QEMU refused to dump. */
export function lendFailureText(error: unknown, { aborted, reason }: AbortSignal): string {
  const cause: unknown = aborted && reason instanceof VmcoreError ? reason : error;
  if (aborted && cause === error) return CANCELLED;
  const refusedByQemu = cause instanceof QmpCommandError && cause.command === 'dump-guest-memory';
  return refusedByQemu ? cause.desc : `dump: ${messageOf(cause)}`;
}

/** The text of a failure. */
export function failureText(error: unknown, { format = 'elf' }: DumpRequest, { completed }: Progress): string {
  const code = error instanceof VmcoreError ? error.code : null;
  if (code === 'ABORTED') return CANCELLED;
  const failure = WRITE_FAILURES.find(({ formats }) => formats.test(format));
  if (code !== 'WRITE' || systemCode(error) === undefined || !failure) return `dump: ${messageOf(error)}`;
  const { first, later, reason } = failure;
  return `${completed === 0 ? first : later}${reason ? `: ${strerror(error)}` : ''}`;
}
