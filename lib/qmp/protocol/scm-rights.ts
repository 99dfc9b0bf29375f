/**
 * Reading from a UNIX socket with the descriptors that come along (SCM_RIGHTS). Node reads sockets with read(2), for
 * which the kernel drops them, so a socket is read here with recvmsg(2), through koffi.
 *
 * Nobody but libuv can wait for a socket in Node's event loop, and libuv would read it. So one thread of Node's pool
 * waits for all sockets together, in epoll_wait(2), and says when it is worth trying. It says so once for new bytes
 * (EPOLLET): a reader that does not read yet costs nothing.
 */

import { closeSync } from 'node:fs';
import { constants as os } from 'node:os';
import type { Libc } from '../../io/libc.js';
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

/** What one read gave. */
export interface Received {
  readonly data: Uint8Array;
  /** descriptors that came with the data; whoever gets them closes them */
  readonly descriptors: readonly number[];
}

/** Bytes that are read at once. */
const READ_BYTES = 64 << 10;

/** Most descriptors that the kernel passes at once (SCM_MAX_FD). */
const MAX_PASSED = 253;

// Of Linux's headers.
const CONTROL_BYTES = CMSG_DATA + 4 * MAX_PASSED + 4;
const MSG_CMSG_CLOEXEC = 0x40000000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLLIN = 0x1;
const EPOLLRDHUP = 0x2000;
const EPOLLET = 0x80000000;
const CLOSE_ON_EXEC = 0o2000000;
/** A process that exits waits for its threads: no longer than this, in milliseconds. */
const LONGEST_WAIT = 500;
/** More than a `struct epoll_event` is anywhere. */
const EPOLL_EVENT_BYTES = 16;

/** Whether descriptors can be received here. */
export function canReceiveDescriptors(): boolean {
  return socketLibc() !== null;
}

/** Waits for sockets, all of them in one thread. */
class Readiness {
  readonly #libc: Libc;
  readonly #waiting = new Set<() => void>();
  readonly #event = Buffer.alloc(EPOLL_EVENT_BYTES);
  readonly #interrupts: number[] = [];
  #epoll = -1;
  #watched = 0;

  constructor(library: Libc) {
    this.#libc = library;
    this.#event.writeUInt32LE((EPOLLIN | EPOLLRDHUP | EPOLLET) >>> 0);
  }

  /** Begins to watch a socket. */
  add(fd: number): void {
    this.#watched++;
    if (this.#epoll < 0) this.#start();
    this.#libc.epollControl(this.#epoll, EPOLL_CTL_ADD, fd, this.#event);
  }

  /** Ends watching a socket; one that is closed already is watched no more. */
  remove(fd: number, isClosed: boolean): void {
    if (!isClosed) this.#libc.epollControl(this.#epoll, EPOLL_CTL_DEL, fd, this.#event);
    if (--this.#watched === 0) this.#interrupt();
  }

  /** Settles when any of the sockets may have become readable. */
  wait(): Promise<void> {
    return new Promise((resolve) => this.#waiting.add(resolve));
  }

  /** Has everybody look again. */
  wake(): void {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const resolve of waiting) resolve();
  }

  #start(): void {
    this.#epoll = this.#libc.epollCreate(CLOSE_ON_EXEC);
    void this.#run();
  }

  async #run(): Promise<void> {
    const events = Buffer.alloc(EPOLL_EVENT_BYTES);
    while (this.#watched > 0) {
      await this.#libc.epollWait(this.#epoll, events, 1, LONGEST_WAIT);
      for (const fd of this.#interrupts.splice(0)) closeSync(fd);
      this.wake();
    }
    closeSync(this.#epoll);
    this.#epoll = -1;
  }

  /** A descriptor that is readable from the start ends the wait; it must not be closed before. */
  #interrupt(): void {
    const readable = this.#libc.eventfd(1, CLOSE_ON_EXEC);
    this.#interrupts.push(readable);
    this.#libc.epollControl(this.#epoll, EPOLL_CTL_ADD, readable, this.#event);
  }
}

let readiness: Readiness | null = null;

/** Reads a UNIX socket, descriptors and all. */
export class DescriptorReader {
  readonly #libc: Libc;
  readonly #readiness: Readiness;
  readonly #message: SocketMessage;
  #ended = false;

  /**
   * @param fd       a UNIX socket; whoever opened it closes it
   * @param isClosed whether it has been closed: its number may mean something else by then
   */
  constructor(
    private readonly fd: number,
    private readonly isClosed: () => boolean,
  ) {
    const library = socketLibc();
    if (!library) throw new Error('descriptors cannot be received here');
    this.#libc = library;
    readiness ??= new Readiness(library);
    this.#readiness = readiness;
    this.#message = new SocketMessage(library, Buffer.alloc(READ_BYTES), Buffer.alloc(CONTROL_BYTES));
    this.#readiness.add(fd);
  }

  /** The next bytes, valid until the next call; null at the end, or when the socket has been closed. */
  async receive(): Promise<Received | null> {
    for (;;) {
      if (this.#ended || this.isClosed()) return null;
      this.#message.controlLength = CONTROL_BYTES;
      const count = this.#libc.recvmsg(this.fd, this.#message.header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
      if (count > 0) return { data: this.#message.data.subarray(0, count), descriptors: this.#descriptors() };
      if (count === 0) return null;
      const errno = this.#libc.errno();
      if (errno !== os.errno.EAGAIN && errno !== os.errno.EINTR) return null;
      if (errno === os.errno.EAGAIN) await this.#readiness.wait();
    }
  }

  /** Ends reading; a `receive` that is under way gives null. */
  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#readiness.remove(this.fd, this.isClosed());
    this.#readiness.wake();
  }

  #descriptors(): number[] {
    const found: number[] = [];
    const { control, controlLength } = this.#message;
    for (let at = 0; at + CMSG_DATA <= controlLength;) {
      const size = Number(control.readBigUInt64LE(at));
      if (size < CMSG_DATA) break;
      const isRights =
        control.readInt32LE(at + CMSG_LEVEL) === SOL_SOCKET && control.readInt32LE(at + CMSG_TYPE) === SCM_RIGHTS;
      if (isRights) for (let fd = at + CMSG_DATA; fd + 4 <= at + size; fd += 4) found.push(control.readInt32LE(fd));
      at += Math.ceil(size / CMSG_ALIGN) * CMSG_ALIGN;
    }
    return found;
  }
}
