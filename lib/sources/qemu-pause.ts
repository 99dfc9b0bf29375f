/**
 * A machine that is kept still while it is read, and runs on afterwards if it ran before. Whoever begins a pause ends
 * it, whatever happens in between; for a process that is killed with SIGKILL, a watchdog does.
 */

import { messageOf, VmcoreError } from '../errors.js';
import { objectOf, type QmpClient } from '../qmp/client.js';
import { Watchdog } from './qemu-watchdog.js';

/** A machine that stands still. */
export class Pause {
  readonly #started = performance.now();
  readonly #forget: () => void;
  #seconds: number | null = null;
  #release: Promise<void> | null = null;
  #disturbed = false;

  private constructor(
    private readonly client: QmpClient,
    /** whether the machine ran, and so will run again */
    readonly wasRunning: boolean,
    private readonly watchdog: Watchdog | null,
  ) {
    this.#forget = client.onEvent(({ event }) => {
      if (event === 'RESUME' && !this.#release) this.#disturbed = true;
    });
  }

  /** Notes the run state, and stops the machine if it runs. @throws VmcoreError */
  static async begin(client: QmpClient): Promise<Pause> {
    const { running } = objectOf(await client.execute('query-status'), 'query-status');
    const watchdog = running === true && client.descriptor !== null ? Watchdog.start(client.descriptor) : null;
    const pause = new Pause(client, running === true, watchdog);
    try {
      if (pause.wasRunning) await client.execute('stop');
      return pause;
    } catch (error) {
      watchdog?.stop();
      throw error;
    }
  }

  /** For how long the machine stood still on our account, until now or until it was released. */
  get seconds(): number {
    return this.#seconds ?? (performance.now() - this.#started) / 1000;
  }

  /** Whether somebody else had the machine run in the meantime: what was read is then not of one instant. */
  get disturbed(): boolean {
    return this.#disturbed;
  }

  /**
   * Ends the pause: the machine runs if it ran before. Later calls do nothing but wait for the first.
   * @throws VmcoreError READ when it could not be done
   */
  release(): Promise<void> {
    this.#release ??= this.#end();
    return this.#release;
  }

  async #end(): Promise<void> {
    this.#forget();
    try {
      if (this.wasRunning) await this.client.execute('cont');
    } catch (error) {
      throw new VmcoreError('READ', `the guest could not be resumed: ${messageOf(error)}`, { cause: error });
    } finally {
      this.#seconds = this.seconds;
      this.watchdog?.stop();
    }
  }
}
