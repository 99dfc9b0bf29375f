/**
 * Sizes and addresses as people write them: 4096, 0x1000, 64K, 2G; and back.
 *
 * All are numbers of bytes and exact: what a JavaScript number cannot hold exactly (above 2^53 - 1) is refused.
 */

import { VmcoreError } from './errors.js';

/** Powers of 1024 that a suffix stands for. */
const SUFFIXES = ['', 'K', 'M', 'G', 'T', 'P'] as const;
const UNITS = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const;
const STEP = 1024;

/** Decimal or 0x-hexadecimal digits. More than 20 of them cannot be a number that we take. */
const INTEGER = /^(?:0x[0-9a-f]{1,20}|[0-9]{1,20})$/i;
/** An integer and a power of 1024: K, k, KiB. Not KB, which is 1000 to some and 1024 to others. */
const SIZE = /^(0x[0-9a-f]+|[0-9]+)(?:([KMGTP])(?:iB)?)?$/i;

/**
 * A number as written: decimal, or hexadecimal after 0x.
 * @returns null when it is neither, negative or above 2^53 - 1
 */
export function parseInteger(text: string): number | null {
  if (!INTEGER.test(text)) return null;
  const value = Number(text);
  return Number.isSafeInteger(value) ? value : null;
}

/**
 * A number of bytes: 4096, 0x1000, 64K, 2G, 2GiB. Suffixes are powers of 1024, in either case.
 * @param text what the user wrote
 * @param what what it is for, to begin the message with: `--below-4g`
 * @throws VmcoreError USAGE
 */
export function parseSize(text: string, what?: string): number {
  const [, digits = '', suffix = ''] = SIZE.exec(text.trim()) ?? [];
  const count = parseInteger(digits);
  if (count === null) throw badNumber(text, what, 'a size such as 4096, 0x1000, 64K or 2G');
  const bytes = count * STEP ** SUFFIXES.indexOf(suffix.toUpperCase() as (typeof SUFFIXES)[number]);
  if (!Number.isSafeInteger(bytes)) throw badNumber(text, what, 'a size below 8192T');
  return bytes;
}

/**
 * A physical address: 4294967296 or 0x100000000; 4G as well, since that is how people say it.
 * @param text what the user wrote
 * @param what what it is for, to begin the message with: `--begin`
 * @throws VmcoreError USAGE
 */
export function parseAddress(text: string, what?: string): number {
  try {
    return parseSize(text, what);
  } catch (cause) {
    throw badNumber(text, what, 'an address such as 0x100000000, 1048576 or 4G', cause);
  }
}

function badNumber(text: string, what: string | undefined, wanted: string, cause?: unknown): VmcoreError {
  const where = what === undefined ? '' : `${what}: `;
  return new VmcoreError('USAGE', `${where}${JSON.stringify(text)} is not ${wanted}`, { cause });
}

/** A size for people, three digits of it: `256 MiB`, `2.75 GiB`, `1 byte`. Fractions of a byte (a rate) are rounded. */
export function formatSize(bytes: number): string {
  let value = Math.round(bytes);
  if (value === 1) return '1 byte';
  let unit = 0;
  // 999.5 and not 1024, so that what is shown never has four digits before the unit changes.
  for (; value >= (unit === 0 ? STEP : 999.5) && unit < UNITS.length - 1; unit++) value /= STEP;
  return `${unit === 0 ? value : Number(value.toPrecision(3))} ${UNITS[unit]}`;
}

/** A size as `parseSize` takes it, exact and short: `2816M`, `3G`, `4097`. */
export function sizeArgument(bytes: number): string {
  let count = bytes;
  let power = 0;
  for (; count > 0 && count % STEP === 0 && power < SUFFIXES.length - 1; power++) count /= STEP;
  return `${count}${SUFFIXES[power]}`;
}
