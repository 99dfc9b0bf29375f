/**
 * Messages out of tokens: QEMU's JSON dialect, its bounds and the texts of its errors.
 *
 * Values keep what JSON.parse would lose and QEMU's checks and echoes need: integers are bigints (a `1.0` is no integer
 * to QEMU, and ids have 64 bits), objects are Maps (a key may be `__proto__`).
 */

import { JsonLexer, ResizableBuffer, TOKEN_FLOAT, TOKEN_INTEGER, TOKEN_KEYWORD, TOKEN_STRING } from './json-lexer.js';
import { QmpError } from './qmp-error.js';

/** A value of a message: integers of 64 bits are bigints, all other numbers are numbers. */
export type Json = null | boolean | number | bigint | string | readonly Json[] | JsonObject;
export type JsonObject = ReadonlyMap<string, Json>;

/** QEMU's bounds on a message. */
export const MAX_TOKENS = 2 << 20;
export const MAX_NESTING = 1024;

/** Bytes of nonsense that an error repeats; QEMU repeats all of it. */
const STRAY_SHOWN = 1024;

const code = (character: string) => character.charCodeAt(0);
const [LEFT_BRACE, RIGHT_BRACE, LEFT_BRACKET, RIGHT_BRACKET, COLON, COMMA] = [...'{}[]:,'].map(code) as [
  number,
  number,
  number,
  number,
  number,
  number,
];

/** Takes bytes in any pieces, gives messages: values, or errors for what is none. */
export class JsonStream {
  readonly #lexer: JsonLexer;
  readonly #emit: (message: Json | QmpError) => void;
  readonly #tokens = new TokenList();
  #braces = 0;
  #brackets = 0;

  /** @param emit called with each message, in order, while `feed` runs */
  constructor(emit: (message: Json | QmpError) => void) {
    this.#emit = emit;
    this.#lexer = new JsonLexer({
      token: (kind, start) => this.#token(kind, start),
      stray: (start) => this.#fail(`JSON parse error, stray '${strayText(this.#lexer.bytes.slice(start))}'`),
      overflow: () => this.#fail('JSON token size limit exceeded'),
    });
  }

  /** Takes the next bytes. */
  feed(data: Uint8Array): void {
    this.#lexer.feed(data);
  }

  #token(kind: number, start: number): void {
    if (kind === LEFT_BRACE) this.#braces++;
    else if (kind === RIGHT_BRACE) this.#braces--;
    else if (kind === LEFT_BRACKET) this.#brackets++;
    else if (kind === RIGHT_BRACKET) this.#brackets--;
    if (this.#tokens.length >= MAX_TOKENS) this.#fail('JSON token count limit exceeded');
    else if (this.#braces + this.#brackets > MAX_NESTING) this.#fail('JSON nesting depth limit exceeded');
    else this.#add(kind, start);
  }

  #add(kind: number, start: number): void {
    this.#tokens.push(kind, start);
    const open = this.#braces > 0 || this.#brackets > 0;
    const isWhole = !open || this.#braces < 0 || this.#brackets < 0;
    if (isWhole) this.#finish(this.#parse());
  }

  #parse(): Json | QmpError {
    try {
      return new TokenParser(this.#tokens, this.#lexer.bytes.slice(0)).value();
    } catch (error) {
      if (error instanceof QmpError) return error;
      throw error;
    }
  }

  #fail(desc: string): void {
    this.#finish(new QmpError(desc));
  }

  #finish(message: Json | QmpError): void {
    this.#tokens.clear();
    this.#braces = 0;
    this.#brackets = 0;
    this.#lexer.bytes.clear();
    this.#emit(message);
  }
}

/** Kinds of tokens, and where their bytes begin, in memory that can be given back at once. */
class TokenList {
  readonly #buffer = new ResizableBuffer(0, { maxByteLength: MAX_TOKENS * TOKEN_BYTES });
  readonly #tokens = new Float64Array(this.#buffer);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  push(kind: number, start: number): void {
    if (this.#length === this.#tokens.length)
      this.#buffer.resize(Math.min(Math.max(FEW_TOKENS, 2 * this.#length), MAX_TOKENS) * TOKEN_BYTES);
    this.#tokens[this.#length++] = start * KINDS + kind;
  }

