/** Pipes and sockets without a name, of which a process gets an end. */

import { constants, fstatSync } from 'node:fs';
import { createRequire } from 'node:module';

/** Two ends, and what strace calls the one that a process gets. */
export interface Channel {
  readonly read: number;
  readonly write: number;
}

type Call = (...args: (number | Uint8Array)[]) => number;

/** As <fcntl.h> and <sys/socket.h> of Linux have them; a child gets an end only where it is handed over. */
const O_CLOEXEC = 0o2000000;
const SOCK_CLOEXEC = O_CLOEXEC;
const AF_UNIX = 1;
const SOCK_STREAM = 1;

function load(prototype: string): Call | null {
  try {
    const koffi = createRequire(import.meta.url)('koffi') as { load(name: null): { func(prototype: string): Call } };
    return koffi.load(null).func(prototype);
  } catch {
    return null;
  }
}

const pipe2 = load('int pipe2(void *ends, int flags)');
const socketpair = load('int socketpair(int domain, int type, int protocol, void *ends)');

/** What the machine lacks to make them. */
export const missingForChannels: readonly string[] = pipe2 && socketpair ? [] : ['koffi'];

function channel(make: (ends: Uint8Array) => number): Channel {
  const ends = new Int32Array(2);
  if (make(new Uint8Array(ends.buffer)) !== 0) throw new Error('the system has no pipe or socket left');
  return { read: ends[0]!, write: ends[1]! };
}

/** Makes a pipe. */
export function anonymousPipe(): Channel {
  return channel((ends) => pipe2!(ends, O_CLOEXEC));
}

/** Makes a pair of sockets. */
export function socketPair(): Channel {
  return channel((ends) => socketpair!(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
}

/** What strace, and /proc, call what has no name. */
export function nameOf(fd: number): string {
  const stat = fstatSync(fd);
  return `${stat.isSocket() ? 'socket' : 'pipe'}:[${stat.ino}]`;
}

/** How a FIFO is opened to be read before there is a writer. */
export const FIFO_READER = constants.O_RDONLY | constants.O_NONBLOCK;
