/**
 * The C library calls that Node does not offer, through `koffi`, an optional dependency with prebuilt binaries.
 * Without it, or on another system than Linux, there are none of them, and callers do without.
 */

import { createRequire } from 'node:module';

/** What we call; numbers stand for `int`, `off_t` and `mode_t`, negative results for failure. */
export interface Libc {
  /** lseek(2) */
  lseek(fd: number, offset: number, whence: number): number;
  /** fallocate(2) */
  fallocate(fd: number, mode: number, offset: number, length: number): number;
  /** recvmsg(2); `message` is a `struct msghdr` */
  recvmsg(fd: number, message: Uint8Array, flags: number): number;
  /** sendmsg(2); `message` is a `struct msghdr` */
  sendmsg(fd: number, message: Uint8Array, flags: number): number;
  /** getsockopt(2); `length` is a `socklen_t` */
  getsockopt(fd: number, level: number, name: number, value: Uint8Array, length: Uint8Array): number;
  /** pipe2(2); `descriptors` takes two of 32 bits: to read from, and to write to */
  pipe(descriptors: Uint8Array, flags: number): number;
  /** fcntl(2) with an argument that is a number */
  fcntl(fd: number, command: number, argument: number): number;
  /** epoll_create1(2) */
  epollCreate(flags: number): number;
  /** epoll_ctl(2); `event` is a `struct epoll_event` */
  epollControl(epoll: number, operation: number, fd: number, event: Uint8Array): number;
  /** epoll_wait(2) in a thread of Node's pool; settles with what it returns */
  epollWait(epoll: number, events: Uint8Array, most: number, timeout: number): Promise<number>;
  /** eventfd(2) */
  eventfd(value: number, flags: number): number;
  /** errno of the last call */
  errno(): number;
  /** where bytes are in memory; they stay there as long as they are referred to */
  address(bytes: Uint8Array): bigint;
}

type Argument = number | Uint8Array;
type Call = ((...args: Argument[]) => number) & { async(...args: unknown[]): void };

interface Koffi {
  load(name: string | null): { func(prototype: string): Call };
  errno(): number;
  address(bytes: Uint8Array): bigint;
}

let loaded: Libc | null | undefined;

/** The C library, or null where it cannot be had. */
export function libc(): Libc | null {
  loaded ??= load();
  return loaded;
}

function load(): Libc | null {
  if (process.platform !== 'linux') return null;
  try {
    const koffi = createRequire(import.meta.url)('koffi') as Koffi;
    const self = koffi.load(null);
    const epollWait = self.func('int epoll_wait(int epoll, void *events, int most, int timeout)');
    return {
      lseek: self.func('int64_t lseek64(int fd, int64_t offset, int whence)'),
      fallocate: self.func('int fallocate64(int fd, int mode, int64_t offset, int64_t length)'),
      recvmsg: self.func('int64_t recvmsg(int fd, void *message, int flags)'),
      sendmsg: self.func('int64_t sendmsg(int fd, void *message, int flags)'),
      getsockopt: self.func('int getsockopt(int fd, int level, int name, void *value, void *length)'),
      pipe: self.func('int pipe2(void *descriptors, int flags)'),
      fcntl: self.func('int fcntl(int fd, int command, long argument)'),
      epollCreate: self.func('int epoll_create1(int flags)'),
      epollControl: self.func('int epoll_ctl(int epoll, int operation, int fd, void *event)'),
      epollWait: (...args) =>
        new Promise((resolve, reject) => {
          epollWait.async(...args, (error: Error | null, result: number) => (error ? reject(error) : resolve(result)));
        }),
      eventfd: self.func('int eventfd(unsigned int value, int flags)'),
      errno: () => koffi.errno(),
      address: (bytes) => koffi.address(bytes),
    };
  } catch {
    return null;
  }
}
