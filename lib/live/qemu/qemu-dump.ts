/**
 * A dump by QEMU itself, as bytes: `dump-guest-memory` into a pipe whose other end is read here. Wherever this source
 * asks QEMU for something that only its own dump tells, it is through one of these.
 *
 * QEMU is given the pipe as a descriptor (`getfd`) where the connection passes descriptors: that works whatever user
 * QEMU runs as, in a chroot and under sVirt, where it may open no path of ours. Else (TCP, or no koffi to make and
 * pass a pipe) it is given a FIFO's path.
 */

import { randomBytes } from 'node:crypto';
import { constants, openSync, readSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { closeRead } from '../../io/close-read.js';
import { errnoOf, ioError, messageOf, VmcoreError } from '../../model/errors.js';
import { libc } from '../../io/libc.js';
import type { MemoryBlock } from '../../model/physical-memory.js';
import { objectOf, QmpCommandError, type QmpClient, type QmpEvent } from '../../qmp/protocol/client.js';
import { type ByteInput, openByteInput } from '../../io/byte-input.js';
import { DumpFifo } from './dump-fifo.js';

/** fcntl(2), Linux: how many bytes a pipe holds */
const F_SETPIPE_SZ = 1031;
/** What a pipe holds at least, and the most that anybody may ask for (/proc/sys/fs/pipe-max-size). */
const SMALLEST_PIPE = 4096;
const LARGEST_PIPE = 1 << 20;
/** How often to look whether QEMU has written something, in milliseconds. */
const STEP = 1;

/** What QEMU is to dump. */
export interface QemuDumpRequest {
  /** only this range of guest physical memory; all of it by default */
  readonly range?: MemoryBlock | undefined;
  /**
   * Read no more than what is asked for, and have QEMU write no more than a page ahead: what QEMU reads of a memory
   * file that is sparse is allocated. By default as much is under way as helps the speed.
   */
  readonly sparing?: boolean | undefined;
  /** QEMU dumps in a thread and stays responsive (QEMU 2.6 and later) */
  readonly detach?: boolean | undefined;
}

/** A dump under way. Whoever starts one closes it, and waits for `finished`: QEMU has one dump at a time. */
export class QemuDump implements ByteInput {
  readonly #input: ByteInput;
  #failure: VmcoreError | null = null;
  #closed = false;

  /** Settles, and never rejects, when QEMU is done with the dump, however that went. */
  readonly finished: Promise<void>;

  private constructor(
    client: QmpClient,
    private readonly pipe: DumpPipe,
    request: QemuDumpRequest,
  ) {
    let answered = false;
    this.#input = request.sparing
      ? new PolledInput(pipe.fd, () => answered)
      : openByteInput({ fd: pipe.fd, owned: true }, `the dump by ${client.name}`);
    this.finished = run(client, pipe.protocol, request)
      .catch((error: unknown) => this.#fail(error))
      .then(() => {
        answered = true;
        return pipe.forget();
      });
  }

  /** Has QEMU begin a dump (ELF, without paging). @throws VmcoreError when there is no way to hand it a pipe */
  static async start(client: QmpClient, request: QemuDumpRequest = {}): Promise<QemuDump> {
    const pipe = await makePipe(client);
    libc()?.fcntl(pipe.fd, F_SETPIPE_SZ, request.sparing ? SMALLEST_PIPE : LARGEST_PIPE);
    return new QemuDump(client, pipe, request);
  }

  /** @throws VmcoreError what QEMU says when it fails; READ; ABORTED when it was closed */
  async readSome(into: Uint8Array): Promise<number> {
    try {
      const count = await this.#input.readSome(into);
      if (count === 0) {
        // QEMU closes its end before it answers.
        await this.finished;
        if (this.#failure) throw this.#failure;
      }
      return count;
    } catch (error) {
      throw this.#failure ?? error;
    }
  }

  /** Stops reading: what QEMU still writes fails with `Broken pipe`, and it goes on as if nothing had been asked. */
  close(): void {
    this.#closed = true;
    this.#stopReading();
  }

  #fail(error: unknown): void {
    if (this.#closed) return;
    this.#failure = error instanceof VmcoreError ? error : new VmcoreError('READ', messageOf(error));
    this.#stopReading();
  }

  #stopReading(): void {
    this.pipe.unname();
    this.#input.close();
  }
}

/** Settles when QEMU is done. @throws VmcoreError when it fails */
async function run(client: QmpClient, protocol: string, request: QemuDumpRequest): Promise<void> {
  const { range, detach } = request;
  const args = {
    paging: false,
    protocol,
    ...(range ? { begin: range.base, length: range.length } : {}),
  };
  if (detach && (await runDetached(client, args))) return;
  await client.execute('dump-guest-memory', args);
}

/** @returns false when QEMU cannot detach a dump */
async function runDetached(client: QmpClient, args: Readonly<Record<string, unknown>>): Promise<boolean> {
  const completion = dumpCompletion(client);
  try {
    await client.execute('dump-guest-memory', { ...args, detach: true });
    const { error } = await completion.event;
    if (error !== undefined) throw new QmpCommandError('dump-guest-memory', 'GenericError', error);
    return true;
  } catch (error) {
    if (error instanceof QmpCommandError && /'detach'/.test(error.desc)) return false;
    throw error;
  } finally {
    completion.forget();
  }
}

/** Waits for the end of the dump that QEMU makes; rejects when the connection ends before. */
export function dumpCompletion(client: QmpClient): { event: Promise<{ error?: string }>; forget(): void } {
  let forget = () => {};
  const event = new Promise<{ error?: string }>((resolve) => {
    forget = client.onEvent(({ event, data }: QmpEvent) => {
      if (event === 'DUMP_COMPLETED') resolve(failureIn(data));
    });
  });
  const lost = client.closed.then((error) => Promise.reject(error));
  lost.catch(() => {});
  const either = Promise.race([event, lost]);
  either.catch(() => {});
  return { event: either, forget };
}

function failureIn(data: QmpEvent['data']): { error?: string } {
  const { status } = objectOf(data['result'] ?? {}, 'DUMP_COMPLETED');
  if (status === 'completed') return {};
  return { error: typeof data['error'] === 'string' ? data['error'] : 'the dump failed' };
}

/** The end of a pipe that is read from, and how QEMU finds the other one. */
interface DumpPipe {
  readonly fd: number;
  readonly protocol: string;
  /** before the descriptor is closed: nobody can find the other end any more */
  unname(): void;
  /** QEMU is done: removes what the pipe needed besides its descriptor */
  forget(): Promise<void>;
}

async function makePipe(client: QmpClient): Promise<DumpPipe> {
  return (client.passesDescriptors && (await passPipe(client))) || makeFifo();
}

const WORD = 4;

/** Null when QEMU does not take the descriptor. */
async function passPipe(client: QmpClient): Promise<DumpPipe | null> {
  const c = libc();
  const ends = Buffer.alloc(2 * WORD);
  if (!c || c.pipe(ends, CLOSE_ON_EXEC) !== 0) return null;
  const [readEnd, writeEnd] = [ends.readInt32LE(), ends.readInt32LE(WORD)];
  const name = `vmcore-${randomBytes(8).toString('hex')}`;
  try {
    await client.execute('getfd', { fdname: name }, { fds: [writeEnd] });
  } catch {
    closeRead(readEnd);
    return null;
  } finally {
    closeRead(writeEnd);
  }
  // A dump uses the name up, but not one that QEMU refuses before it looks.
  const forget = () => client.execute('closefd', { fdname: name }).then(ignore, ignore);
  return { fd: withoutBlocking(readEnd), protocol: `fd:${name}`, unname: () => {}, forget };
}

/** O_CLOEXEC, which Node does not name: QEMU's end must not live on in a child of ours. */
const CLOSE_ON_EXEC = 0o2000000;

const ignore = () => {};

/** The same pipe, to be read without waiting. */
function withoutBlocking(fd: number): number {
  try {
    return openSync(`/proc/self/fd/${fd}`, constants.O_RDONLY | constants.O_NONBLOCK);
  } finally {
    closeRead(fd);
  }
}

async function makeFifo(): Promise<DumpPipe> {
  const fifo = await DumpFifo.make();
  const unname = () => fifo.unname();
  return { fd: fifo.fd, protocol: `file:${fifo.path}`, unname, forget: async () => unname() };
}

/** A pipe that is read piece by piece, and never further than asked. */
class PolledInput implements ByteInput {
  #fd: number | null;

  /** @param isOver whether nobody will write any more: until then a FIFO may only have no writer yet */
  constructor(
    fd: number,
    private readonly isOver: () => boolean,
  ) {
    this.#fd = fd;
  }

  async readSome(into: Uint8Array): Promise<number> {
    for (;;) {
      const over = this.isOver();
      const count = this.#tryRead(into);
      if (count > 0 || over) return count;
      await sleep(STEP);
    }
  }

  #tryRead(into: Uint8Array): number {
    if (this.#fd === null) throw new VmcoreError('ABORTED', 'reading the dump was stopped');
    try {
      return readSync(this.#fd, into, 0, into.length, null);
    } catch (error) {
      if (errnoOf(error) === 'EAGAIN') return 0;
      throw ioError('READ', 'read the dump by QEMU', error);
    }
  }

  close(): void {
    if (this.#fd !== null) closeRead(this.#fd);
    this.#fd = null;
  }
}
