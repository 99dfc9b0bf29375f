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
 * When nothing but an end is to be read from the pipe, says `cont` as long as QEMU answers that the machine is as we left
 * it, a few times at most, and once more for each time that another monitor's dump is in the way. A machine that runs
 * already, or was migrated away, is left alone.
 *
 * 0xff has QEMU forget a command of ours that was cut in two. Answers may be on one line or on many (`pretty=on`); events
 * have states of other things in them. The connection does not block, so where nothing is to be read the shell waits (one
 * of busybox does so by itself), and an end of line, which means nothing to QEMU, ends a shell whose QEMU is gone; a line
 * may come in parts. Every
 * `query-status` is answered before the shell ends: else QEMU would give the answer to its next client.
 */
const SCRIPT = `
read -r _ && exit
part= message=
say() { echo "{\\"execute\\": \\"$1\\"}" >&3; }
set -- 0.1 0.2 0.5 1
printf '\\377\\n' >&3
say query-status
while :; do
  if ! IFS= read -r line <&3; then part=$part$line; sleep 0.02; echo >&3; continue; fi
  line=$part$line part=
  message=$message$line
  case $line in '{"'* | '}'*) ;; *) continue ;; esac
  case $message in
    *'"event"'*) ;;
    *'dump in process'*) set -- "$@" 1 ;;
    *'"running":'*'"paused"'* | *'"paused"'*'"running":'* | *'"running":'*'"prelaunch"'* | *'"prelaunch"'*'"running":'*)
      say cont; sleep "$1"; shift
      [ $# -gt 0 ] || exit
      say query-status ;;
    *'"running":'*) exit ;;
  esac
  message=
done`;

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

  /**
   * @param connection the descriptor of a connection to the monitor that is ready for commands
   * @returns null where no process can be made
   */
  static start(connection: number): Watchdog | null {
    // In a session of its own: Ctrl-C is not for it.
    const options = { stdio: ['pipe', 'ignore', 'ignore', connection], detached: true } satisfies SpawnOptions;
    try {
      return new Watchdog(spawn('sh', ['-c', SCRIPT], options));
    } catch {
      return null;
    }
  }

  /** Ends it: the machine runs, or is to stay as it is. */
  stop(): void {
    this.shell.kill('SIGKILL');
  }

  /** Has it do now what it would do when we are gone. The connection must not be ours any more: who reads it has the answers. */
  act(): void {
    this.shell.stdin?.end();
  }
}
