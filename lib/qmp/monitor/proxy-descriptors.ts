/**
 * Descriptors that clients pass: each goes on to QEMU, which may need it (`migrate fd:NAME`), and is kept here as well,
 * because a dump to `fd:NAME` is ours. Whoever uses one up has the other give up the duplicate: while a pipe has two
 * writers, its reader waits for the end.
 *
 * QEMU does not tell when a command has used up a name. After a command that mentions one it is asked to close it: when
 * it still has it, it is given it again.
 */

import { constants } from 'node:fs';
import { messageOf } from '../../model/errors.js';
import { ACCESS_MODE, openFlags } from '../../io/open-flags.js';
import { closeAll } from '../protocol/connection.js';
import { Descriptors } from './descriptors.js';
import type { Json, JsonObject } from '../protocol/json-parser.js';
import type { Reply } from '../protocol/json-text.js';
import type { Monitor } from './monitor.js';
import type { ForwardedCommand, SharedQemu } from './proxy-link.js';

const ignore = () => {};

/** Named descriptors and descriptor sets that QEMU has, too. */
export class SharedDescriptors extends Descriptors {
  /** names that QEMU has, too, unless a command has used them up: not those of --add-fd */
  readonly #atQemu = new Set<string>();

  constructor(private readonly qemu: SharedQemu) {
    super();
  }

  /** As there; QEMU gives up its duplicate. @throws QmpError */
  override take(name: string): number {
    const fd = super.take(name);
    if (this.#atQemu.delete(name)) void this.#closeAtQemu(name).catch(ignore);
    return fd;
  }

  /** `getfd`. @throws QmpError */
  async get(forwarded: ForwardedCommand, monitor: Monitor): Promise<Reply> {
    const name = forwarded.args.get('fdname');
    // QEMU behind TCP takes no descriptors; we do.
    if (!this.qemu.passesDescriptors && typeof name === 'string') {
      this.setNamed(name, monitor.takeDescriptor());
      return {};
    }
    const [result, fd] = await this.#pass(forwarded, monitor);
    if (fd !== undefined) {
      this.#atQemu.add(String(name));
      this.setNamed(String(name), fd);
    }
    return result;
  }

  /** `closefd`. @throws QmpError */
  async closefd(forwarded: ForwardedCommand): Promise<Reply> {
    const name = String(forwarded.args.get('fdname'));
    const isOurs = this.names.includes(name);
    if (isOurs) this.closeNamed(name);
    return isOurs && !this.#atQemu.delete(name) ? {} : this.qemu.forward(forwarded);
  }

  /** `add-fd`. A dump writes to those that are open for writing only, so others are not kept. @throws QmpError */
  async addToSet(forwarded: ForwardedCommand, monitor: Monitor): Promise<Reply> {
    const [result, fd] = await this.#pass(forwarded, monitor);
    if (fd === undefined || !(result instanceof Map)) return result;
    const added = result as JsonObject;
    if ((openFlags(fd) & ACCESS_MODE) !== constants.O_WRONLY) closeAll([fd]);
    else this.add(fd, Number(added.get('fdset-id')), undefined, Number(added.get('fd')));
    return result;
  }

  /** `remove-fd`. @throws QmpError */
  async removeFromSet(forwarded: ForwardedCommand): Promise<Reply> {
    const result = await this.qemu.forward(forwarded);
    const [id, fd] = [forwarded.args.get('fdset-id'), forwarded.args.get('fd')];
    this.discard(Number(id), fd === undefined ? undefined : Number(fd));
    return result;
  }

  /** Gives up what a command of QEMU's has used up. */
  async reconcile({ args }: ForwardedCommand): Promise<void> {
    for (const name of [...this.#atQemu].filter((name) => mentions(args, name))) {
      const isLeft = await this.#closeAtQemu(name).then(
        () => true,
        () => false,
      );
      const fd = this.peek(name);
      if (isLeft && fd !== undefined)
        await this.qemu.forward({ command: 'getfd', args: new Map([['fdname', name]]), fds: [fd] });
      else if (this.#atQemu.delete(name) && fd !== undefined) this.closeNamed(name);
    }
  }

  async #closeAtQemu(name: string): Promise<void> {
    await this.qemu.forward({ command: 'closefd', args: new Map([['fdname', name]]) });
  }

  /** Passes a command on with the descriptors that came for it; the first of them is the one that QEMU takes. */
  async #pass(forwarded: ForwardedCommand, monitor: Monitor): Promise<[Json, number | undefined]> {
    const fds = monitor.takeDescriptors();
    try {
      const result = await this.qemu.forward({ ...forwarded, fds });
      const [first, ...others] = fds;
      closeAll(others);
      return [result, first];
    } catch (error) {
      closeAll(fds);
      // Says more where descriptors cannot be received at all.
      if (NONE_SUPPLIED.test(messageOf(error))) monitor.takeDescriptor();
      throw error;
    }
  }
}

/** What QEMU says to a command that needs a descriptor and has none. */
const NONE_SUPPLIED = /^No file descriptor supplied/;

/** Whether a text anywhere in the value has the name in it. */
function mentions(value: Json, name: string): boolean {
  if (typeof value === 'string') return value.includes(name);
  const parts = value instanceof Map ? [...value.values()] : Array.isArray(value) ? value : [];
  return parts.some((part: Json) => mentions(part, name));
}
