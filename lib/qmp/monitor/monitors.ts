/** The clients of a server: where they come from, and a monitor for each. */

import { messageOf } from '../../model/errors.js';
import type { Connection } from '../protocol/connection.js';
import type { Reply } from '../protocol/json-text.js';
import { type Listener, listen } from '../protocol/listen.js';
import { type Backend, Monitor } from './monitor.js';

/** How clients are served. */
export interface MonitorsOptions {
  /** one client at a time, as QEMU does: the others wait for their greeting; false by default */
  readonly oneByOne?: boolean | undefined;
  /** is told of a defect that a client brought out */
  onWarning(text: string): void;
}

/** Serves clients by monitors of one backend. */
export class Monitors {
  readonly #monitors = new Set<Monitor>();
  readonly #listeners: Listener[] = [];
  #onAlone: () => void = () => {};
  #before: Promise<void> = Promise.resolve();
  #closing = false;

  /** settles when no more clients can come by themselves: the only one there can be is gone */
  readonly alone = new Promise<void>((resolve) => {
    this.#onAlone = resolve;
  });

  constructor(
    private readonly backend: Backend,
    private readonly options: MonitorsOptions,
  ) {}

  /**
   * Waits for clients.
   * @param address `unix:PATH`, `stdio`, `fd:N`, or `fd:NAME` of what systemd handed over
   * @throws VmcoreError
   */
  async listen(address: string): Promise<void> {
    const listener = await listen(address, (connection) => this.serve(connection));
    this.#listeners.push(listener);
    void listener.ended.then(() => this.#onAlone());
  }

  /** Serves one client, until it is gone. */
  serve(connection: Connection): Promise<void> {
    if (!this.options.oneByOne) return this.#run(connection);
    this.#before = this.#before.then(() => this.#run(connection));
    return this.#before;
  }

  /** Passes the message of an event on to all who have negotiated. */
  notify(message: Reply): void {
    for (const monitor of this.#monitors) monitor.notify(message);
  }

  /** Takes no more clients. */
  closeListeners(): void {
    this.#closing = true;
    for (const listener of this.#listeners) listener.close();
  }

  /** Ends the connections when what was sent has been read. */
  async finish(): Promise<void> {
    await Promise.all([...this.#monitors].map((monitor) => monitor.finish()));
  }

  async #run(connection: Connection): Promise<void> {
    if (this.#closing) {
      connection.close();
      return;
    }
    const monitor = new Monitor(connection, this.backend);
    this.#monitors.add(monitor);
    // A client that brings out a defect of ours must not take the others with it.
    await monitor.run().catch((error) => this.options.onWarning(messageOf(error)));
    this.#monitors.delete(monitor);
  }
}
