/**
 * Tokens of the JSON that QEMU's monitor understands, out of bytes that arrive in any pieces.
 *
 * It is written here, and no package is used, because a client can see the difference: QEMU takes strings in single
 * quotes, goes on after an error (a client sends 0xFF to get a stream of unknown state back to a known one), answers
 * each stray byte in words of its own, and bounds what a message may cost. The streaming parsers of npm end at the
 * first error, and keep strings of any length.
 *
 * The bytes of a message's tokens are collected in one array, which is the only thing that grows with the input.
 */

/** What a token is; the structural characters are their own kinds. */
export const TOKEN_STRING = 1;
export const TOKEN_INTEGER = 2;
export const TOKEN_FLOAT = 3;
export const TOKEN_KEYWORD = 4;

/** Most bytes of tokens that a message may have; QEMU's MAX_TOKEN_SIZE. */
export const MAX_TOKEN_BYTES = 64 << 20;

/** Bytes that are taken at a time; how far a message may exceed its bound before that is seen. */
const STEP_BYTES = 1 << 16;

/** More than so many bytes are kept in memory that can be given back at once, without waiting for a collector. */
const SMALL_BYTES = 1 << 16;

/** Memory that grows and shrinks in place: ES2024, which Node 20 has. */
export type ResizableBuffer = ArrayBuffer & { resize(length: number): void };
export const ResizableBuffer = ArrayBuffer as unknown as new (
  length: number,
  options: { maxByteLength: number },
) => ResizableBuffer;

/** Bytes of a message, collected. */
export class ByteList {
  readonly #small = new Uint8Array(SMALL_BYTES);
  #large: ResizableBuffer | null = null;
  #bytes = this.#small;
  #length = 0;

  get length(): number {
    return this.#length;
  }

  /** Appends the bytes of `data` from `start` up to `end`; STEP_BYTES at most. */
  append(data: Uint8Array, start: number, end: number): void {
    this.#reserve(this.#length + end - start);
    this.#bytes.set(data.subarray(start, end), this.#length);
    this.#length += end - start;
  }

  /** Appends one byte. */
  push(byte: number): void {
    this.#reserve(this.#length + 1);
    this.#bytes[this.#length++] = byte;
  }

  /** The bytes from `start` up to `end`; valid until the next change. */
  slice(start: number, end = this.#length): Uint8Array {
    return this.#bytes.subarray(start, end);
  }

  /** Forgets the bytes, and gives back what many of them needed. */
  clear(): void {
    this.#length = 0;
    this.#bytes = this.#small;
    this.#large?.resize(0);
    this.#large = null;
  }

  #reserve(length: number): void {
    if (length <= this.#bytes.length) return;
    const before = this.slice(0);
    const isFirst = this.#large === null;
    this.#large ??= new ResizableBuffer(0, { maxByteLength: MAX_TOKEN_BYTES + 2 * STEP_BYTES });
    this.#large.resize(Math.min(2 * length, MAX_TOKEN_BYTES + 2 * STEP_BYTES));
    this.#bytes = new Uint8Array(this.#large);
    if (isFirst) this.#bytes.set(before);
  }
}

/** Who is told about tokens. Their bytes are the last ones of `bytes`; whoever wants no more of them clears it. */
export interface TokenSink {
  /** a token has ended; its bytes go from `start` to the end of the list */
  token(kind: number, start: number): void;
  /** bytes that are no token, up to the one that cannot be; the lexer goes on where a message may begin */
  stray(start: number): void;
  /** more than MAX_TOKEN_BYTES have been collected */
  overflow(): void;
}

/** Where in a token the lexer is. */
enum State {
  Start,
  String,
  Escape,
  Minus,
  Zero,
  Integer,
  Point,
  Fraction,
  Exponent,
  ExponentSign,
  ExponentDigits,
  Keyword,
  Recovery,
}

const code = (character: string) => character.charCodeAt(0);
const QUOTE = code('"');
const APOSTROPHE = code("'");
const BACKSLASH = code('\\');
const MINUS = code('-');
const PLUS = code('+');
const POINT = code('.');
const ZERO = code('0');
const NINE = code('9');

/** Control characters end where this begins, and bytes that UTF-8 never has begin behind LAST_TEXT. */
const FIRST_TEXT = 0x20;
const LAST_TEXT = 0xfd;

const isDigit = (byte: number) => byte >= ZERO && byte <= NINE;
const isLetter = (byte: number) => byte >= code('a') && byte <= code('z');
const isExponent = (byte: number) => byte === code('e') || byte === code('E');
const isText = (byte: number) => byte >= FIRST_TEXT && byte <= LAST_TEXT;
const isSpace = (byte: number) => byte === 0x20 || byte === 0x09 || byte === 0x0a || byte === 0x0d;
const STRUCTURAL = new Set([...'{}[]:,'].map(code));

/** Cuts bytes into tokens. */
export class JsonLexer {
  /** the bytes of the tokens so far, and of the one that is under way */
  readonly bytes = new ByteList();
  readonly #sink: TokenSink;
  #state = State.Start;
  #tokenStart = 0;
  #quote = QUOTE;

