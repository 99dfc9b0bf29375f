/** JSON as QEMU writes it: ASCII only, a space behind each colon and comma, 17 digits of a double. */

import type { Json } from './json-parser.js';

/** What can be written: what was parsed, and plain objects of it; members that are undefined are left out. */
export type Reply = Json | readonly Reply[] | { readonly [key: string]: Reply | undefined };

/** Digits that tell any two doubles apart. */
const DOUBLE_DIGITS = 17;

/** The text of a value, in one line. */
export function jsonText(value: Reply): string {
  if (value === null || typeof value === 'boolean' || typeof value === 'bigint') return String(value);
  if (typeof value === 'number') return numberText(value);
  if (typeof value === 'string') return stringText(value);
  if (Array.isArray(value)) return `[${value.map(jsonText).join(', ')}]`;
  const members = value instanceof Map ? [...value] : Object.entries(value as object);
  return `{${members
    .filter(([, member]) => member !== undefined)
    .map(([key, member]) => `${stringText(key)}: ${jsonText(member as Reply)}`)
    .join(', ')}}`;
}

/** As printf has it for `%.17g`. */
function numberText(value: number): string {
  if (Number.isSafeInteger(value)) return String(value);
  const [digits, exponent] = value.toExponential(DOUBLE_DIGITS - 1).split('e') as [string, string];
  const power = Number(exponent);
  if (power >= -4 && power < DOUBLE_DIGITS) return value.toFixed(DOUBLE_DIGITS - 1 - power).replace(/\.?0+$/, '');
  const sign = power < 0 ? '-' : '+';
  return `${digits.replace(/\.?0+$/, '')}e${sign}${String(Math.abs(power)).padStart(2, '0')}`;
}

const SHORT_ESCAPES: Readonly<Record<string, string>> = {
  '"': '\\"',
  '\\': '\\\\',
  '\b': '\\b',
  '\f': '\\f',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
};

const ESCAPED = /["\\\u0000-\u001f\u007f-\uffff]/g;

function stringText(text: string): string {
  const escaped = (unit: string) =>
    SHORT_ESCAPES[unit] ?? `\\u${unit.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}`;
  return `"${text.replace(ESCAPED, escaped)}"`;
}
