/** The operand of a command that says which guest or vmcore it is about. */

import type { Argv } from 'yargs';
import { VmcoreError } from '../model/errors.js';

/**
 * Declares it.
 * @param name as the command has it
 */
export function sourceOperand(yargs: Argv, name: string, describe: string): Argv {
  // yargs takes a lone dash for an empty text, unless it has been told that there is a value.
  return yargs
    .positional(name, { type: 'string', demandOption: true, describe, coerce: checkSource })
    .requiresArg(name);
}

/** Nobody says stdin by saying nothing: a variable of a shell was not set. */
function checkSource(source: string): string {
  if (source === '')
    throw new VmcoreError('USAGE', 'the source is empty; say a path, raw:FILE, qmp:PATH, demo:, or - for stdin');
  return source;
}