  constructor(sink: TokenSink) {
    this.#sink = sink;
  }

  /** Takes the next bytes. */
  feed(data: Uint8Array): void {
    for (let at = 0; at < data.length;) {
      at = this.#step(data, at);
      if (this.bytes.length > MAX_TOKEN_BYTES) this.#overflow();
    }
  }

  /** Looks at the byte at `at`, and says at which to go on. */
  #step(data: Uint8Array, at: number): number {
    const byte = data[at]!;
    switch (this.#state) {
      case State.Start:
        return this.#begin(byte, at);
      case State.String:
        return this.#string(data, at);
      case State.Escape:
        return isText(byte) ? this.#take(byte, State.String, at) : this.#stray(byte, at);
      case State.Keyword:
        return isLetter(byte) ? this.#take(byte, State.Keyword, at) : this.#end(TOKEN_KEYWORD, at);
      case State.Recovery:
        return this.#recover(byte, at);
      default:
        return this.#number(byte, at);
    }
  }

  #begin(byte: number, at: number): number {
    if (isSpace(byte)) return at + 1;
    this.#tokenStart = this.bytes.length;
    if (STRUCTURAL.has(byte)) {
      this.bytes.push(byte);
      return this.#end(byte, at + 1);
    }
    if (byte === QUOTE || byte === APOSTROPHE) {
      this.#quote = byte;
      return this.#take(byte, State.String, at);
    }
    if (byte === MINUS) return this.#take(byte, State.Minus, at);
    if (isDigit(byte)) return this.#take(byte, byte === ZERO ? State.Zero : State.Integer, at);
    return isLetter(byte) ? this.#take(byte, State.Keyword, at) : this.#stray(byte, at);
  }

  #string(data: Uint8Array, start: number): number {
    const end = Math.min(data.length, start + STEP_BYTES);
    let at = start;
    let byte = data[at]!;
    while (at < end && isText(byte) && byte !== this.#quote && byte !== BACKSLASH) byte = data[++at]!;
    this.bytes.append(data, start, at);
    if (at === end) return at;
    if (byte === BACKSLASH) return this.#take(byte, State.Escape, at);
    if (byte !== this.#quote) return this.#stray(byte, at);
    this.bytes.push(byte);
    return this.#end(TOKEN_STRING, at + 1);
  }

  #number(byte: number, at: number): number {
    const next = nextOfNumber(this.#state, byte);
    if (next !== null) return this.#take(byte, next, at);
    const kind = KIND_OF_NUMBER.get(this.#state);
    // A number does not begin with a zero that another digit follows.
    if (kind === undefined || (this.#state === State.Zero && isDigit(byte))) return this.#stray(byte, at);
    return this.#end(kind, at);
  }

  /** A structural character or what no text has: here a message may begin anew. */
  #recover(byte: number, at: number): number {
    if (isText(byte) && !STRUCTURAL.has(byte)) return at + 1;
    this.#state = State.Start;
    return at;
  }

  #take(byte: number, state: State, at: number): number {
    this.bytes.push(byte);
    this.#state = state;
    return at + 1;
  }

  #end(kind: number, next: number): number {
    this.#state = State.Start;
    this.#sink.token(kind, this.#tokenStart);
    return next;
  }

  #stray(byte: number, at: number): number {
    this.bytes.push(byte);
    this.#state = State.Recovery;
    this.#sink.stray(this.#tokenStart);
    return at + 1;
  }

  #overflow(): void {
    this.#state = State.Start;
    this.#sink.overflow();
  }
}

/** What a number is that ends in a state. */
const KIND_OF_NUMBER: ReadonlyMap<State, number> = new Map([
  [State.Zero, TOKEN_INTEGER],
  [State.Integer, TOKEN_INTEGER],
  [State.Fraction, TOKEN_FLOAT],
  [State.ExponentDigits, TOKEN_FLOAT],
]);

/** Where a digit leads. */
const AFTER_DIGIT: ReadonlyMap<State, State> = new Map([
  [State.Minus, State.Integer],
  [State.Integer, State.Integer],
  [State.Point, State.Fraction],
  [State.Fraction, State.Fraction],
  [State.Exponent, State.ExponentDigits],
  [State.ExponentSign, State.ExponentDigits],
  [State.ExponentDigits, State.ExponentDigits],
]);

/** Null when the byte is no part of the number. As with QEMU, a lone 0 has no exponent. */
function nextOfNumber(state: State, byte: number): State | null {
  if (isDigit(byte)) return state === State.Minus && byte === ZERO ? State.Zero : (AFTER_DIGIT.get(state) ?? null);
  if (byte === POINT && (state === State.Zero || state === State.Integer)) return State.Point;
  if (isExponent(byte) && (state === State.Integer || state === State.Fraction)) return State.Exponent;
  if ((byte === PLUS || byte === MINUS) && state === State.Exponent) return State.ExponentSign;
  return null;
}
