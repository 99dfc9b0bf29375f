/** A QMP server over a guest: everything of lib/qmp put together. */

import { EventEmitter } from 'node:events';
import type { Guest } from '../../model/guest.js';
import type { DumpRequest } from '../../request.js';
import { packageVersion } from '../../version.js';
import { CommandSet } from './commands.js';
import type { Connection } from '../protocol/connection.js';
import { Descriptors } from './descriptors.js';
import { completionMessage, DumpControl } from './dump-control.js';
import type { Reply } from '../protocol/json-text.js';
import { eventMessage } from './monitor.js';
import { Monitors } from './monitors.js';

/** How a guest is served. */
export interface QmpServerOptions {
  /** `file:` paths have to be in this directory; relative ones begin there */
  readonly directory?: string | undefined;
  /** what QEMU does not have: ranges with kdump formats, `threads`, `dump-cancel`; false by default */
  readonly extensions?: boolean | undefined;
  /** what every dump is asked for, beyond what the client says: bounds, threads */
  readonly defaults?: DumpRequest | undefined;
}

/** Serves a guest to clients that speak QEMU's monitor protocol. Emits `warning` with a text. */
export class QmpServer extends EventEmitter<{ warning: [string] }> {
  readonly #descriptors = new Descriptors();
  readonly #monitors: Monitors;
  readonly #dumps: DumpControl;
  #onQuit: () => void = () => {};
  #closing: Promise<void> | null = null;

  /** Settles when the server is to end: a client said `quit`, or the only client there can be is gone. */
  readonly finished = new Promise<void>((resolve) => {
    this.#onQuit = resolve;
  });

  /** @param guest what is dumped; stays open */
  constructor(guest: Guest, options: QmpServerOptions = {}) {
    super();
    const { extensions = false } = options;
    const onWarning = (text: string) => this.emit('warning', text);
    // It stands still by itself, and is not ours to close.
    const lend = async () => ({ guest, release: async () => {}, close: () => {} });
    this.#dumps = new DumpControl(lend, { ...options, descriptors: this.#descriptors });
    this.#dumps.on('completed', (...end) => this.#monitors.notify(completionMessage(...end)));
    this.#dumps.on('warning', onWarning);
    const commands = new CommandSet({
      version: ourVersion(),
      extensions,
      descriptors: this.#descriptors,
      dumps: this.#dumps,
      quit: () => this.#quit(),
    });
    this.#monitors = new Monitors(commands, { onWarning });
    void this.#monitors.alone.then(() => this.#onQuit());
  }

  /** Makes a descriptor known as `fd:NAME`; it is the server's from here on. @throws VmcoreError */
  addDescriptor(name: string, fd: number): void {
    this.#descriptors.setNamed(name, fd);
  }

  /**
   * Waits for clients.
   * @param address `unix:PATH`, `stdio`, `fd:N`, or `fd:NAME` of what systemd handed over
   * @throws VmcoreError
   */
  listen(address: string): Promise<void> {
    return this.#monitors.listen(address);
  }

  /** Serves one client, until it is gone. */
  serve(connection: Connection): Promise<void> {
    return this.#monitors.serve(connection);
  }

  /** Ends: the dump that is under way leaves nothing partial, descriptors and sockets are closed. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#monitors.closeListeners();
    await this.#dumps.close();
    await this.#monitors.finish();
    this.#descriptors.close();
  }

  #quit(): void {
    // After the answer to the command itself.
    setImmediate(() => {
      this.#monitors.notify(eventMessage('SHUTDOWN', { guest: false, reason: 'host-qmp-quit' }));
      this.#onQuit();
    });
  }
}

/** Our version, where QEMU says its own. */
function ourVersion(): Reply {
  const version = packageVersion();
  const [major = 0, minor = 0, micro = 0] = version.split(/[.-]/).map(Number);
  return { qemu: { micro, minor, major }, package: `vmcore ${version}` };
}
