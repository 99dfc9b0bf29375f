/** JSON as QEMU writes it: ASCII only, a space behind each colon and comma, 17 digits of a double. */

import type { Json } from './json-parser.js';

/** What can be written: what was parsed, and plain objects of it; members that are undefined are left out. */
export type Reply = Json | readonly Reply[] | { readonly [key: string]: Reply | undefined };

/** Digits that tell any two doubles apart. */
const DOUBLE_DIGITS = 17;

/** How numbers and strings are written; all else is always the same. */
interface Style {
  number(value: number): string;
  string(value: string): string;
}

/** The text of a value as QEMU would write it, in one line. */
export function jsonText(value: Reply): string {
  return textOf(value, ANSWER);
}

/**
 * The text of a value so that QEMU reads the value: a double stays a double (QEMU takes no `1.0` for an integer, and
 * writes one as `1`), and text takes no more bytes than it must.
 */
export function requestText(value: Reply): string {
  return textOf(value, REQUEST);
}

function textOf(value: Reply, style: Style): string {
  if (value === null || typeof value === 'boolean' || typeof value === 'bigint') return String(value);
  if (typeof value === 'number') return style.number(value);
  if (typeof value === 'string') return style.string(value);
  if (Array.isArray(value)) return `[${value.map((element: Reply) => textOf(element, style)).join(', ')}]`;
  const members = value instanceof Map ? [...value] : Object.entries(value as object);
  return `{${members
    .filter(([, member]) => member !== undefined)
    .map(([key, member]) => `${style.string(key)}: ${textOf(member as Reply, style)}`)
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

/** The shortest digits that tell the double from any other, and never those of an integer. */
function doubleText(value: number): string {
  const text = Object.is(value, -0) ? '-0' : String(value);
  return /^-?\d+$/.test(text) ? `${text}.0` : text;
}

const ANSWER: Style = { number: numberText, string: stringText };
const REQUEST: Style = { number: doubleText, string: JSON.stringify };
