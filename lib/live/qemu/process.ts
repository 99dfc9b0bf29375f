/**
 * The memory of the QEMU process, as /proc shows it: where a block is in it, its bytes, and which file is mapped there.
 *
 * All of it takes the right to trace the process (ptrace(2), PTRACE_MODE_READ and ATTACH): to be root, or the user that
 * QEMU runs as, where the system has no stricter rule (Yama's ptrace_scope, a QEMU that is not dumpable).
 */

import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { ioError, VmcoreError } from '../../model/errors.js';
import type { Backing, DataRun, HeldPlace, MemoryBlock } from '../../model/physical-memory.js';
import { humanMonitor, QmpCommandError, type QmpClient } from '../../qmp/protocol/client.js';
import { FileBacking } from '../../io/file-backing.js';
import { Pagemap } from './pagemap.js';

/** What HMP `gpa2hva` prints when there is RAM at the address. */
const HOST_ADDRESS = /is (0x[0-9a-f]{1,16})\s*$/;

/**
 * Where QEMU has guest physical memory in its own.
 * @throws VmcoreError READ, UNSUPPORTED with QEMU's words when it does not tell
 */
export async function hostAddress(client: QmpClient, paddr: number): Promise<number> {
  const text = await humanMonitor(client, `gpa2hva 0x${paddr.toString(16)}`);
  const [, digits] = HOST_ADDRESS.exec(text) ?? [];
  const address = Number(digits);
  if (digits !== undefined && Number.isSafeInteger(address)) return address;
  const [line = ''] = text.trim().split('\n');
  throw new QmpCommandError('gpa2hva', 'GenericError', line.slice(0, LONGEST_LINE));
}

/** Characters of QEMU's words that are repeated. */
const LONGEST_LINE = 300;

/** Which file it is: inodes have numbers of their own in each file system, and two of tmpfs begin with the same ones. */
export interface FileIdentity {
  /** st_dev of stat(2) */
  readonly dev: number;
  readonly ino: number;
}

/** Whether two are the same file. */
export function isSameFile(a: FileIdentity, b: FileIdentity): boolean {
  return a.dev === b.dev && a.ino === b.ino;
}

/** A mapping of a process (proc(5), /proc/pid/maps). */
export interface ProcessMapping {
  readonly start: number;
  readonly end: number;
  /** what is written there is seen by others who have the file mapped, and the other way round */
  readonly shared: boolean;
  /** offset in the file of the mapping's first byte */
  readonly offset: number;
  /** null when there is none */
  readonly file: FileIdentity | null;
}

/** One that can be read: what a process has only reserved is no memory. */
const MAPPING = /^([0-9a-f]+)-([0-9a-f]+) r..([sp]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) ([0-9]+)/;

/**
 * The mapping that a range of addresses begins in; null when some of the range is in none.
 * @throws whatever `fs` throws when it may not be read
 */
function mappingOf(pid: number, start: number, end: number): ProcessMapping | null {
  let first: RegExpExecArray | null = null;
  let mapped = start;
  // Sorted by address. What was mapped at once may be shown as several that adjoin.
  for (const line of readFileSync(`/proc/${pid}/maps`, 'latin1').split('\n')) {
    const fields = MAPPING.exec(line);
    if (!fields || hex(fields, 2) <= mapped) continue;
    if (hex(fields, 1) > mapped) return null;
    first ??= fields;
    mapped = hex(fields, 2);
    if (mapped >= end) return mappingFrom(pid, first);
  }
  return null;
}

function hex(fields: RegExpExecArray, index: number): number {
  return Number.parseInt(fields[index]!, 16);
}

function mappingFrom(pid: number, fields: RegExpExecArray): ProcessMapping {
  const [start, end] = [hex(fields, 1), hex(fields, 2)];
  const ino = Number(fields[7]);
  const file =
    ino === 0 ? null : (mappedFile(pid, start, end) ?? { dev: deviceNumber(hex(fields, 5), hex(fields, 6)), ino });
  return { start, end, shared: fields[3] === 's', offset: hex(fields, 4), file };
}

/**
 * What stat(2) says of a mapped file, where we may ask: the device that maps shows is another one for file systems that
 * lie over others or have several volumes (overlayfs, btrfs).
 */
function mappedFile(pid: number, start: number, end: number): FileIdentity | null {
  try {
    return statSync(`/proc/${pid}/map_files/${start.toString(16)}-${end.toString(16)}`);
  } catch {
    return null;
  }
}

/** A device as st_dev has it (glibc's makedev(3), of a major below 4096 and a minor of 20 bits, as Linux has them). */
function deviceNumber(major: number, minor: number): number {
  return (minor & 0xff) + major * 2 ** 8 + (minor >>> 8) * 2 ** 20;
}

/** A way to open a file that a process has open: a memfd, or one that was removed. */
export function openFileOf(pid: number, file: FileIdentity): string | null {
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    const path = `/proc/${pid}/fd/${fd}`;
    const stat = statSync(path, { throwIfNoEntry: false });
    if (stat && isSameFile(stat, file) && /^\//.test(readlinkSync(path))) return path;
  }
  return null;
}

