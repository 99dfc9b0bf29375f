/**
 * What lets a machine run on when we are killed with SIGKILL while we keep it paused.
 *
 * A shell that outlives us holds two things: the end of a pipe, which tells it that we are gone, and our connection to
 * the monitor. QEMU serves one client a socket, so it could not be relied on to get a connection of its own; and it
 * needs none: the connection is ready for commands, and stays open as long as the shell has it.
 */

import { type ChildProcess, spawn, type SpawnOptions } from 'node:child_process';
import type { Socket } from 'node:net';

/**
 * When nothing but an end is to be read from the pipe, says `cont`. More than once: QEMU refuses it while it still
 * writes a dump for us, and our last command may have been cut in two. A machine that runs already is not disturbed.
 * The connection is kept until the last one must have been answered: QEMU would give the answer to its next client.
 */
const SCRIPT = `read -r _ || for wait in 0.1 0.2 0.5 1; do echo '{"execute": "cont"}' >&3; sleep $wait; done`;

/** Watches over a pause. */
export class Watchdog {
  private constructor(private readonly shell: ChildProcess) {
    // Where there is no shell, there is no watchdog.
    shell.on('error', () => {});
    shell.stdin?.on('error', () => {});
    // It must not keep us from ending.
    shell.unref();
    (shell.stdin as Socket | null)?.unref();
  }

  /** @param connection the descriptor of a connection to the monitor that is ready for commands */
  static start(connection: number): Watchdog {
    // In a session of its own: Ctrl-C is not for it.
    const options = { stdio: ['pipe', 'ignore', 'ignore', connection], detached: true } satisfies SpawnOptions;
    return new Watchdog(spawn('sh', ['-c', SCRIPT], options));
  }

  /** Ends it: the machine runs, or is to stay as it is. */
  stop(): void {
    this.shell.kill('SIGKILL');
  }
}
