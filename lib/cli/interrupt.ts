/**
 * Ctrl-C and its kin: what is under way is aborted, cleans up after itself, and the process ends as a signal would
 * have ended it.
 */

import { constants } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { VmcoreError } from '../model/errors.js';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** How long cleaning up may take before the process ends regardless, in milliseconds. */
const PATIENCE = 3000;

/** How long a file may take to be closed when all else is done, and how often to look, in milliseconds. */
const GRACE = 1000;
const STEP = 10;

/** Whether a thread of Node's is in a system call. */
function threadBusy(): boolean {
  return process.getActiveResourcesInfo().some((resource) => resource.startsWith('FSReq'));
}

/** Watches for signals until `stop` is called. */
export class Interrupt {
  readonly #controller = new AbortController();
  readonly #listeners = SIGNALS.map((name) => [name, () => this.#on(name)] as const);
  readonly #interruption: Promise<never>;
  #received: (typeof SIGNALS)[number] | null = null;

  constructor() {
    this.#interruption = new Promise((_, reject) => {
      this.signal.addEventListener('abort', () => reject(new VmcoreError('ABORTED', 'interrupted')));
    });
    this.#interruption.catch(() => {});
    for (const [name, listener] of this.#listeners) process.on(name, listener);
  }

  /** Aborted by the first signal. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** 128 + the signal's number, as shells have it; null when none came. */
  get exitCode(): number | null {
    return this.#received && 128 + constants.signals[this.#received];
  }

  /** Waits for `work`, but no longer than until a signal comes: then it rejects, whatever becomes of `work`. */
  race<T>(work: Promise<T>): Promise<T> {
    return Promise.race([work, this.#interruption]);
  }

  /** Ends the process as the signal asked; what is still open, a silent stdin for one, does not keep it. */
  async exit(): Promise<void> {
    for (let waited = 0; waited < GRACE && threadBusy(); waited += STEP) await sleep(STEP);
    if (threadBusy()) this.#die();
    else process.exit(this.exitCode ?? 0);
  }

  /** Stops watching: from here on a signal ends the process. */
  stop(): void {
    for (const [name, listener] of this.#listeners) process.off(name, listener);
  }

  #on(name: (typeof SIGNALS)[number]): void {
    if (this.#received) {
      this.#die();
      return;
    }
    this.#received = name;
    this.#controller.abort();
    setTimeout(() => this.#die(), PATIENCE).unref();
  }

  /** A thread that is blocked in open(2), read(2) or write(2) would keep process.exit() waiting; this it cannot. */
  #die(): void {
    this.stop();
    process.kill(process.pid, this.#received ?? 'SIGINT');
  }
}
