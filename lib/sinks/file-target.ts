/**
 * Where a file is made that is to be whole or not there: the path behind symbolic links, and whether what is there can
 * be replaced. All of it is found out before anything is written, for a dump that cannot get its name is lost.
 */

import { closeSync, constants, openSync, type Stats } from 'node:fs';
import { access, lstat, readlink, realpath, stat } from 'node:fs/promises';
import { dirname, isAbsolute } from 'node:path';
import { errnoOf, VmcoreError } from '../model/errors.js';
import { descriptorInfo } from '../io/open-flags.js';

/** How many symbolic links, one after the other, are followed to a file that is not there: as many as Linux follows. */
const MOST_LINKS = 40;

/** O_PATH of Linux, which Node does not name: a descriptor that stands for a path, for which no permission is needed. */
const O_PATH = 0o10000000;

/** The sticky bit of a folder: files in it are removed and replaced by their owners, and the folder's, only. */
const S_ISVTX = 0o1000;

/** Where a file is made. */
export interface FileTarget {
  /** behind symbolic links */
  readonly path: string;
  /** there is a file already, which is replaced */
  readonly replaces: boolean;
}

/**
 * Finds the place of a file.
 * @param target a path; a symbolic link is followed, also to a file that is not there yet
 * @param force  replace a file that is there
 * @throws VmcoreError EXISTS; WRITE when what is there is no file, or cannot be replaced by one
 */
export async function findFileTarget(target: string, force: boolean): Promise<FileTarget> {
  const found = await stat(target).catch(() => null);
  if (found && !found.isFile()) throw new VmcoreError('WRITE', `cannot write ${target}: ${kindText(found)}`);
  const path = await followLinks(target);
  const old = await lstat(path).catch(() => null);
  if (!old) return { path, replaces: false };
  if (!force) throw existsError(target);
  const reason = await whyNotReplaced(path, old);
  if (reason !== null) throw new VmcoreError('WRITE', `cannot write ${target}: ${reason}`);
  return { path, replaces: true };
}

/** That there is a file already. */
export function existsError(target: string): VmcoreError {
  return new VmcoreError('EXISTS', `${target} exists; give --force to replace it`);
}

/** What is no file, and what to do with it. */
function kindText(found: Stats): string {
  if (found.isDirectory()) return 'is a directory';
  if (found.isSocket()) return 'is a socket; connect to it and give the descriptor (fd)';
  const kind = found.isFIFO() ? 'FIFO' : found.isBlockDevice() ? 'block device' : 'character device';
  return `is a ${kind}, which a file must not replace; open it and give the descriptor (fd)`;
}

/** Why rename(2) cannot replace a file; null when nothing is known that keeps it from that. */
export async function whyNotReplaced(path: string, old: Stats): Promise<string | null> {
  if (isMountPoint(path))
    return 'is a mount point, which cannot be replaced; write to another name, or open it and give the descriptor (fd)';
  if (await isImmutable(path)) return 'is immutable (chattr +i), and cannot be replaced';
  if (await isSticky(path, old))
    return 'belongs to another user, and only that one may replace it in a folder with the sticky bit';
  return null;
}

/** A file that something was mounted on, as containers do: it is on another mount than its folder. */
function isMountPoint(path: string): boolean {
  const mount = mountId(path);
  return mount !== null && mount !== mountId(dirname(path));
}

/** The mount that a path is on; null where nobody can tell. */
function mountId(path: string): string | null {
  try {
    const fd = openSync(path, O_PATH);
    try {
      return descriptorInfo(fd, 'mnt_id');
    } finally {
      closeSync(fd);
    }
  } catch {
    return null;
  }
}

/** Of a file that is only protected by its mode, access(2) says EACCES. */
async function isImmutable(path: string): Promise<boolean> {
  return access(path, constants.W_OK).then(
    () => false,
    (error) => errnoOf(error) === 'EPERM',
  );
}

async function isSticky(path: string, old: Stats): Promise<boolean> {
  const user = process.geteuid?.() ?? 0;
  if (user === 0 || old.uid === user) return false;
  const folder = await stat(dirname(path)).catch(() => null);
  return folder !== null && (folder.mode & S_ISVTX) !== 0 && folder.uid !== user;
}

/** Where a path leads: that of the file, or that where it will be made. */
async function followLinks(target: string): Promise<string> {
  let path = target;
  for (let links = 0; links < MOST_LINKS; links++) {
    try {
      return await realpath(path);
    } catch (error) {
      if (errnoOf(error) === 'ELOOP') break;
      if (errnoOf(error) === 'ENAMETOOLONG')
        throw new VmcoreError('WRITE', `cannot write ${target}: the name is too long`, { cause: error });
      // What else is wrong with it keeps the file from being made, and is told then.
      if (errnoOf(error) !== 'ENOENT') return path;
    }
    const text = await readlink(path).catch(() => null);
    if (text === null) return path;
    // Not normalized: behind a link to a folder, `..` is not what it looks like.
    path = isAbsolute(text) ? text : `${dirname(path)}/${text}`;
  }
  throw new VmcoreError('WRITE', `cannot write ${target}: too many symbolic links, or they lead in a circle`);
}
