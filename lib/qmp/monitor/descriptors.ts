/**
 * The descriptors of a monitor: those with names (`getfd`), and sets of them (`add-fd`). Whatever is here is closed
 * here, at the latest when the server ends; a dump takes what it is given and closes it itself.
 *
 * As with QEMU they belong to the monitor and not to the connection: a client may hand over a descriptor, go away, and
 * ask for the dump over its next connection.
 */

import { closeSync, constants } from 'node:fs';
import { ACCESS_MODE, openFlags } from '../../io/open-flags.js';
import { closeAll } from '../protocol/connection.js';
import { QmpError } from '../protocol/qmp-error.js';

/** Most descriptors with names, and most in sets: a client that forgets them must not use up the process's. */
const MAX_DESCRIPTORS = 256;

interface SetMember {
  readonly fd: number;
  /** the number that clients know it by */
  readonly shown: number;
  readonly opaque: string | undefined;
  /** dumps that write to it */
  uses: number;
  /** to be closed when no dump writes to it */
  removed: boolean;
}

/** A descriptor that was lent by a set. */
export interface Lease {
  readonly fd: number;
  /** gives it back; call it once. @throws what close(2) says, of one that the set does not have any more */
  release(): void;
}

/** A set, as `query-fdsets` shows it. */
export interface FdSetInfo {
  readonly 'fdset-id': number;
  readonly fds: readonly { readonly fd: number; readonly opaque: string | undefined }[];
}

/** Named descriptors and descriptor sets. */
export class Descriptors {
  readonly #named = new Map<string, number>();
  readonly #sets = new Map<number, SetMember[]>();

  /** Keeps a descriptor under a name; one that had the name is closed. @throws QmpError; the descriptor is closed then */
  setNamed(name: string, fd: number): void {
    if (/^[0-9]/.test(name)) {
      closeAll([fd]);
      throw new QmpError("Parameter 'fdname' expects a name not starting with a digit");
    }
    const old = this.#named.get(name);
    if (old === undefined) checkRoom(this.#named.size, fd);
    else closeAll([old]);
    this.#named.set(name, fd);
  }

  /** Closes a named descriptor. @throws QmpError when there is none */
  closeNamed(name: string): void {
    const fd = this.#named.get(name);
    if (fd === undefined) throw new QmpError(`File descriptor named '${name}' not found`);
    this.#named.delete(name);
    closeAll([fd]);
  }

  /** The names there are. */
  get names(): readonly string[] {
    return [...this.#named.keys()];
  }

  /** A named descriptor, which stays here; undefined when there is none. */
  peek(name: string): number | undefined {
    return this.#named.get(name);
  }

  /** Hands out a named descriptor: its name is used up, and whoever takes it closes it. @throws QmpError */
  take(name: string): number {
    const fd = this.#named.get(name);
    if (fd === undefined) throw new QmpError(`File descriptor named '${name}' has not been found`);
    this.#named.delete(name);
    return fd;
  }

  /**
   * Adds a descriptor to a set; to the first number without a set by default.
   * @param shown the number that clients know it by
   * @throws QmpError; it is closed then
   */
  add(fd: number, setId: number | undefined, opaque: string | undefined, shown = fd): number {
    if (setId !== undefined && setId < 0) {
      closeAll([fd]);
      throw new QmpError("Parameter 'fdset-id' expects a non-negative value");
    }
    checkRoom([...this.#sets.values()].flat().length, fd);
    const id = setId ?? this.#firstFree();
    const members = this.#sets.get(id) ?? [];
    this.#sets.set(id, [{ fd, shown, opaque, uses: 0, removed: false }, ...members]);
    return id;
  }

  /** Removes a descriptor, or all, from a set. @throws QmpError when there is none */
  remove(setId: number, fd?: number): void {
    if (this.discard(setId, fd) > 0) return;
    const named = fd === undefined ? `fdset-id:${setId}` : `fdset-id:${setId}, fd:${fd}`;
    throw new QmpError(`File descriptor named '${named}' not found`);
  }

  /** Removes a descriptor, or all, from a set, if there are any. @returns how many there were */
  discard(setId: number, fd?: number): number {
    const found = this.#members(setId).filter(({ shown }) => fd === undefined || shown === fd);
    for (const member of found) {
      member.removed = true;
      if (this.#forgetUnused(setId, member)) closeAll([member.fd]);
    }
    return found.length;
  }

  /** The sets, in QEMU's order: the last comes first. */
  query(): FdSetInfo[] {
    return [...this.#sets.keys()]
      .sort((a, b) => b - a)
      .map((id) => ({
        'fdset-id': id,
        fds: this.#members(id)
          .reverse()
          .map(({ shown, opaque }) => ({ fd: shown, opaque })),
      }))
      .filter(({ fds }) => fds.length > 0);
  }

  /** Lends a descriptor of a set that is open for writing only, as a dump asks for. @throws QmpError */
  lend(setId: number): Lease {
    if (this.#members(setId).length === 0) throw new QmpError(`Failed to find fdset /dev/fdset/${setId}`);
    const member = this.#members(setId).find(({ fd }) => accessMode(fd) === constants.O_WRONLY);
    if (!member)
      throw new QmpError(`Failed to find file descriptor with matching flags=0x${WANTED_FLAGS.toString(16)}`);
    member.uses++;
    return {
      fd: member.fd,
      release: () => {
        member.uses--;
        if (this.#forgetUnused(setId, member)) closeSync(member.fd);
      },
    };
  }

  /** Closes everything but what dumps still write to. */
  close(): void {
    closeAll([...this.#named.values()]);
    this.#named.clear();
    for (const [id, members] of [...this.#sets])
      for (const member of members) {
        member.removed = true;
        if (this.#forgetUnused(id, member)) closeAll([member.fd]);
      }
  }

  #members(setId: number): SetMember[] {
    return (this.#sets.get(setId) ?? []).filter(({ removed }) => !removed);
  }

  #firstFree(): number {
    let id = 0;
    while (this.#sets.has(id)) id++;
    return id;
  }

  /** Strikes out what was removed, as soon as no dump writes to it. @returns whether it is to be closed */
  #forgetUnused(setId: number, member: SetMember): boolean {
    if (!member.removed || member.uses > 0) return false;
    const left = (this.#sets.get(setId) ?? []).filter((other) => other !== member);
    if (left.length > 0) this.#sets.set(setId, left);
    else this.#sets.delete(setId);
    return true;
  }
}

/** What QEMU opens the file of a dump with; it says so where a set has no such descriptor. */
const WANTED_FLAGS = constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC;

function checkRoom(count: number, fd: number): void {
  if (count < MAX_DESCRIPTORS) return;
  closeAll([fd]);
  throw new QmpError(`The monitor keeps ${MAX_DESCRIPTORS} descriptors already; close some of them first`);
}

function accessMode(fd: number): number {
  return openFlags(fd) & ACCESS_MODE;
}
