/**
 * Ctrl-C and its kin: what is under way is aborted, cleans up after itself, and the process ends as a signal would
 * have ended it.
 */

import { constants } from 'node:os';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** How long cleaning up may take before the process ends regardless, in milliseconds. */
const PATIENCE = 3000;

/** Watches for signals until `stop` is called. */
export class Interrupt {
  readonly #controller = new AbortController();
  readonly #listeners = SIGNALS.map((name) => [name, () => this.#on(name)] as const);
  #received: (typeof SIGNALS)[number] | null = null;

  constructor() {
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
    // A thread that is blocked in read(2) or write(2) cannot be called back, and would keep process.exit() waiting.
    setTimeout(() => this.#die(), PATIENCE).unref();
  }

  #die(): void {
    this.stop();
    process.kill(process.pid, this.#received ?? 'SIGINT');
  }
}
