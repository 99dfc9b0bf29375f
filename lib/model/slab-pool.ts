/**
 * Slabs: fixed-size pieces of shared memory that chunks of guest memory travel in.
 *
 * They are SharedArrayBuffers, so that worker threads see them without a copy; `fs.read` and `fs.write` take views of
 * them. A bounded pool is the program's memory bound and its backpressure at once: when every slab is on its way, the
 * source waits for one to come back.
 */

/** One slab; `bytes` is the whole of it. */
export interface Slab {
  readonly bytes: Uint8Array<SharedArrayBuffer>;
}

/** Bytes of a slab unless asked otherwise: waking a thread for a system call costs as much as copying 1 MiB. */
export const SLAB_BYTES = 2 << 20;

/** Somebody who waits for a slab. */
interface Waiter {
  readonly owner: object | undefined;
  resolve(slab: Slab): void;
  reject(error: Error): void;
}

/** Hands out slabs and takes them back. */
export class SlabPool {
  readonly #free: Slab[] = [];
  #waiting: Waiter[] = [];
  #made = 0;
  #closed: Error | null = null;
  #onIdle: (() => void) | null = null;

  /**
   * @param limit     how many slabs may exist; unlimited by default, so that a consumer that never releases is safe
   * @param slabBytes size of each slab in bytes
   * @param allocate  makes the memory of a slab; a SharedArrayBuffer of its own by default
   */
  constructor(
    readonly limit: number = Number.POSITIVE_INFINITY,
    readonly slabBytes: number = SLAB_BYTES,
    private readonly allocate: () => Uint8Array<SharedArrayBuffer> = () =>
      new Uint8Array(new SharedArrayBuffer(slabBytes)),
  ) {}

  /**
   * Takes a slab; waits for one to be released when the pool is at its limit.
   * @param owner whoever waits, for `dismiss`
   * @throws what the pool was closed with, or the owner dismissed with, as a rejection
   */
  take(owner?: object): Slab | Promise<Slab> {
    if (this.#closed) return Promise.reject(this.#closed);
    const slab = this.#free.pop();
    if (slab) return slab;
    if (this.#made < this.limit) {
      this.#made++;
      return { bytes: this.allocate() };
    }
    return new Promise((resolve, reject) => this.#waiting.push({ owner, resolve, reject }));
  }

  /** Gives a slab back. Each taken slab may be given back once. */
  give(slab: Slab): void {
    const next = this.#waiting.shift();
    if (next) next.resolve(slab);
    else this.#free.push(slab);
    if (this.#free.length === this.#made) this.#onIdle?.();
  }

  /** Ends the waits of one owner; the pool serves others on. */
  dismiss(owner: object, error: Error): void {
    const dismissed = this.#waiting.filter((waiter) => waiter.owner === owner);
    this.#waiting = this.#waiting.filter((waiter) => waiter.owner !== owner);
    for (const { reject } of dismissed) reject(error);
  }

  /** Ends all waits, and hands out no more; slabs that are out are still taken back. Later calls do nothing. */
  close(error: Error): void {
    this.#closed ??= error;
    for (const { reject } of this.#waiting.splice(0)) reject(error);
  }

  /** Settles when every slab that was taken has been given back; for when no more are taken. */
  idle(): Promise<void> {
    return new Promise((resolve) => {
      this.#onIdle = resolve;
      if (this.#free.length === this.#made) resolve();
    });
  }
}
