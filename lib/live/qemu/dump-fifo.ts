/**
 * A FIFO that QEMU is to dump into, where it cannot be handed a pipe.
 *
 * QEMU opens it in its main loop, and open(2) waits there until somebody reads: with nobody there QEMU would do nothing
 * any more, for anybody. So the FIFO loses its name before it loses its reader: QEMU then finds nothing to open. For a
 * process that is killed with SIGKILL, a shell sees to that.
 */

import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { chmodSync, constants, mkdtempSync, openSync, rmSync } from 'node:fs';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { ioError } from '../../model/errors.js';

/** QEMU may run as another user: it may write to whom it knows by name, and nobody else can learn the name. */
const ENTER_ONLY = 0o711;
const WRITE_ONLY = '622';

/** When we are gone: reads (it may write, too, and so does not wait), takes the name away, and lets go. */
const GUARD = 'read -r _; exec 3<> "$0"; rm -rf "$1"';

/** A FIFO, open for reading. */
export class DumpFifo {
  private constructor(
    private readonly folder: string,
    readonly path: string,
    /** to be read without waiting, and closed after `unname` */
    readonly fd: number,
    private readonly guard: ChildProcess,
  ) {}

  /** @throws VmcoreError READ */
  static async make(): Promise<DumpFifo> {
    const folder = mkdtempSync(join(tmpdir(), 'vmcore-fifo-'));
    try {
      chmodSync(folder, ENTER_ONLY);
      const path = join(folder, randomBytes(16).toString('hex'));
      await promisify(execFile)('mkfifo', ['-m', WRITE_ONLY, path]);
      // Opened before it has a writer: open(2) would wait for one, and QEMU's waits for us.
      const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
      return new DumpFifo(folder, path, fd, startGuard(path, folder));
    } catch (error) {
      rmSync(folder, { recursive: true, force: true });
      throw ioError('READ', `make a FIFO in ${folder} for QEMU to dump into`, error);
    }
  }

  /** Takes the name away: who has not opened it cannot any more. Later calls do nothing. */
  unname(): void {
    rmSync(this.folder, { recursive: true, force: true });
    this.guard.kill('SIGKILL');
  }
}

function startGuard(path: string, folder: string): ChildProcess {
  const guard = spawn('sh', ['-c', GUARD, path, folder], { stdio: ['pipe', 'ignore', 'ignore'], detached: true });
  // Where there is no shell, there is no guard.
  guard.on('error', () => {});
  guard.stdin.on('error', () => {});
  // It must not keep us from ending.
  guard.unref();
  (guard.stdin as Socket).unref();
  return guard;
}
