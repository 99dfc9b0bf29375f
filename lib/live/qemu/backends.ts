/**
 * The files behind a machine's memory: which memory backends QEMU has (`query-memdev`), which of them are shared
 * mappings of a file, and where that file is from our point of view.
 *
 * Reading the file itself leaves it as sparse as it is, and takes no right but to read it. A backend that is not
 * shared (`share=off`) is none of these: what the guest writes never gets to the file.
 */

import { type Stats, statSync } from 'node:fs';
import { isAbsolute } from 'node:path';
import { messageOf, VmcoreError } from '../../model/errors.js';
import type { Backing, MemoryBlock } from '../../model/physical-memory.js';
import { objectOf, type QmpClient, type QmpValue } from '../../qmp/protocol/client.js';
import { FileBacking } from '../../io/file-backing.js';
import { type BlockInProcess, findInProcess, isSameFile, openFileOf } from './process.js';

/** A memory backend that is a shared mapping. */
export interface SharedBackend {
  readonly id: string;
  /** the path that QEMU was given; null when it has none (a memfd) */
  readonly path: string | null;
  /** offset in the file of the backend's first byte */
  readonly offset: number;
}

/** The shared backends, by the name that their memory region has in QEMU's memory tree. */
export async function sharedBackends(client: QmpClient): Promise<ReadonlyMap<string, SharedBackend>> {
  const backends = new Map<string, SharedBackend>();
  const list = await client.execute('query-memdev');
  for (const item of Array.isArray(list) ? (list as readonly QmpValue[]) : []) {
    const { id, share } = objectOf(item, 'query-memdev');
    if (typeof id !== 'string') continue;
    const isShared = share ?? (await property(client, id, 'share'));
    if (isShared !== true) continue;
    const path = await property(client, id, 'mem-path');
    const offset = await property(client, id, 'offset');
    const backend = {
      id,
      path: typeof path === 'string' ? path : null,
      offset: typeof offset === 'number' ? offset : 0,
    };
    backends.set(id, backend);
    // What a backend with x-use-canonical-path-for-ramblock-id is called.
    backends.set(`/objects/${id}`, backend);
  }
  return backends;
}

/** A property of a backend; undefined when it has none of the name. */
async function property(client: QmpClient, id: string, name: string): Promise<QmpValue | undefined> {
  try {
    return await client.execute('qom-get', { path: `/objects/${id}`, property: name });
  } catch (error) {
    if (error instanceof VmcoreError && error.code !== 'ABORTED') return undefined;
    throw error;
  }
}

/** An open file, and where in it something is. */
export interface FilePlace {
  readonly backing: FileBacking;
  readonly offset: number;
}

/** What is looked for in a backend's file. */
export interface WantedBlock extends MemoryBlock {
  /** offset of its first byte in the backend */
  readonly offset: number;
}

/**
 * Opens the file of a backend where a block of it is.
 * @param pid QEMU's process, where the user says it
 * @throws VmcoreError READ why it cannot be had
 */
export async function openBackend(
  client: QmpClient,
  backend: SharedBackend,
  block: WantedBlock,
  pid: number | undefined,
): Promise<FilePlace> {
  const seen = await attempt(() => findInProcess(client, block, pid));
  const inProcess = seen instanceof VmcoreError ? null : seen;
  const named = openByPath(backend, block, inProcess?.pid ?? pid ?? null);
  const isOther = named !== null && inProcess !== null && !holds(inProcess, named);
  if (isOther) named.backing.close();
  const place = named && !isOther ? named : openMapped(seen, block);
  if (place.offset + block.length <= place.backing.size) return place;
  place.backing.close();
  throw new VmcoreError('READ', `${place.backing.name} is smaller than the memory that is in it`);
}

/** @returns what came of it, or why nothing did @throws VmcoreError ABORTED */
async function attempt<T>(work: () => Promise<T>): Promise<T | VmcoreError> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof VmcoreError && error.code !== 'ABORTED') return error;
    throw error;
  }
}

/** Null when there is no regular file of that name here, or in what QEMU has for its root. */
function openByPath({ path, offset }: SharedBackend, block: WantedBlock, pid: number | null): FilePlace | null {
  const name = path === null ? null : visiblePath(path, pid);
  return name === null ? null : { backing: FileBacking.open(name), offset: offset + block.offset };
}

/** QEMU may have a root of its own, where the same path is another file, and has a working directory of its own. */
function visiblePath(path: string, pid: number | null): string | null {
  const seen = pid === null ? null : isAbsolute(path) ? `/proc/${pid}/root${path}` : `/proc/${pid}/cwd/${path}`;
  const here = isAbsolute(path) ? fileAt(path) : null;
  const inside = seen && fileAt(seen);
  if (inside && !(here && isSameFile(here, inside))) return seen;
  return here && path;
}

function fileAt(path: string): Stats | null {
  try {
    const stat = statSync(path);
    return stat.isFile() ? stat : null;
  } catch {
    return null;
  }
}

/**
 * The file that QEMU's process has mapped where the block is: a memfd, a file in hugetlbfs, one that was removed.
 * @param seen where it is, or why that is not known
 */
function openMapped(seen: BlockInProcess | VmcoreError, { length }: WantedBlock): FilePlace {
  if (seen instanceof VmcoreError) throw seen;
  const { name, offset } = mappedFile(seen, length);
  return { backing: FileBacking.open(name), offset };
}

function mappedFile({ pid, address, mapping }: BlockInProcess, length: number): { name: string; offset: number } {
  try {
    const { file, shared, end } = mapping;
    const name = file && shared && address + length <= end ? openFileOf(pid, file) : null;
    if (name !== null) return { name, offset: mapping.offset + (address - mapping.start) };
  } catch (error) {
    throw new VmcoreError('READ', `process ${pid} may not be looked at: ${messageOf(error)}`);
  }
  throw new VmcoreError('READ', `no file that process ${pid} has open is mapped there`);
}

/** Whether what is mapped where a block is in QEMU's process is that place of a file. */
function holds({ address, mapping }: BlockInProcess, { backing, offset }: PlaceInFile): boolean {
  const { file, shared, start } = mapping;
  if (!file || !shared || !isSameFile(file, statSync(backing.name))) return false;
  return mapping.offset + (address - start) === offset;
}

/** Where in a file something is. */
interface PlaceInFile {
  readonly backing: Backing;
  readonly offset: number;
}

/**
 * Checks that QEMU's process has a block where we read it: in a file that has its name and is another one (a copy, or one
 * that took its place) much is equal.
 * @throws VmcoreError READ that it does not, or why that cannot be seen
 */
export async function checkMapped(
  client: QmpClient,
  block: MemoryBlock & PlaceInFile,
  pid: number | undefined,
): Promise<void> {
  const inProcess = await findInProcess(client, block, pid);
  if (!holds(inProcess, block))
    throw new VmcoreError('READ', `process ${inProcess.pid} does not have ${block.backing.name} mapped there`);
}
