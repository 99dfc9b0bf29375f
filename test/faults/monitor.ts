/** `vmcore qmp` as a process, and a client that has it dump and cancels that. */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, rmSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Format } from '../../lib/request.js';
import { QmpClient, QmpError } from '../guests/qemu.js';
import { CLI } from '../tools.js';

/** How long a monitor, or a dump that nobody cancels, may take, in seconds; and how often to look, in milliseconds. */
const PATIENCE = 60;
const STEP = 10;

/** How a dump of a monitor ended. */
export interface Ended {
  /** QEMU's DumpStatus */
  readonly status: string;
  /** between `dump-cancel` and the end */
  readonly seconds: number;
}

interface Completed {
  readonly event: string;
  readonly data: { readonly result: { readonly status: string } };
}

interface Progress {
  readonly status: string;
  readonly completed: number;
  readonly total: number;
}

/** A monitor, and its only client. */
export class Monitor {
  private constructor(
    private readonly child: ChildProcess,
    private readonly client: QmpClient,
  ) {}

  /**
   * @param source words of the command line
   * @param socket where it listens
   */
  static async start(source: readonly string[], socket: string): Promise<Monitor> {
    rmSync(socket, { force: true });
    const env = { ...process.env };
    delete env['NODE_OPTIONS'];
    const words = ['qmp', ...source, '--listen', `unix:${socket}`, '--extensions'];
    const child = spawn(process.execPath, [CLI, ...words], { env, stdio: 'ignore' });
    for (let waited = 0; !existsSync(socket) && child.exitCode === null; waited += STEP) {
      if (waited > 1000 * PATIENCE) break;
      await sleep(STEP);
    }
    try {
      return new Monitor(child, await QmpClient.connect(socket));
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
  }

  get pid(): number {
    return this.child.pid!;
  }

  /**
   * Has it dump, and cancels that when it has come so far.
   * @param share of the guest's memory; null not to cancel
   * @param limit seconds that the dump may take to end
   * @returns null when it does not end
   */
  async dump(file: string, format: Format, share: number | null, limit = PATIENCE): Promise<Ended | null> {
    const completed = this.#completion();
    const words = { paging: false, protocol: `file:${file}`, format, detach: true };
    await this.client.execute('dump-guest-memory', words);
    if (share !== null) await this.#cancelAt(share);
    const started = performance.now();
    const seconds = () => (performance.now() - started) / 1000;
    const overdue = sleep(1000 * limit, null, { ref: false });
    const event = await Promise.race([completed, overdue]);
    return event && { status: event.data.result.status, seconds: seconds() };
  }

  /** Ends it. @returns how long that took, in seconds; null when it did not */
  async stop(): Promise<void> {
    this.client.close();
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const gone = once(this.child, 'exit');
    this.child.kill('SIGTERM');
    await Promise.race([gone, sleep(5000, null, { ref: false })]);
    this.child.kill('SIGKILL');
    await gone;
  }

  #completion(): Promise<Completed> {
    return new Promise((resolve) => {
      const take = (event: Completed) => {
        if (event.event !== 'DUMP_COMPLETED') return;
        this.client.off('event', take);
        resolve(event);
      };
      this.client.on('event', take);
    });
  }

  async #cancelAt(share: number): Promise<void> {
    for (;;) {
      const { status, completed, total } = await this.client.execute<Progress>('query-dump');
      if (status !== 'active') return;
      if (completed >= share * total) break;
    }
    try {
      await this.client.execute('dump-cancel');
    } catch (error) {
      // It may have ended right then.
      if (!(error instanceof QmpError)) throw error;
    }
  }
}