/** /proc/PID/mem as a backing: its offsets are addresses of the process. */
export class ProcessMemory implements Backing {
  readonly name: string;
  readonly #memory: FileBacking;
  readonly #pagemap: Pagemap | null;
  readonly #sparse = new Map<number, boolean>();

  private constructor(
    private readonly pid: number,
    memory: FileBacking,
  ) {
    this.name = memory.name;
    this.#memory = memory;
    this.#pagemap = Pagemap.open(`/proc/${pid}/pagemap`);
  }

  /** @throws VmcoreError READ when there is no such process, or it may not be read */
  static open(pid: number): ProcessMemory {
    return new ProcessMemory(pid, FileBacking.open(`/proc/${pid}/mem`));
  }

  readSync(offset: number, into: Uint8Array): void {
    try {
      this.#memory.readSync(offset, into);
    } catch (error) {
      throw this.#failure(error, offset);
    }
  }

  locate(offset: number): HeldPlace {
    return this.#memory.locate(offset);
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    try {
      await this.#memory.read(offset, into);
    } catch (error) {
      throw this.#failure(error, offset);
    }
  }

  /** Pages that the process has never touched read as zeros, where they are its own and of no file. */
  nextData(offset: number, end: number): DataRun | null {
    if (this.#pagemap === null || !this.#isAnonymous(offset, end)) return { start: offset, end };
    return this.#pagemap.nextTouched(offset, end);
  }

  close(): void {
    this.#memory.close();
    this.#pagemap?.close();
  }

  /** A process that has ended has no memory: reading it meets an end, or an error. */
  #failure(error: unknown, offset: number): unknown {
    if (isRunning(this.pid)) return error;
    const where = `0x${offset.toString(16)}`;
    return new VmcoreError('READ', `cannot read ${this.name} at ${where}: process ${this.pid} has ended`, {
      cause: error,
    });
  }

  /** Asked for each run of data of a block, whose end stays the same. */
  #isAnonymous(start: number, end: number): boolean {
    let sparse = this.#sparse.get(end);
    if (sparse === undefined) {
      sparse = isPrivateAnonymous(this.pid, start, end);
      this.#sparse.set(end, sparse);
    }
    return sparse;
  }
}

/** A process that has ended, and that nobody has asked for yet, has no memory either. */
function isRunning(pid: number): boolean {
  try {
    return !/^State:\s+[XZ]/m.test(readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return false;
  }
}

function isPrivateAnonymous(pid: number, start: number, end: number): boolean {
  try {
    const mapping = mappingOf(pid, start, end);
    return mapping !== null && !mapping.shared && mapping.file === null && mapping.end >= end;
  } catch {
    return false;
  }
}

/** Where QEMU's process has a block of the guest's memory. */
export interface BlockInProcess {
  readonly pid: number;
  readonly address: number;
  /** the mapping that it begins in */
  readonly mapping: ProcessMapping;
}

/**
 * Finds a block in QEMU's process: the one that the user names, else the one at the other end of the socket. That need
 * not be QEMU, but may be what passes the connection on (socat, ssh -L) or has made the socket (libvirt); a process that
 * has no memory at the addresses that QEMU tells is not taken for it.
 * @param pid QEMU's process, where the user says it
 * @throws VmcoreError READ, UNSUPPORTED, USAGE why it cannot be found
 */
export async function findInProcess(
  client: QmpClient,
  { base, length }: MemoryBlock,
  pid: number | undefined,
): Promise<BlockInProcess> {
  const known = pid ?? client.peerPid;
  if (known === null)
    throw new VmcoreError('USAGE', `which process ${client.name} is cannot be told from the connection; say --pid`);
  const address = await hostAddress(client, base);
  const mapping = lookAt(known, pid === undefined, () => mappingOf(known, address, address + length));
  if (mapping) return { pid: known, address, mapping };
  throw new VmcoreError(
    'READ',
    `${describeProcess(known, pid === undefined)} does not have the guest's memory; ${
      pid === undefined ? 'say --pid' : "--pid takes QEMU's"
    }`,
  );
}

/** Looks at what only those see who may trace a process. @throws VmcoreError READ */
function lookAt<T>(pid: number, isPeer: boolean, look: () => T): T {
  try {
    return look();
  } catch (error) {
    const { message } = ioError('READ', `look at ${describeProcess(pid, isPeer)}`, error);
    throw new VmcoreError('READ', isPeer ? `${message} (where that is not QEMU, say --pid)` : message, {
      cause: error,
    });
  }
}

function describeProcess(pid: number, isPeer: boolean): string {
  return `process ${pid}${nameOf(pid)}${isPeer ? ' at the other end of the socket' : ''}`;
}

/** In parentheses; nothing where it cannot be told. Anybody may ask. */
function nameOf(pid: number): string {
  try {
    return ` (${readFileSync(`/proc/${pid}/comm`, 'utf8').replace(/[^\x20-\x7e]/g, '')})`;
  } catch {
    return '';
  }
}
