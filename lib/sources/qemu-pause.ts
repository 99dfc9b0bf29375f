/**
 * A machine that is kept still while it is read, and runs on afterwards if it ran before. Whoever begins a pause ends
 * it, whatever happens in between; for a process that is killed with SIGKILL, a watchdog does.
 */

import { messageOf, VmcoreError } from '../errors.js';
import { objectOf, type QmpClient, QmpCommandError } from '../qmp/client.js';
import { disturbanceOf } from './qemu-disturbance.js';
import { dumpCompletion } from './qemu-dump.js';
import { Watchdog } from './qemu-watchdog.js';

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
   * @param warn is told what a user should know of the pause's end
   * @throws VmcoreError
   */
  static async begin(client: QmpClient, warn: (text: string) => void): Promise<Pause> {
    const status = await statusOf(client);
    const watchdog =
      STOPPABLE.includes(status) && client.descriptor !== null ? Watchdog.start(client.descriptor) : null;
    const pause = new Pause(client, status, watchdog, warn);
    try {
      if (pause.#stops) await client.execute('stop');
      return pause;
    } catch (error) {
      pause.#forget();
      watchdog?.stop();
      throw error;
    }
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
    } catch (error) {
      throw new VmcoreError('READ', `the guest could not be resumed: ${messageOf(error)}`, { cause: error });
    } finally {
      this.#seconds = this.seconds;
      this.watchdog?.stop();
    }
  }

  /** Has the machine run if it still is as we left it. @returns the run state that it is in then */
  async #resume(): Promise<string> {
    for (;;) {
      const status = await statusOf(this.client);
      if (!RESUMABLE.includes(status)) return this.#leave(status);
      // A machine that slept does so no more after a reset.
      if (await this.#continue()) return status === RESET ? RUNNING : this.statusBefore;
    }
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
  async #continue(): Promise<boolean> {
    // Heard of from before QEMU refuses: the dump may end right then.
    const otherDump = dumpCompletion(this.client);
    try {
      await this.client.execute('cont');
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
