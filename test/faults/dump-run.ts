/** Runs the command line once, and says how that ended. */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { shellStatus } from '../cli/run-cli.js';
import { CLI } from '../tools.js';
import type { OpenSource } from './sources.js';
import type { OpenTarget } from './targets.js';

/**
 * What makes runs alike: the same names for temporary files, so that strace can be told of them; and one thread of
 * Node's for system calls, so that the how-many-th call is the same one in each run.
 */
const ALIKE = { flags: ['--random-seed=1'], env: { UV_THREADPOOL_SIZE: '1' } } as const;

const AS_USERS_DO = { flags: [], env: {} } as const;

/** How often to look, in milliseconds. */
const STEP = 50;

/** How a run ended. */
export interface Ending {
  /** as a shell has it; null when it had to be ended */
  readonly code: number | null;
  readonly stderr: string;
}

/** A run that is under way. */
export class DumpRun {
  readonly #child: ChildProcess;
  readonly #ended: Promise<number>;
  #stderr = '';
  #hasEnded = false;

  /**
   * @param tracer  the words of strace, or none
   * @param options words of `vmcore dump` beyond source and target
   */
  constructor(tracer: readonly string[], source: OpenSource, target: OpenTarget, options: readonly string[]) {
    const { flags, env: more } = tracer.length > 0 ? ALIKE : AS_USERS_DO;
    const words = [...tracer, process.execPath, ...flags, CLI, 'dump', ...source.words, ...target.words, ...options];
    const env: NodeJS.ProcessEnv = { ...process.env, ...more };
    delete env['NODE_OPTIONS'];
    this.#child = spawn(words[0]!, words.slice(1), {
      env,
      stdio: [source.stdin, target.stdout, 'pipe', target.passed],
    });
    this.#child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr += text;
    });
    this.#ended = once(this.#child, 'exit').then(([code, signal]) => {
      this.#hasEnded = true;
      return shellStatus(code as number | null, signal as NodeJS.Signals | null);
    });
    source.started();
    target.started();
  }

  get hasEnded(): boolean {
    return this.#hasEnded;
  }

  get stderr(): string {
    return this.#stderr;
  }

  get pid(): number {
    return this.#child.pid!;
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Settles when `condition` holds or the run has ended. */
  async until(condition: () => boolean): Promise<void> {
    while (!this.#hasEnded && !condition()) await sleep(STEP);
  }

  /**
   * Waits for the end.
   * @param isOverdue whether it should have ended by now: then it is ended
   */
  async ending(isOverdue: () => boolean): Promise<Ending> {
    await this.until(isOverdue);
    const hung = !this.#hasEnded;
    this.signal('SIGKILL');
    const code = await this.#ended;
    return { code: hung ? null : code, stderr: this.#stderr };
  }
}
