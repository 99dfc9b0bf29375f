/**
 * How messages with descriptors lie in memory, for sendmsg(2) and recvmsg(2): struct msghdr, struct iovec and struct
 * cmsghdr of Linux (include/linux/socket.h, include/uapi/linux/uio.h) on 64-bit little-endian machines. Offsets and sizes
 * in bytes.
 */

import { endianness } from 'node:os';
import { type Libc, libc } from '../libc.js';

export const MSGHDR_BYTES = 56;
export const MSGHDR_IOV = 16;
export const MSGHDR_IOV_COUNT = 24;
export const MSGHDR_CONTROL = 32;
export const MSGHDR_CONTROL_LENGTH = 40;
export const IOVEC_BYTES = 16;
export const IOVEC_LENGTH = 8;
export const CMSG_LEVEL = 8;
export const CMSG_TYPE = 12;
export const CMSG_DATA = 16;
export const CMSG_ALIGN = 8;
export const SOL_SOCKET = 1;
export const SCM_RIGHTS = 1;
export const MSG_DONTWAIT = 0x40;

/** The C library, where the structures are those of the machine; null where not, or without koffi. */
export function socketLibc(): Libc | null {
  const isKnown = ['x64', 'arm64', 'riscv64', 'loong64'].includes(process.arch) && endianness() === 'LE';
  return isKnown ? libc() : null;
}
