/**
 * A machine that is kept still while it is read, and runs on afterwards if it ran before. Whoever begins a pause ends
 * it, whatever happens in between; for a process that is killed with SIGKILL, a watchdog does.
 */

import { messageOf, VmcoreError } from '../../model/errors.js';
import { objectOf, type QmpClient, QmpCommandError } from '../../qmp/protocol/client.js';
import { disturbanceOf } from './disturbance.js';
import { dumpCompletion } from './qemu-dump.js';
import type { Patience } from './patience.js';
import { Watchdog } from './watchdog.js';

/** QEMU's run states of a machine whose CPUs run, and of one that was reset when it was stopped. */
const RUNNING = 'running';
const RESET = 'prelaunch';

/**
 * States in which a machine does not stand still unless it is stopped: one that sleeps (ACPI S3) can be woken up. `cont`
 * has it sleep again; before QEMU 9, `stop` and `cont` do nothing to it, and that it was woken up can only be told.
 */
const STOPPABLE: readonly string[] = [RUNNING, 'suspended'];

/**
 * States out of which a machine that we stopped may run on: where `stop` leaves it, and where a reset leaves one that is
 * stopped. Whatever else it is in (it was migrated away meanwhile, it panicked before it was stopped) is somebody's
 * business who knows more: to say `cont` to a machine that runs at its destination would have it run twice.
 */
const RESUMABLE: readonly string[] = ['paused', RESET];

/** A machine that stands still. */
export class Pause {
  readonly #started = performance.now();
  readonly #forget: () => void;
  #seconds: number | null = null;
  #release: Promise<void> | null = null;
  #statusAfter: string | undefined;
  #waits = false;
  #disturbance: string | null = null;

