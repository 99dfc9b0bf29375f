/** What values of options have to be: programs without types may give anything, and a wrong one is refused by name. */

import { inspect } from 'node:util';
import { VmcoreError } from './errors.js';

/** What the value of an option has to be. */
export interface Rule {
  /** for messages: `true or false` */
  readonly what: string;
  allows(value: unknown): boolean;
}

/** true or false */
export const YES_OR_NO: Rule = { what: 'true or false', allows: (value) => typeof value === 'boolean' };

/** One of some names. */
export function oneOf(names: readonly string[]): Rule {
  return { what: `one of ${names.join(', ')}`, allows: (value) => names.some((name) => name === value) };
}

/** A whole number, from `smallest` to `largest` if there is one. */
export function wholeNumber(smallest: number, largest?: number): Rule {
  return {
    what: `a whole number from ${smallest} ${largest === undefined ? 'on' : `to ${largest}`}`,
    allows: (value) => isWholeNumber(value, smallest, largest),
  };
}

/** Whether a value is such a number. */
export function isWholeNumber(value: unknown, smallest: number, largest = Number.MAX_SAFE_INTEGER): boolean {
  return Number.isSafeInteger(value) && Number(value) >= smallest && Number(value) <= largest;
}

/**
 * Checks options by their rules; one that is absent is always right.
 * @throws VmcoreError USAGE that names the option which is wrong, what it has to be, and what it was
 */
export function checkOptions<T extends object>(options: T, rules: Readonly<Partial<Record<keyof T, Rule>>>): void {
  for (const [name, rule] of Object.entries(rules) as [string, Rule][]) {
    const value: unknown = options[name as keyof T];
    if (value !== undefined && !rule.allows(value))
      throw new VmcoreError('USAGE', `${name} must be ${rule.what}, not ${excerpt(value)}`);
  }
}

/** A value in a message: short whatever it is, and one line. */
function excerpt(value: unknown): string {
  return inspect(value, { depth: 0, maxStringLength: 40, maxArrayLength: 4, breakLength: Number.POSITIVE_INFINITY });
}
