/**
 * How messages with descriptors lie in memory, for sendmsg(2) and recvmsg(2): struct msghdr, struct iovec and struct
 * cmsghdr of Linux (include/linux/socket.h, include/uapi/linux/uio.h) on 64-bit little-endian machines. Offsets and sizes
 * in bytes.
 */

import { endianness } from 'node:os';
import { type Libc, libc } from '../../io/libc.js';

const MSGHDR_BYTES = 56;
const MSGHDR_IOV = 16;
const MSGHDR_IOV_COUNT = 24;
const MSGHDR_CONTROL = 32;
const MSGHDR_CONTROL_LENGTH = 40;
const IOVEC_BYTES = 16;
const IOVEC_LENGTH = 8;
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

/** A `struct msghdr`, and the data and the control messages that it points to. */
export class SocketMessage {
  /** for sendmsg(2) and recvmsg(2) */
  readonly header = Buffer.alloc(MSGHDR_BYTES);
  readonly #iovec = Buffer.alloc(IOVEC_BYTES);

  constructor(
    c: Libc,
    readonly data: Buffer,
    readonly control: Buffer,
  ) {
    this.#iovec.writeBigUInt64LE(c.address(data));
    this.#iovec.writeBigUInt64LE(BigInt(data.length), IOVEC_LENGTH);
    this.header.writeBigUInt64LE(c.address(this.#iovec), MSGHDR_IOV);
    this.header.writeBigUInt64LE(1n, MSGHDR_IOV_COUNT);
    this.header.writeBigUInt64LE(c.address(control), MSGHDR_CONTROL);
    this.controlLength = control.length;
  }

  /** Bytes of control messages: room for them before recvmsg(2), what there is of them behind it. */
  get controlLength(): number {
    return Number(this.header.readBigUInt64LE(MSGHDR_CONTROL_LENGTH));
  }

  set controlLength(bytes: number) {
    this.header.writeBigUInt64LE(BigInt(bytes), MSGHDR_CONTROL_LENGTH);
  }
}
