/**
 * What the C library says for an errno. QEMU's messages end with these texts, and clients look for them (libvirt for
 * "No space left on device"); Node's own differ.
 */

import { errnoOf, messageOf } from '../../model/errors.js';

const TEXTS: Readonly<Record<string, string>> = {
  EACCES: 'Permission denied',
  EAGAIN: 'Resource temporarily unavailable',
  EBADF: 'Bad file descriptor',
  ECONNRESET: 'Connection reset by peer',
  EDQUOT: 'Disk quota exceeded',
  EEXIST: 'File exists',
  EFBIG: 'File too large',
  EINVAL: 'Invalid argument',
  EIO: 'Input/output error',
  EISDIR: 'Is a directory',
  ELOOP: 'Too many levels of symbolic links',
  EMFILE: 'Too many open files',
  ENAMETOOLONG: 'File name too long',
  ENFILE: 'Too many open files in system',
  ENODEV: 'No such device',
  ENOENT: 'No such file or directory',
  ENOMEM: 'Cannot allocate memory',
  ENOSPC: 'No space left on device',
  ENOTCONN: 'Transport endpoint is not connected',
  ENOTDIR: 'Not a directory',
  ENXIO: 'No such device or address',
  EPERM: 'Operation not permitted',
  EPIPE: 'Broken pipe',
  EROFS: 'Read-only file system',
  ESPIPE: 'Illegal seek',
  ETXTBSY: 'Text file busy',
  // What Node says of a path with a zero byte, which no system call can take.
  ERR_INVALID_ARG_VALUE: 'Invalid argument',
};

/** strerror(3) of a system error, or of the system error that caused it. */
export function strerror(error: unknown): string {
  const code = systemCode(error);
  return (code && TEXTS[code]) ?? messageOf(error);
}

/** The errno name of a system error, or of the one that caused it. */
export function systemCode(error: unknown): string | undefined {
  const own = errnoOf(error);
  if (own && own in TEXTS) return own;
  return error instanceof Error && error.cause !== undefined ? systemCode(error.cause) : own;
}
