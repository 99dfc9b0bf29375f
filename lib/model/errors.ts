/**
 * The one error of the toolkit. Whatever goes wrong because of input, the system or a limit ends as a `VmcoreError`
 * whose message is a single line: what was wrong, where (file, offset, address), and what to do about it.
 * Anything else that surfaces is a defect of ours.
 */

import { constants } from 'node:os';

/** Machine-readable kinds of failure, stable across versions. */
export type ErrorCode =
  /** the caller asked for something contradictory or malformed */
  | 'USAGE'
  /** an input file or stream is not what it claims to be */
  | 'BAD_INPUT'
  /** an input ends before it should */
  | 'TRUNCATED'
  /** the input is of a known kind that this operation cannot use (a stream where random access is needed, ...) */
  | 'UNSUPPORTED'
  /** a bound that protects the host was reached; the message names the option that raises it */
  | 'LIMIT'
  /** the guest has no memory in the range that was asked for */
  | 'NO_MEMORY'
  /** the output already exists */
  | 'EXISTS'
  /** reading failed */
  | 'READ'
  /** writing failed: disk full, reader gone, ... */
  | 'WRITE'
  /** what was asked for is made and whole, but the live machine that it is of could not be resumed */
  | 'RESUME'
  /** the operation was aborted by its AbortSignal or by Ctrl-C */
  | 'ABORTED';

/** An error with a machine-readable `code` and a one-line message that is fit to be shown to a user. */
export class VmcoreError extends Error {
  override readonly name = 'VmcoreError';

  /**
   * @param code    machine-readable kind of the failure
   * @param message one line: what, where, what to do
   * @param options `cause`: the underlying error, when there is one
   */
  constructor(
    readonly code: ErrorCode,
    message: string,
    options?: { cause?: unknown },
  ) {
    super(message, options);
  }
}

/** The text of whatever was thrown, without a stack. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** What the operating system says for an errno code, for the codes that users meet. */
const ERRNO_TEXT: Readonly<Record<string, string>> = {
  ENOENT: 'no such file or directory',
  EACCES: 'permission denied',
  EPERM: 'operation not permitted',
  EISDIR: 'is a directory',
  ENOTDIR: 'a part of the path is not a directory',
  ENOSPC: 'no space left on device',
  EDQUOT: 'disk quota exceeded',
  EFBIG: 'file too large for this file system',
  EPIPE: 'the reader has gone away (broken pipe)',
  EBADF: 'bad file descriptor',
  EROFS: 'read-only file system',
  EIO: 'input/output error',
  ELOOP: 'too many symbolic links, or they lead in a circle',
  ENAMETOOLONG: 'the name is too long',
};

/** What Node calls an error that libuv has no name for, EDQUOT among them. */
const NAMELESS = /^Unknown system error -(\d+)$/;

/** `code` of a Node system error (`ENOENT`, ...), or undefined. */
export function errnoOf(error: unknown): string | undefined {
  if (!(error instanceof Error && 'code' in error && typeof error.code === 'string')) return undefined;
  const number = NAMELESS.exec(error.code)?.[1];
  return (number && errnoName(Number(number))) ?? error.code;
}

function errnoName(number: number): string | undefined {
  return Object.entries(constants.errno).find(([, value]) => value === number)?.[0];
}

/** A short description of a system error: `no space left on device` where Node would print call and path too. */
export function systemErrorText(error: unknown): string {
  const code = errnoOf(error);
  return (code && ERRNO_TEXT[code]) ?? messageOf(error);
}

/** Wraps an error of `fs` in a VmcoreError: `cannot read guest.ram: no such file or directory`. */
export function ioError(code: 'READ' | 'WRITE', doing: string, error: unknown): VmcoreError {
  if (error instanceof VmcoreError) return error;
  return new VmcoreError(code, `cannot ${doing}: ${systemErrorText(error)}`, { cause: error });
}
