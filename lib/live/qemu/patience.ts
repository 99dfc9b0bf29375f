/**
 * A QEMU that does not answer: it was stopped (SIGSTOP), its disk hangs, or another monitor's command keeps it. It may
 * answer yet, so it is waited for, and that is told. Whoever gives up is not kept: QEMU has a moment to answer what is
 * under way, so that all ends in order, and then that is left alone.
 */

import { VmcoreError } from '../../model/errors.js';
import type { ExecuteOptions, QmpArguments, QmpClient, QmpEvent, QmpValue } from '../../qmp/protocol/client.js';

/** After what time silence is told, in milliseconds. */
const TOLD_AFTER = 10_000;
/** How long QEMU may take for its answers when nobody wants them any more, in milliseconds. */
const GRACE = 1000;

/** Waits for what QEMU is to do, until a while after a signal. */
export class Patience {
  /** it was waited for in vain */
  #isSilent = false;

  constructor(
    /** what to call QEMU in messages */
    private readonly name: string,
    private readonly signal?: AbortSignal | undefined,
  ) {}

  /** What comes of `work`. @throws VmcoreError ABORTED when it is waited for no longer, whatever becomes of it */
  wait<T>(work: Promise<T>): Promise<T> {
    const { signal } = this;
    return new Promise((resolve, reject) => {
      let timer: NodeJS.Timeout | undefined;
      const giveUp = () => {
        this.#isSilent = true;
        reject(new VmcoreError('ABORTED', `${this.name} does not answer, and waiting for it was given up`));
      };
      const hurry = () => {
        timer = setTimeout(giveUp, this.#isSilent ? 0 : GRACE);
      };
      if (signal?.aborted) hurry();
      signal?.addEventListener('abort', hurry, { once: true });
      const stop = () => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', hurry);
      };
      work.finally(stop).then(resolve, reject);
    });
  }
}

/** A connection whose answers are waited for with a patience. */
export class PatientClient implements QmpClient {
  #told = false;

  constructor(
    private readonly client: QmpClient,
    private readonly patience: Patience,
    /** is told when QEMU does not answer, once */
    private readonly warn: (text: string) => void,
  ) {}

  get name(): string {
    return this.client.name;
  }

  get peerPid(): number | null {
    return this.client.peerPid;
  }

  get passesDescriptors(): boolean {
    return this.client.passesDescriptors;
  }

  get descriptor(): number | null {
    return this.client.descriptor;
  }

  get closed(): Promise<VmcoreError> {
    return this.client.closed;
  }

  async execute(command: string, args?: QmpArguments, options?: ExecuteOptions): Promise<QmpValue> {
    const timer = setTimeout(() => this.#tell(command), TOLD_AFTER).unref();
    try {
      return await this.patience.wait(this.client.execute(command, args, options));
    } finally {
      clearTimeout(timer);
    }
  }

  onEvent(listener: (event: QmpEvent) => void): () => void {
    return this.client.onEvent(listener);
  }

  async reconnect(): Promise<QmpClient | null> {
    return (await this.client.reconnect?.()) ?? null;
  }

  close(): void {
    this.client.close();
  }

  #tell(command: string): void {
    if (this.#told) return;
    this.#told = true;
    this.warn(
      `${this.name} has not answered ${command} for ${TOLD_AFTER / 1000} s; it is waited for (it may be stopped, or busy ` +
        'with what another monitor has asked for)',
    );
  }
}