  private constructor(
    private readonly client: QmpClient,
    /** QEMU's run state before */
    readonly statusBefore: string,
    private readonly watchdog: Watchdog | null,
    private readonly warn: (text: string) => void,
  ) {
    this.#forget = client.onEvent((event) => {
      this.#disturbance ??= disturbanceOf(event);
    });
  }

  /**
   * Notes the run state, and stops the machine if it runs or sleeps.
   * @param patience for how long to wait until it is stopped
   * @param warn     is told what a user should know of the pause's end
   * @throws VmcoreError
   */
  static async begin(client: QmpClient, patience: Patience, warn: (text: string) => void): Promise<Pause> {
    const status = await patience.wait(statusOf(client));
    const watchdog =
      STOPPABLE.includes(status) && client.descriptor !== null ? Watchdog.start(client.descriptor) : null;
    const pause = new Pause(client, status, watchdog, warn);
    try {
      if (pause.#stops) await patience.wait(client.execute('stop'));
      return pause;
    } catch (error) {
      await pause.#giveUp(error, patience);
      throw error;
    }
  }

  /** The machine was not stopped, or nobody knows: where QEMU has not refused, it may have done it, or do it yet. */
  async #giveUp(error: unknown, patience: Patience): Promise<void> {
    if (!(error instanceof QmpCommandError)) return patience.wait(this.release()).catch(() => {});
    this.#forget();
    this.watchdog?.stop();
  }

  /** Whether the machine ran, and so will run again. */
  get wasRunning(): boolean {
    return this.statusBefore === RUNNING;
  }

  get #stops(): boolean {
    return STOPPABLE.includes(this.statusBefore);
  }

  /** QEMU's run state since the end of the pause; undefined until then, and where QEMU could not be asked. */
  get statusAfter(): string | undefined {
    return this.#statusAfter;
  }

  /** For how long the machine stood still on our account, until now or until it was released. */
  get seconds(): number {
    return this.#seconds ?? (performance.now() - this.#started) / 1000;
  }

  /** What somebody else did to the machine in the meantime: what was read is then not of one instant. Null for nothing. */
  get disturbance(): string | null {
    return this.#disturbance;
  }

  /**
   * Ends the pause: the machine runs if it ran before, and sleeps if it slept. One that is no longer as we left it is left
   * alone, with a warning. Where QEMU dumps for another monitor, that dump's end is waited for, under the watchdog's eyes.
   * Later calls do nothing but wait for the first.
   * @throws VmcoreError READ when it could not be done
   */
  release(): Promise<void> {
    this.#release ??= this.#end();
    return this.#release;
  }

  async #end(): Promise<void> {
    this.#forget();
    try {
      this.#statusAfter = this.#stops ? await this.#resume() : await statusOf(this.client).catch(() => undefined);
      this.watchdog?.stop();
    } catch (error) {
      this.#leaveToWatchdog();
      throw new VmcoreError('READ', `the guest could not be resumed: ${messageOf(error)}`, { cause: error });
    } finally {
      this.#seconds = this.seconds;
    }
  }

  /**
   * Has the machine run if it still is as we left it, over a new connection where the old one has ended.
   * @returns the run state that it is in then
   */
  async #resume(): Promise<string> {
    try {
      return await this.#resumeOver(this.client);
    } catch (error) {
      const isLost = error instanceof VmcoreError && error.code === 'READ' && !(error instanceof QmpCommandError);
      if (!isLost) throw error;
      // Where the connection is still open for QEMU, it is the watchdog's, and QEMU serves no other one before it is done.
      this.watchdog?.act();
      return this.#resumeAnew(error);
    }
  }

  /** @throws `lost`, why the connection has ended, where there is no other one */
  async #resumeAnew(lost: VmcoreError): Promise<string> {
    const client = await this.client.reconnect?.().catch(() => null);
    if (!client) throw lost;
    try {
      const status = await this.#resumeOver(client);
      this.warn(
        `${lost.message}; the guest was resumed over another connection, but if somebody else had it run before that, ` +
          'the dump is not of one instant',
      );
      return status;
    } finally {
      client.close();
    }
  }

  async #resumeOver(client: QmpClient): Promise<string> {
    for (;;) {
      const status = await statusOf(client);
      if (!RESUMABLE.includes(status)) return this.#leave(status);
      // A machine that slept does so no more after a reset.
      if (await this.#continue(client)) return status === RESET ? RUNNING : this.statusBefore;
    }
  }

  /** It goes on trying when the connection is not ours any more; unless somebody has the machine run before. */
  #leaveToWatchdog(): void {
    const { watchdog, client } = this;
    if (watchdog === null) return;
    const forget = client.onEvent(({ event }) => {
      if (event === 'RESUME') watchdog.stop();
    });
    void client.closed.then(() => {
      forget();
      watchdog.act();
    });
  }

  #leave(status: string): string {
    // One that runs was resumed or woken up, and that is told as a disturbance.
    if (status !== this.statusBefore && status !== RUNNING)
      this.warn(`the guest is no longer paused, but in QEMU's state '${status}': it was left so, and not resumed`);
    return status;
  }

  /**
   * Says `cont`. QEMU refuses while it dumps for another monitor: then waits for that dump's end.
   * @returns whether QEMU did it
   */
  async #continue(client: QmpClient): Promise<boolean> {
    // Heard of from before QEMU refuses: the dump may end right then.
    const otherDump = dumpCompletion(client);
    try {
      await client.execute('cont');
      return true;
    } catch (error) {
      if (!(error instanceof QmpCommandError && error.duringDump)) throw error;
      this.#tellOfWait();
      await otherDump.event;
      return false;
    } finally {
      otherDump.forget();
    }
  }

  #tellOfWait(): void {
    if (!this.#waits) this.warn('QEMU dumps the guest for another monitor: the guest runs again when that has ended');
    this.#waits = true;
  }
}

async function statusOf(client: QmpClient): Promise<string> {
  const { status } = objectOf(await client.execute('query-status'), 'query-status');
  return String(status);
}
