/** What `protocol` names: the file, descriptor or member of a descriptor set that a dump goes to. */

import { close, constants, fstatSync, ftruncateSync, open, type Stats } from 'node:fs';
import { access, lstat, realpath, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve, sep } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import type { DumpTarget } from '../../dump.js';
import { ioError } from '../../model/errors.js';
import { libc } from '../../io/libc.js';
import { openFlags } from '../../io/open-flags.js';
import { whyNotReplaced } from '../../sinks/file-target.js';
import type { Descriptors } from './descriptors.js';
import { QmpError } from '../protocol/qmp-error.js';
import { strerror, systemCode } from '../protocol/strerror.js';

/** A target, and what to do when the dump into it has ended, or when there will be none. */
export interface OpenTarget {
  readonly target: DumpTarget;
  /** lets go of it, whatever it says. @throws VmcoreError WRITE when close(2) fails: what was written may be lost */
  done(): Promise<void>;
}

/** What decides where `protocol` may lead. */
export interface TargetContext {
  readonly descriptors: Descriptors;
  /** paths have to be in it; relative ones begin there */
  readonly directory: string | undefined;
  /** the format goes back to earlier offsets */
  readonly seeks: boolean;
  readonly signal: AbortSignal;
}

const FD_PREFIX = 'fd:';
const FILE_PREFIX = 'file:';
const SET_PREFIX = '/dev/fdset/';

const SEEK_SET = 0;

/** How often to look for a reader of a FIFO, in milliseconds. */
const FIFO_WAIT = 20;

// Not a FileHandle, which closes its descriptor when it is collected as garbage.
const openFd = promisify(open);
const closeFd = promisify(close);

/** Opens what `protocol` names, without harm to what is there. @throws QmpError */
export async function openTarget(protocol: string, context: TargetContext): Promise<OpenTarget> {
  const opened = await openByPrefix(protocol, context);
  if (context.seeks && 'fd' in opened.target && !isSeekable(opened.target.fd)) {
    await opened.done().catch(() => {});
    throw new QmpError('kdump-raw formats require a seekable file');
  }
  return opened;
}

async function openByPrefix(protocol: string, context: TargetContext): Promise<OpenTarget> {
  const { descriptors, seeks } = context;
  if (protocol.startsWith(FD_PREFIX))
    return ownedDescriptor(descriptors.take(protocol.slice(FD_PREFIX.length)), protocol, seeks);
  if (!protocol.startsWith(FILE_PREFIX)) throw new QmpError("parameter 'protocol' must start with 'file:' or 'fd:'");
  const path = protocol.slice(FILE_PREFIX.length);
  return path.startsWith(SET_PREFIX) ? openSet(path, context) : openFile(path, context);
}

function ownedDescriptor(fd: number, name: string, seek: boolean): OpenTarget {
  return { target: { fd, name, seek }, done: () => letGo(name, () => closeFd(fd)) };
}

async function letGo(name: string, work: () => Promise<void> | void): Promise<void> {
  try {
    await work();
  } catch (error) {
    throw ioError('WRITE', `close ${name}`, error);
  }
}

/** As QEMU does, the file of a set is emptied first; what cannot be emptied is refused. An earlier dump moved its end. */
function openSet(path: string, { descriptors, seeks }: TargetContext): OpenTarget {
  const id = /^\d+$/.test(path.slice(SET_PREFIX.length)) ? Number(path.slice(SET_PREFIX.length)) : null;
  if (id === null) throw new QmpError(`Could not parse fdset ${path}`);
  const { fd, release } = descriptors.lend(id);
  try {
    ftruncateSync(fd, 0);
    libc()?.lseek(fd, 0, SEEK_SET);
  } catch {
    release();
    throw new QmpError(`Failed to dup() given file descriptor fd=${fd}`);
  }
  return { target: { fd, name: path, seek: seeks }, done: () => letGo(path, release) };
}

async function openFile(path: string, context: TargetContext): Promise<OpenTarget> {
  try {
    const full = await confine(path, context.directory);
    const found = await stat(full).catch(ignoreMissing);
    if (found && !found.isFile() && !found.isDirectory())
      return ownedDescriptor(await openSpecial(full, found, context.signal), path, context.seeks);
    await checkWritable(full, found);
    const reason = found && (await whyNotReplaced(await realpath(full), found));
    if (reason) throw new QmpError(`Could not create '${path}': ${reason}`);
    return { target: { file: full, force: true }, done: async () => {} };
  } catch (error) {
    if (error instanceof QmpError) throw error;
    throw new QmpError(`Could not create '${path}': ${strerror(error)}`);
  }
}

function ignoreMissing(error: unknown): null {
  if (systemCode(error) === 'ENOENT') return null;
  throw error;
}

/** Whether the path is in the directory, whatever links it goes through. @throws QmpError */
async function confine(path: string, directory: string | undefined): Promise<string> {
  if (path === '') return '';
  if (directory === undefined) return path;
  const root = await realpath(directory);
  const full = resolve(root, path);
  const real = await realpath(full).catch(async (error) => {
    ignoreMissing(error);
    // A link that leads to nothing would be followed when the file is made.
    if (await lstat(full).catch(ignoreMissing)) throw outside(path);
    return join(await realpath(dirname(full)), basename(full));
  });
  if (!real.startsWith(root.endsWith(sep) ? root : root + sep)) throw outside(path);
  return real;
}

const outside = (path: string) =>
  new QmpError(`Could not create '${path}': it is not in the directory that dumps are confined to`);

/** The errors that open(2) would give; without opening, because that would empty the file. */
async function checkWritable(path: string, found: Stats | null): Promise<void> {
  if (path === '') throw systemError('ENOENT');
  if (found?.isDirectory()) throw systemError('EISDIR');
  if (found) await access(path, constants.W_OK);
  // The new file is made beside the old one.
  await access(dirname(path), constants.W_OK | constants.X_OK);
}

const systemError = (code: string) => Object.assign(new Error(code), { code });

/** Opens a device, or a FIFO as soon as it has a reader: open(2) would tie up a thread until then. */
async function openSpecial(path: string, found: Stats, signal: AbortSignal): Promise<number> {
  const isFifo = found.isFIFO();
  for (;;) {
    try {
      return await openFd(path, constants.O_WRONLY | (isFifo ? constants.O_NONBLOCK : 0));
    } catch (error) {
      if (systemCode(error) !== 'ENXIO' || !isFifo || signal.aborted) throw error;
      await sleep(FIFO_WAIT, undefined, { signal }).catch(() => {});
    }
  }
}

/** As QEMU asks, by lseek(2), but for O_APPEND, with which offsets mean nothing. */
function isSeekable(fd: number): boolean {
  return fstatSync(fd).isFile() && (openFlags(fd) & constants.O_APPEND) === 0;
}
