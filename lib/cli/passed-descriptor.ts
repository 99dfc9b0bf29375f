/**
 * Whether somebody passed a descriptor to the command line. Node opens some of its own, pipes among them, and to write
 * there makes it crash or hang.
 */

import { constants, fstatSync, readdirSync, readlinkSync } from 'node:fs';
import { errnoOf, ioError, VmcoreError } from '../model/errors.js';
import { ACCESS_MODE, openFlags } from '../io/open-flags.js';

/** O_CLOEXEC of Linux, which Node does not name. Node opens its descriptors with it. */
const CLOSE_ON_EXEC = 0o2000000;

/** What /proc says of a descriptor. */
interface OpenDescriptor {
  readonly fd: number;
  /** a path, `pipe:[123]`, `socket:[123]`, `anon_inode:[eventpoll]` */
  readonly link: string;
  /** as open(2) takes them */
  readonly flags: number;
}

/** Refuses a descriptor that cannot be the target of a dump: not open, one of Node's, or for reading only. */
export function checkPassed(fd: number): void {
  try {
    fstatSync(fd);
  } catch (error) {
    if (errnoOf(error) === 'EBADF') throw notOpen(fd);
    throw ioError('WRITE', `write fd ${fd}`, error);
  }
  const all = openDescriptors();
  const own = all.find((open) => open.fd === fd);
  if (!own) return;
  if (isOfNode(own, all)) throw notOpen(fd);
  if ((own.flags & ACCESS_MODE) === constants.O_RDONLY)
    throw new VmcoreError('WRITE', `fd ${fd} is open for reading only: open it for writing, for example ${fd}> vmcore`);
}

function notOpen(fd: number): VmcoreError {
  return new VmcoreError('WRITE', `fd ${fd} is not open: open it for vmcore, for example ${fd}> vmcore`);
}

/**
 * Event queues and counters can be no target. A pipe is Node's when both of its ends are in this process, unless it
 * certainly was passed: descriptors get the lowest free number, so those before Node's first are older than Node.
 */
function isOfNode({ fd, link, flags }: OpenDescriptor, all: readonly OpenDescriptor[]): boolean {
  if (link.startsWith('anon_inode:')) return true;
  if (!link.startsWith('pipe:') || (flags & CLOSE_ON_EXEC) === 0) return false;
  const firstOfNode = Math.min(...all.filter((open) => open.link.startsWith('anon_inode:')).map((open) => open.fd));
  const modes = new Set(all.filter((open) => open.link === link).map((open) => open.flags & ACCESS_MODE));
  return fd > firstOfNode && modes.size > 1;
}

/** The descriptors of the process; none where the system has no /proc. */
function openDescriptors(): OpenDescriptor[] {
  try {
    return readdirSync('/proc/self/fd').flatMap((name) => describe(Number(name)));
  } catch {
    return [];
  }
}

/** Nothing for what has been closed meanwhile, as that has by which the folder was read. */
function describe(fd: number): OpenDescriptor[] {
  try {
    const link = readlinkSync(`/proc/self/fd/${fd}`);
    return [{ fd, link, flags: openFlags(fd) }];
  } catch {
    return [];
  }
}
