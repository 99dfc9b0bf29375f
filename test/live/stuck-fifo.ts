/** A target that a dump gets stuck in, for as long as a test likes. */

import { execFileSync, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, constants as flags, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { CliResult } from '../cli/run-cli.js';

/** A FIFO that nobody reads: what is written to it gets stuck until `drain`. */
export class StuckFifo {
  readonly path: string;
  readonly #fd: number;

  /** @param folder where it is */
  constructor(folder: string) {
    this.path = join(folder, `fifo-${randomUUID()}`);
    execFileSync('mkfifo', [this.path]);
    this.#fd = openSync(this.path, flags.O_RDWR | flags.O_NONBLOCK);
  }

  /** Waits until a run has written something: from then on it is stuck. @throws Error when it ends instead */
  async begun(ended: Promise<CliResult>): Promise<void> {
    let result: CliResult | null = null;
    void ended.then((end) => {
      result = end;
    });
    for (const byte = Buffer.alloc(1); ; await sleep(10)) {
      if (result) throw new Error(`it has ended: ${JSON.stringify(result)}`);
      try {
        readSync(this.#fd, byte);
        return;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
      }
    }
  }

  /** Reads and forgets all that comes. */
  async drain(): Promise<void> {
    const script = 'exec 3< "$0"; echo open; exec cat <&3 > /dev/null';
    const reader = spawn('bash', ['-c', script, this.path], { stdio: ['ignore', 'pipe', 'ignore'] });
    await once(reader.stdout, 'data');
    closeSync(this.#fd);
  }
}