  kind(i: number): number {
    return this.#tokens[i]! % KINDS;
  }

  /** Undefined behind the last token. */
  start(i: number): number | undefined {
    return i < this.#length ? Math.floor(this.#tokens[i]! / KINDS) : undefined;
  }

  clear(): void {
    this.#length = 0;
    if (this.#tokens.length > FEW_TOKENS) this.#buffer.resize(FEW_TOKENS * TOKEN_BYTES);
  }
}

/** Kinds of tokens are less than this. */
const KINDS = 128;
const TOKEN_BYTES = 8;
const FEW_TOKENS = 512;

/** As C has it, the text ends at a zero. */
function strayText(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  const shown = bytes.subarray(0, Math.min(end < 0 ? bytes.length : end, STRAY_SHOWN));
  return Buffer.from(shown).toString('latin1').replace(ENCODED_CHARACTER, decodeCharacter);
}

/** What QEMU takes for one encoded character, right or wrong: up to six bytes, as UTF-8 once had. */
const ENCODED_CHARACTER =
  /[\xc0-\xdf][\x80-\xbf]?|[\xe0-\xef][\x80-\xbf]{0,2}|[\xf0-\xf7][\x80-\xbf]{0,3}|[\xf8-\xfb][\x80-\xbf]{0,4}|[\xfc\xfd][\x80-\xbf]{0,5}|[\x80-\xff]/g;

/** @param bytes as Latin-1 */
function decodeCharacter(bytes: string): string {
  if (bytes === '\xc0\x80') return '\0';
  const character = decodeUtf8(Buffer.from(bytes, 'latin1'));
  return character === null || NONCHARACTER.test(character) ? '\ufffd' : character;
}

const syntaxError = (what: string) => new QmpError(`JSON parse error, ${what}`);

/** What keywords mean. */
const KEYWORDS: ReadonlyMap<string, Json> = new Map<string, Json>([
  ['null', null],
  ['true', true],
  ['false', false],
]);

/** Signed and unsigned integers of 64 bits; beyond them an integer is a double. */
const SMALLEST_INTEGER = -(1n << 63n);
const LARGEST_INTEGER = (1n << 64n) - 1n;

/** Reads one value from the tokens of a message. */
class TokenParser {
  #next = 0;

  constructor(
    private readonly tokens: TokenList,
    private readonly bytes: Uint8Array,
  ) {}

