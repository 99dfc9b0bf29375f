/**
 * A scope owns what a piece of work acquires, and lets go of it when the work has ended, however it has.
 *
 * What was acquired last goes first. Each is let go of once, and one that fails to go does not keep the others.
 */

/** What lets go of something. */
export type Disposal = () => Promise<void> | void;

/** Owns resources until it is closed. */
export class Scope {
  readonly #disposals: Disposal[] = [];
  #closing: Promise<void> | null = null;

  /** Has something let go of when the scope is closed. */
  defer(dispose: Disposal): void {
    this.#disposals.push(dispose);
  }

  /**
   * Lets go of everything, and settles when it is gone. Later calls wait for the same.
   * @throws the first of what went wrong
   */
  close(): Promise<void> {
    this.#closing ??= this.#dispose();
    return this.#closing;
  }

  async #dispose(): Promise<void> {
    const failures: unknown[] = [];
    for (let dispose = this.#disposals.pop(); dispose; dispose = this.#disposals.pop()) {
      try {
        await dispose();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw failures[0];
  }
}
