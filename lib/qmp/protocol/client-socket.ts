/**
 * What a monitor's client wants of its socket and Node does not offer: descriptors that go along with bytes
 * (SCM_RIGHTS), and who is at the other end (SO_PEERCRED). Both through koffi; without it they are not to be had.
 */

import type { Socket } from 'node:net';
import { constants as os } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { VmcoreError } from '../../model/errors.js';
import {
  CMSG_ALIGN,
  CMSG_DATA,
  CMSG_LEVEL,
  CMSG_TYPE,
  MSG_DONTWAIT,
  SCM_RIGHTS,
  SOL_SOCKET,
  SocketMessage,
  socketLibc,
} from './socket-message.js';

// Of Linux's headers.
const SO_PEERCRED = 17;
const MSG_NOSIGNAL = 0x4000;
/** struct ucred: pid, uid and gid, 32 bits each */
const UCRED_BYTES = 12;

/** How long to wait before trying again when the socket is full, in milliseconds. */
const STEP = 5;

/** The number behind a socket; null when it has none. Node keeps it to itself, but has always had it. */
export function socketDescriptor(socket: Socket): number | null {
  const { _handle: handle } = socket as unknown as { _handle?: { fd?: number } };
  return handle?.fd !== undefined && handle.fd >= 0 ? handle.fd : null;
}

/** The number behind a UNIX socket; null for TCP. */
function descriptorOf(socket: Socket): number | null {
  return socket.remoteAddress === undefined ? socketDescriptor(socket) : null;
}

/** Whether descriptors can be passed over a socket. */
export function canSendDescriptors(socket: Socket): boolean {
  return socketLibc() !== null && descriptorOf(socket) !== null;
}

/** The process that listens at the other end of a UNIX socket; null when the system cannot tell. */
export function peerPid(socket: Socket): number | null {
  const c = socketLibc();
  const fd = descriptorOf(socket);
  if (!c || fd === null) return null;
  const credentials = Buffer.alloc(UCRED_BYTES);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(UCRED_BYTES);
  if (c.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, credentials, length) !== 0) return null;
  // A process of another pid namespace is 0 here.
  return credentials.readInt32LE() || null;
}

/**
 * Sends a text and descriptors with its first byte. What was written before goes first.
 * @throws VmcoreError WRITE
 */
export async function sendWithDescriptors(socket: Socket, text: string, fds: readonly number[]): Promise<void> {
  const c = socketLibc();
  const fd = descriptorOf(socket);
  if (!c || fd === null) throw new VmcoreError('UNSUPPORTED', 'descriptors cannot be passed over this socket');
  const data = Buffer.from(text);
  const message = new SocketMessage(c, data, controlOf(fds));
  while (socket.writableLength > 0 && !socket.destroyed) await sleep(STEP);
  for (;;) {
    if (socket.destroyed) throw new VmcoreError('WRITE', 'the connection was closed');
    const sent = c.sendmsg(fd, message.header, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) {
      if (sent < data.length) socket.write(data.subarray(sent));
      return;
    }
    const errno = c.errno();
    if (errno === os.errno.EPIPE) throw new VmcoreError('WRITE', 'the connection was closed');
    if (errno !== os.errno.EAGAIN && errno !== os.errno.EINTR)
      throw new VmcoreError('WRITE', `sendmsg failed with errno ${errno}`);
    await sleep(STEP);
  }
}

/** A `struct cmsghdr` with descriptors behind it. */
function controlOf(fds: readonly number[]): Buffer {
  const length = CMSG_DATA + 4 * fds.length;
  const control = Buffer.alloc(Math.ceil(length / CMSG_ALIGN) * CMSG_ALIGN);
  control.writeBigUInt64LE(BigInt(length));
  control.writeInt32LE(SOL_SOCKET, CMSG_LEVEL);
  control.writeInt32LE(SCM_RIGHTS, CMSG_TYPE);
  fds.forEach((fd, i) => control.writeInt32LE(fd, CMSG_DATA + 4 * i));
  return control;
}
