/**
 * A proxy between clients and a live QEMU: dumps are made here, in every format and with several cores, and all else is
 * QEMU's. Clients see QEMU's own greeting, answers and events, and are served as QEMU serves them, one after the other.
 */

import { EventEmitter } from 'node:events';
import { messageOf, VmcoreError } from '../../model/errors.js';
import type { DumpRequest } from '../../request.js';
import { disturbanceOf } from '../../live/qemu/disturbance.js';
import { openQemu } from '../../live/qemu/qemu-guest.js';
import type { OpenQemuOptions } from '../../live/qemu/options.js';
import { connectQmp, type QmpConnection } from '../protocol/client.js';
import type { Connection } from '../protocol/connection.js';
import { completionMessage, DumpControl, type LentGuest } from './dump-control.js';
import { Monitors } from './monitors.js';
import { ProxyBackend } from './proxy-backend.js';
import { SharedDescriptors } from './proxy-descriptors.js';
import { type OwnClient, SharedQemu } from './proxy-link.js';

/** How dumps are made. */
export interface QmpProxyOptions extends Omit<OpenQemuOptions, 'signal' | 'onWarning'> {
  /** `file:` paths have to be in this directory; relative ones begin there */
  readonly directory?: string | undefined;
  /** what QEMU does not have: ranges with kdump formats, `threads`, `dump-cancel`; false by default */
  readonly extensions?: boolean | undefined;
  /** what every dump is asked for, beyond what the client says: bounds, threads */
  readonly defaults?: DumpRequest | undefined;
}

/** Sits between clients and a QEMU. Emits `warning` with a text. */
export class QmpProxy extends EventEmitter<{ warning: [string] }> {
  readonly #qemu: SharedQemu;
  readonly #descriptors: SharedDescriptors;
  readonly #monitors: Monitors;
  readonly #dumps: DumpControl;
  #announcedEnd = false;
  #closing: Promise<void> | null = null;

  /**
   * Settles when the proxy is to end: QEMU has, or the only client there can be is gone. Rejects with a VmcoreError when
   * QEMU is gone without a word.
   */
  readonly finished: Promise<void>;

  /** @param connection to QEMU's monitor; ends with the proxy */
  constructor(
    connection: QmpConnection,
    private readonly options: QmpProxyOptions = {},
  ) {
    super();
    const onWarning = (text: string) => this.emit('warning', text);
    this.#qemu = new SharedQemu(connection);
    this.#descriptors = new SharedDescriptors(this.#qemu);
    this.#dumps = new DumpControl((dump) => this.#lend(dump), { ...options, descriptors: this.#descriptors });
    const { extensions = false } = options;
    const { qemu, descriptors, dumps } = { qemu: this.#qemu, descriptors: this.#descriptors, dumps: this.#dumps };
    const backend = new ProxyBackend({ qemu, descriptors, dumps, extensions });
    this.#monitors = new Monitors(backend, { oneByOne: true, onWarning });
    dumps.on('completed', (...end) => this.#monitors.notify(completionMessage(...end)));
    dumps.on('warning', onWarning);
    qemu.onEvent((message) => {
      if (message.get('event') === 'SHUTDOWN') this.#announcedEnd = true;
      this.#monitors.notify(message);
    });
    this.finished = Promise.race([this.#monitors.alone, this.#qemuGone()]);
    this.finished.catch(() => {});
  }

  /**
   * Connects to QEMU.
   * @param address path of its monitor's UNIX socket, or `tcp:HOST:PORT`
   * @param signal  gives up connecting
   * @throws VmcoreError
   */
  static async connect(address: string, options: QmpProxyOptions = {}, signal?: AbortSignal): Promise<QmpProxy> {
    return new QmpProxy(await connectQmp(address, { oob: true, signal }), options);
  }

  /** Makes a descriptor known as `fd:NAME` for dumps; it is the proxy's from here on. @throws VmcoreError */
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

  /** Serves one client, after those before it, until it is gone. */
  serve(connection: Connection): Promise<void> {
    return this.#monitors.serve(connection);
  }

  /** Ends: a dump that is under way leaves nothing partial, and the guest runs if it ran; QEMU goes on. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#monitors.closeListeners();
    await this.#dumps.close();
    await this.#monitors.finish();
    this.#descriptors.close();
    this.#qemu.close();
  }

  /** What a dump still says is heard first. */
  async #qemuGone(): Promise<void> {
    const reason = await this.#qemu.closed;
    await this.#dumps.settle();
    if (!this.#announcedEnd && !this.#closing) throw reason;
  }

  async #lend(dump: AbortController): Promise<LentGuest> {
    const client = this.#qemu.client();
    const unwatch = watchPause(client, dump);
    try {
      const onWarning = (text: string) => this.emit('warning', text);
      const guest = await openQemu(client, { ...this.options, signal: dump.signal, onWarning });
      // A copy has been made in one pause, and may be dumped whatever the machine does.
      if (guest.live?.report.copiedBytes !== undefined) unwatch();
      const release = async () => {
        unwatch();
        await guest.live?.release().catch((error: unknown) => onWarning(messageOf(error)));
      };
      return { guest, release, close: () => guest.close() };
    } catch (error) {
      unwatch();
      throw error;
    }
  }
}

/**
 * Gives up a dump when somebody else, over another monitor, has the guest run, wakes it up or resets it: it would not be
 * of one instant.
 */
function watchPause(client: OwnClient, dump: AbortController): () => void {
  return client.onEvent((event) => {
    const disturbance = disturbanceOf(event);
    if (disturbance === null || client.resumed) return;
    dump.abort(new VmcoreError('READ', `${disturbance}; dump it again`));
  });
}
