/**
 * A QEMU that is none: answers commands as the test says, and dumps the built-in guest as QEMU would, into the FIFO that
 * it is told. For what real ones do not do: to have no gpa2hva, to name another machine's file, to fail in the middle.
 */

import { closeSync, openSync } from 'node:fs';
import { setImmediate as turn } from 'node:timers/promises';
import { dump } from '../../lib/dump.js';
import { VmcoreError } from '../../lib/model/errors.js';
import type { Guest } from '../../lib/model/guest.js';
import {
  type QmpArguments,
  QmpCommandError,
  type QmpClient,
  type QmpEvent,
  type QmpValue,
} from '../../lib/qmp/protocol/client.js';
import { demoGuest } from '../../lib/sources/demo/demo.js';

/** What a command does instead; undefined leaves it to the fake. */
type Answer = (args: QmpArguments) => QmpValue | undefined | Promise<QmpValue | undefined>;

/** A connection to it. */
export class FakeQemu implements QmpClient {
  readonly name = 'QEMU at fake';
  readonly passesDescriptors = false;
  readonly descriptor = null;
  readonly guest: Guest = demoGuest();
  readonly executed: string[] = [];
  readonly closed: Promise<VmcoreError>;
  status = 'running';
  peerPid: number | null = process.pid;
  #end: (error: VmcoreError) => void = () => {};
  readonly #listeners = new Set<(event: QmpEvent) => void>();

  constructor(private readonly answers: Readonly<Record<string, Answer>> = {}) {
    this.closed = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  async execute(command: string, args: QmpArguments = {}): Promise<QmpValue> {
    this.executed.push(command);
    await turn();
    const name = command === 'human-monitor-command' ? String(args['command-line']).split(' ')[0]! : command;
    const answer = await this.answers[name]?.(args);
    return answer === undefined ? this.#execute(command, args) : answer;
  }

  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  emit(event: string, data: QmpEvent['data'] = {}): void {
    for (const listener of [...this.#listeners]) listener({ event, data });
  }

  close(): void {
    this.#end(new VmcoreError('ABORTED', 'closed'));
  }

  async #execute(command: string, args: QmpArguments): Promise<QmpValue> {
    switch (command) {
      case 'query-status':
        return { status: this.status, running: this.status === 'running' };
      case 'stop':
      case 'cont':
        this.status = command === 'stop' ? 'paused' : 'running';
        return {};
      case 'human-monitor-command':
        return `unknown command: '${String(args['command-line'])}'\r\n`;
      case 'query-memdev':
        return [];
      case 'dump-guest-memory':
        return this.#dump(args);
      default:
        throw refusal(command, `The command ${command} has not been found`, 'CommandNotFound');
    }
  }

  /** What QEMU's dump of the machine looks like; whoever reads it may go away. */
  async #dump(args: QmpArguments): Promise<QmpValue> {
    const { protocol, begin, length, detach } = args as {
      protocol: string;
      begin?: number;
      length?: number;
      detach?: boolean;
    };
    const range = begin === undefined ? undefined : { base: begin, length: length! };
    const fd = openSync(protocol.replace(/^file:/, ''), 'w');
    const finished = dump(this.guest, { range }, { fd }).finished.then(
      () => null,
      (error: Error) => error.message,
    );
    void finished.then((error) => {
      closeSync(fd);
      const data = {
        result: { status: error === null ? 'completed' : 'failed' },
        ...(error === null ? {} : { error }),
      };
      this.emit('DUMP_COMPLETED', data);
    });
    if (detach) return {};
    const error = await finished;
    if (error !== null) throw refusal('dump-guest-memory', error);
    return {};
  }
}

/** What QEMU says when it refuses. */
export function refusal(command: string, desc: string, errorClass = 'GenericError'): QmpCommandError {
  return new QmpCommandError(command, errorClass, desc);
}
