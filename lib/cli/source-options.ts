/** The options of every command that opens a guest: what to open, what it does not say of itself, and bounds. */

import type { Argv } from 'yargs';
import type { Interrupt } from './interrupt.js';
import { isLive, type LiveArguments, liveOpenOptions } from './live-source.js';
import { numberOption } from './number-option.js';
import { sourceOperand } from './source-operand.js';
import type { Guest } from '../model/guest.js';
import { parseSize } from '../model/sizes.js';
import { openGuest, type OpenGuestOptions } from '../open-guest.js';

/** What a source does not say of itself, as yargs gives it. */
export interface DescribingArguments {
  below4g?: string;
  registers?: string;
  vmcoreinfo?: string;
  forceRaw?: boolean;
}

/** The options as yargs gives them. */
export interface SourceArguments extends LiveArguments, DescribingArguments {
  maxMappings?: number;
  maxPageTables?: number;
  threads?: number;
}

/** Declares the options of what a source does not say of itself, or says wrongly. */
export function describingOptions(yargs: Argv): Argv {
  return yargs
    .option('below-4g', {
      type: 'string',
      describe:
        "raw: RAM below 4 GiB (the rest begins at 4 GiB); by default as in QEMU's pc: all of less than 3584M, else 3G. A q35 of 2816M or more has 2G, an older Firecracker 3328M",
    })
    .option('registers', { type: 'string', describe: 'raw: file with what HMP `info registers -a` prints' })
    .option('vmcoreinfo', {
      type: 'string',
      describe: 'file with VMCOREINFO, text or ELF note, in place of what the source has',
    })
    .option('force-raw', {
      type: 'boolean',
      default: false,
      describe: 'raw: take a file for memory that begins as a vmcore or another known file does',
    })
    .requiresArg(['below-4g', 'registers', 'vmcoreinfo']);
}

/** The options as openGuest has them. */
export function describedBy({ below4g, registers, vmcoreinfo, forceRaw }: DescribingArguments): OpenGuestOptions {
  return {
    below4g: below4g === undefined ? undefined : parseSize(below4g, '--below-4g'),
    registers,
    vmcoreinfo,
    forceRaw,
  };
}

/** Declares the options. */
export function sourceOptions(yargs: Argv): Argv {
  return describingOptions(
    sourceOperand(
      yargs,
      'source',
      'guest description (JSON), vmcore (ELF, kdump, dmp), raw:FILE, qmp:PATH (a live QEMU), - (a vmcore on stdin), or demo:',
    ),
  )
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
    );
}

/**
 * Opens the guest that the options name, and tells what had to be assumed of it.
 * @param interrupt ends it when a signal comes; a live machine runs on before that shows
 * @throws VmcoreError
 */
export async function openSource(args: SourceArguments, interrupt?: Interrupt): Promise<Guest> {
  const opening = openGuest(args.source, {
    ...describedBy(args),
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
