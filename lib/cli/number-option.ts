/**
 * Options that take a whole number. For yargs they are texts: of numbers it adds up those that are repeated, where the
 * later one is 1 (`--fd 1 --fd 1` would be 2), and it takes what is no number for NaN.
 */

import { VmcoreError } from '../model/errors.js';
import { parseInteger } from '../model/sizes.js';

/** What numbers an option takes. */
interface Bounds {
  readonly smallest: number;
  readonly largest?: number;
}

/**
 * Declares an option that takes a whole number.
 * @param name as users write it, without dashes
 */
export function numberOption(name: string, bounds: Bounds, describe: string) {
  const coerce = (text: unknown) => readNumber(name, bounds, text);
  return { type: 'string', requiresArg: true, describe, coerce } as const;
}

/** @param text the last one that was given; `--no-fd` gives false */
function readNumber(name: string, { smallest, largest }: Bounds, text: unknown): number {
  const value = typeof text === 'string' ? parseInteger(text) : null;
  if (value !== null && value >= smallest && value <= (largest ?? value)) return value;
  const range = largest === undefined ? `from ${smallest} on` : `from ${smallest} to ${largest}`;
  const given = typeof text === 'string' ? `, not ${JSON.stringify(text)}` : '';
  throw new VmcoreError('USAGE', `--${name} takes a whole number ${range}${given}`);
}
