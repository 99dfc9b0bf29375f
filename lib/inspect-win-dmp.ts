/** What is peculiar to a Windows guest: the dump header, in a crash dump or in the note of the guest's driver. */

import { VmcoreError } from './model/errors.js';
import { decodeWinDmpHeader, type WinDmpHeader, winDmpBits } from './formats/win-dmp.js';
import type { Guest } from './model/guest.js';
import { PAGE_SIZE } from './model/stage.js';
import { hasWinDmpHeader, winDmpHeaderOf } from './windows/header-note.js';

/** A dump header, as JSON. */
export interface InspectedWinDmp {
  /** fields by Microsoft's names; counts and versions are numbers, all else that is no text `0x…` */
  readonly header: Readonly<Record<string, string | number>>;
  /** the runs of memory, in the order of the table: address of the first byte, and bytes */
  readonly runs: readonly { readonly base: string; readonly length: number }[];
  /** why the CPUs are not those of the kernel's context frames; null when they are */
  readonly withoutFrames: string | null;
}

/** Fields that are counted or compared, not looked up as addresses or bits. */
const DECIMAL: ReadonlySet<string> = new Set([
  'MajorVersion',
  'MinorVersion',
  'NumberProcessors',
  'NumberOfRuns',
  'NumberOfPages',
  'NumberParameters',
  'DumpType',
  'RequiredDumpSpace',
  'PaeEnabled',
]);

function hex(value: bigint): string {
  return `0x${value.toString(16)}`;
}

/** The header of a guest that has one in a note; null when it has none, or it is damaged. */
function headerOfNote(guest: Pick<Guest, 'notes'>): WinDmpHeader | null {
  if (!hasWinDmpHeader(guest)) return null;
  try {
    const bytes = winDmpHeaderOf(guest);
    return decodeWinDmpHeader(bytes, winDmpBits(bytes)!);
  } catch (error) {
    if (error instanceof VmcoreError) return null;
    throw error;
  }
}

/** The dump header of a Windows guest; null of any other. */
export function inspectWinDmp(guest: Pick<Guest, 'notes'> & { withoutFrames?: string | null }): InspectedWinDmp | null {
  const found = headerOfNote(guest);
  if (!found) return null;
  const { bits: _, runs, ...fields } = found;
  const shown = Object.entries(fields).map(([name, value]) => [name, shownField(name, value)]);
  return {
    header: Object.fromEntries(shown) as Record<string, string | number>,
    runs: runs.map(({ BasePage, PageCount }) => ({
      base: hex(BasePage * BigInt(PAGE_SIZE)),
      length: Number(PageCount) * PAGE_SIZE,
    })),
    withoutFrames: guest.withoutFrames ?? null,
  };
}

function shownField(name: string, value: string | bigint | readonly bigint[]): string | number {
  if (typeof value === 'string') return printable(value);
  if (typeof value !== 'bigint') return value.map(hex).join(' ');
  return DECIMAL.has(name) ? Number(value) : hex(value);
}

/** A text without what would move a terminal's cursor; what Windows fills unused fields with is none. */
function printable(text: string): string {
  return /^(PAGE)+/.test(text) && text.length > 4 ? '' : text.replaceAll(/[^\x20-\x7e]/g, '.');
}
