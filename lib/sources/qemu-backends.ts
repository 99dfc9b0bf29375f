/**
 * The files behind a machine's memory: which memory backends QEMU has (`query-memdev`), which of them are shared
 * mappings of a file, and where that file is from our point of view.
 *
 * Reading the file itself leaves it as sparse as it is, and takes no right but to read it. A backend that is not
 * shared (`share=off`) is none of these: what the guest writes never gets to the file.
 */

import { type Stats, statSync } from 'node:fs';
import { isAbsolute } from 'node:path';
import { messageOf, VmcoreError } from '../errors.js';
import type { Backing } from '../physical-memory.js';
import { objectOf, type QmpClient, type QmpValue } from '../qmp/client.js';
import { FileBacking } from './file-backing.js';
import { hostAddress, isSameFile, mappingAt, openFileOf, processOf } from './qemu-process.js';

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
export interface WantedBlock {
  /** guest physical address of its first byte */
  readonly base: number;
  readonly length: number;
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
  const named = openByPath(backend, block, client, pid);
  const isOther = named !== null && (await isMappedThere(client, { ...named, base: block.base }, pid)) === false;
  if (isOther) named.backing.close();
  const place = named && !isOther ? named : await openMapped(client, block, pid);
  if (place.offset + block.length <= place.backing.size) return place;
  place.backing.close();
  throw new VmcoreError('READ', `${place.backing.name} is smaller than the memory that is in it`);
}

/** Null when there is no regular file of that name here, or in what QEMU has for its root. */
function openByPath(
  { path, offset }: SharedBackend,
  block: WantedBlock,
  client: QmpClient,
  pid: number | undefined,
): FilePlace | null {
  const name = path === null ? null : visiblePath(path, pid ?? client.peerPid);
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

/** The file that QEMU's process has mapped where the block is: a memfd, a file in hugetlbfs, one that was removed. */
async function openMapped(client: QmpClient, block: WantedBlock, pid: number | undefined): Promise<FilePlace> {
  const process = processOf(client, pid);
  const address = await hostAddress(client, block.base);
  const path = mappedFile(process, address, block.length);
  return { backing: FileBacking.open(path.name), offset: path.offset };
}

function mappedFile(pid: number, address: number, length: number): { name: string; offset: number } {
  try {
    const mapping = mappingAt(pid, address);
    if (mapping?.file && mapping.shared && address + length <= mapping.end) {
      const name = openFileOf(pid, mapping.file);
      if (name !== null) return { name, offset: mapping.offset + (address - mapping.start) };
    }
  } catch (error) {
    throw new VmcoreError('READ', `process ${pid} may not be looked at: ${messageOf(error)}`);
  }
  throw new VmcoreError('READ', `no file that process ${pid} has open is mapped there`);
}

/** A block that is read from a file. */
interface FileBlock {
  /** guest physical address of its first byte */
  readonly base: number;
  /** offset of its first byte in the file */
  readonly offset: number;
  readonly backing: Backing;
}

/**
 * Whether QEMU's process has a block where we read it: in a file that has its name and is another one (a copy, or one
 * that took its place) much is equal. Null where that cannot be seen.
 */
export async function isMappedThere(
  client: QmpClient,
  block: FileBlock,
  pid: number | undefined,
): Promise<boolean | null> {
  try {
    const address = await hostAddress(client, block.base);
    const mapping = mappingAt(processOf(client, pid), address);
    if (!mapping?.file || !mapping.shared || !isSameFile(mapping.file, statSync(block.backing.name))) return false;
    return mapping.offset + (address - mapping.start) === block.offset;
  } catch (error) {
    if (error instanceof VmcoreError && error.code === 'ABORTED') throw error;
    return null;
  }
}