  value(): Json {
    switch (this.#kind()) {
      case LEFT_BRACE:
        return this.#object();
      case LEFT_BRACKET:
        return this.#array();
      case TOKEN_STRING:
        return decodeString(this.#bytes());
      case TOKEN_INTEGER:
        return integer(this.#text());
      case TOKEN_FLOAT:
        return finite(this.#text());
      case TOKEN_KEYWORD:
        return keyword(this.#text());
      default:
        throw syntaxError('expecting value');
    }
  }

  #object(): JsonObject {
    const object = new Map<string, Json>();
    this.#next++;
    if (this.#skip(RIGHT_BRACE)) return object;
    for (;;) {
      this.#pair(object);
      if (this.#skip(RIGHT_BRACE)) return object;
      if (!this.#skip(COMMA)) throw syntaxError('expected separator in dict');
    }
  }

  #pair(object: Map<string, Json>): void {
    const key = this.value();
    if (typeof key !== 'string') throw syntaxError('key is not a string in object');
    if (!this.#skip(COLON)) throw syntaxError('missing : in object pair');
    const value = this.value();
    if (object.has(key)) throw syntaxError('duplicate key');
    object.set(key, value);
  }

  #array(): Json[] {
    const array: Json[] = [];
    this.#next++;
    if (this.#skip(RIGHT_BRACKET)) return array;
    for (;;) {
      array.push(this.value());
      if (this.#skip(RIGHT_BRACKET)) return array;
      if (!this.#skip(COMMA)) throw syntaxError('expected separator in list');
    }
  }

  #kind(): number {
    if (this.#next >= this.tokens.length) throw syntaxError('premature EOI');
    return this.tokens.kind(this.#next);
  }

  #skip(kind: number): boolean {
    if (this.#kind() !== kind) return false;
    this.#next++;
    return true;
  }

  #bytes(): Uint8Array {
    const at = this.#next++;
    return this.bytes.subarray(this.tokens.start(at), this.tokens.start(at + 1));
  }

  #text(): string {
    return Buffer.from(this.#bytes()).toString('latin1');
  }
}

function integer(text: string): bigint | number {
  const value = BigInt(text);
  return value < SMALLEST_INTEGER || value > LARGEST_INTEGER ? finite(text) : value;
}

/** What exceeds a double is the largest one: JSON has no infinity to echo it with. */
function finite(text: string): number {
  return Math.max(-Number.MAX_VALUE, Math.min(Number.MAX_VALUE, Number(text)));
}

function keyword(text: string): Json {
  const value = KEYWORDS.get(text);
  if (value === undefined) throw syntaxError(`invalid keyword '${text.slice(0, STRAY_SHOWN)}'`);
  return value;
}

const ESCAPES: Readonly<Record<string, string>> = {
  '"': '"',
  "'": "'",
  '\\': '\\',
  '/': '/',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
};

/** Modified UTF-8 has the zero as two bytes, so that C can hold it. */
const ENCODED_ZERO = Buffer.from([0xc0, 0x80]);

/** Code points that are reserved for never being characters, and halves of a pair. */
const NONCHARACTER = /\p{Noncharacter_Code_Point}|\p{Surrogate}/u;

/** The text of a string token, its quotes around it. */
function decodeString(token: Uint8Array): string {
  const bytes = Buffer.from(token);
  const end = bytes.length - 1;
  let text = '';
  for (let at = 1; at < end;) {
    const backslash = bytes.indexOf(code('\\'), at);
    const plainEnd = backslash < 0 ? end : backslash;
    text += decodePlain(bytes.subarray(at, plainEnd));
    if (plainEnd === end) break;
    const [character, length] = decodeEscape(bytes, plainEnd);
    text += character;
    at = plainEnd + length;
  }
  return text;
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function decodePlain(bytes: Buffer): string {
  const parts: string[] = [];
  for (let at = 0; ;) {
    const zero = bytes.indexOf(ENCODED_ZERO, at);
    const text = decodeUtf8(bytes.subarray(at, zero < 0 ? bytes.length : zero));
    if (text === null || NONCHARACTER.test(text)) throw syntaxError('invalid UTF-8 sequence in string');
    parts.push(text);
    if (zero < 0) return parts.join('\0');
    at = zero + ENCODED_ZERO.length;
  }
}

function decodeUtf8(bytes: Buffer): string | null {
  try {
    return utf8.decode(bytes);
  } catch {
    return null;
  }
}

/** Bytes of `\uXXXX`. */
const UNICODE_ESCAPE = 6;

/** The character of the escape at `at`, and the number of bytes that it takes. */
function decodeEscape(bytes: Buffer, at: number): readonly [string, number] {
  const letter = String.fromCharCode(bytes[at + 1]!);
  if (letter === 'u') return decodeUnicodeEscape(bytes.toString('latin1', at, at + 2 * UNICODE_ESCAPE));
  const character = ESCAPES[letter];
  if (character === undefined) throw syntaxError('invalid escape sequence in string');
  return [character, 2];
}

/** @param text the escape, and as much behind it, for a second half */
function decodeUnicodeEscape(text: string): readonly [string, number] {
  const pair = /^\\u([dD][89abAB][\da-fA-F]{2})\\u([dD][c-fC-F][\da-fA-F]{2})/.exec(text);
  const single = /^\\u([\da-fA-F]{4})/.exec(text);
  const halves = (pair ?? single)?.slice(1).map((digits) => Number.parseInt(digits, 16)) ?? [0xffff];
  const character = String.fromCharCode(...halves);
  if (NONCHARACTER.test(character)) {
    const shown = Buffer.from(text.slice(0, UNICODE_ESCAPE), 'latin1').toString('utf8');
    throw syntaxError(`${shown} is not a valid Unicode character`);
  }
  return [character, halves.length * UNICODE_ESCAPE];
}
