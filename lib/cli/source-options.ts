/** The options of every command that opens a guest: what to open, what it does not say of itself, and bounds. */

import type { Argv } from 'yargs';
import type { Guest } from '../model/guest.js';
import { parseSize } from '../model/sizes.js';
import { openGuest } from '../open-guest.js';
import type { Interrupt } from './interrupt.js';
import { isLive, type LiveArguments, liveOpenOptions } from './live-source.js';
import { numberOption } from './number-option.js';
import { sourceOperand } from './source-operand.js';

/** The options as yargs gives them. */
export interface SourceArguments extends LiveArguments {
  below4g?: string;
  registers?: string;
  vmcoreinfo?: string;
  maxMappings?: number;
  maxPageTables?: number;
  threads?: number;
}

/** Declares the options. */
export function sourceOptions(yargs: Argv): Argv {
  return sourceOperand(
    yargs,
    'source',
    'guest description (JSON), vmcore (ELF, kdump, dmp), raw:FILE, qmp:PATH (a live QEMU), - (a vmcore on stdin), or demo:',
  )
    .option('below-4g', {
      type: 'string',
      describe:
        "raw: RAM below 4 GiB (the rest begins at 4 GiB); by default as in QEMU's pc: all of less than 3584M, else 3G. A q35 of 2816M or more has 2G",
    })
    .option('registers', { type: 'string', describe: 'raw: file with what HMP `info registers -a` prints' })
    .option('vmcoreinfo', { type: 'string', describe: 'raw: file with VMCOREINFO, text or ELF note' })
    .option(
      'max-mappings',
      numberOption('max-mappings', { smallest: 1 }, 'paging: bound on mappings, for guests that cannot be trusted'),
    )
    .option(
      'max-page-tables',
      numberOption('max-page-tables', { smallest: 1 }, 'paging: bound on page tables that are read'),
    )
    .option(
      'threads',
      numberOption('threads', { smallest: 1 }, 'worker threads of formats that compress (elf has nothing to compress)'),
    )
    .requiresArg(['below-4g', 'registers', 'vmcoreinfo']);
}

/**
 * Opens the guest that the options name, and tells what had to be assumed of it.
 * @param interrupt ends it when a signal comes; a live machine runs on before that shows
 * @throws VmcoreError
 */
export async function openSource(args: SourceArguments, interrupt?: Interrupt): Promise<Guest> {
  const { source, below4g, registers, vmcoreinfo } = args;
  const opening = openGuest(source, {
    below4g: below4g === undefined ? undefined : parseSize(below4g, '--below-4g'),
    registers,
    vmcoreinfo,
    ...liveOpenOptions(args),
    signal: interrupt?.signal,
    onWarning: warn,
  });
  const guest = await (interrupt && !isLive(args) ? interrupt.race(opening) : opening);
  if (guest.assumption !== undefined) warn(guest.assumption);
  return guest;
}

/** Tells a user what is no failure. */
export function warn(text: string): void {
  process.stderr.write(`vmcore: warning: ${text}\n`);
}
