/**
 * The protocol: greeting, negotiation, one command after the other, ids, errors, events. What commands do is not known
 * here. A client that has agreed on it can send commands out of band: they are answered at once, whatever waits.
 *
 * Input is read as fast as commands are carried out, and answers are written as fast as they are read: a client that
 * floods, or never reads, waits for itself.
 */

import { setImmediate as breathe } from 'node:timers/promises';
import { messageOf } from '../../model/errors.js';
import { type Connection, closeAll } from '../protocol/connection.js';
import { type Json, type JsonObject, JsonStream } from '../protocol/json-parser.js';
import { jsonText, type Reply } from '../protocol/json-text.js';
import { QmpError } from '../protocol/qmp-error.js';

/** How long a client may take to read what it was sent last, in milliseconds. */
const PATIENCE = 1000;

/** Commands that are answered before others get their turn: a round of the event loop is worth some commands. */
const COMMANDS_A_TURN = 64;

/** Commands that may wait where others can overtake them: QEMU's QMP_REQ_QUEUE_LEN_MAX. Else one is read at a time. */
const QUEUE_LENGTH = 8;

/** What a monitor carries out. */
export interface Backend {
  /** what the greeting and `query-version` say */
  readonly version: Reply;
  /** what the greeting offers: `oob` */
  readonly capabilities: readonly string[];
  /** whether there is such a command */
  has(command: string): boolean;
  /**
   * @param oob whether the client wants it done out of band
   * @throws QmpError, or any error whose message is fit for the client
   */
  execute(command: string, args: JsonObject, monitor: Monitor, oob: boolean): Promise<Reply> | Reply;
}

const NO_ARGUMENTS: JsonObject = new Map();

/** The only command before negotiation. */
const NEGOTIATION = 'qmp_capabilities';

/** One client. */
export class Monitor {
  #negotiated = false;
  #oob = false;
  #received: readonly number[] = [];
  /** settles when the last command in band has been answered */
  #inBand: Promise<void> = Promise.resolve();
  /** messages in band, and out of band, whose answers are not written yet */
  readonly #waiting = { inBand: new Set<Promise<void>>(), outOfBand: new Set<Promise<void>>() };

  constructor(
    private readonly connection: Connection,
    private readonly backend: Backend,
  ) {}

  /** Serves the client until it goes. */
  async run(): Promise<void> {
    const messages: (Json | QmpError)[] = [];
    const parser = new JsonStream((message) => messages.push(message));
    await this.#send({ QMP: { version: this.backend.version, capabilities: this.backend.capabilities } });
    try {
      for (let received = await this.connection.receive(); received; received = await this.connection.receive()) {
        this.#keep(received.descriptors);
        parser.feed(received.data);
        await this.#answerAll(messages);
        await breathe();
      }
      await Promise.all([...this.#waiting.inBand, ...this.#waiting.outOfBand]);
    } finally {
      closeAll(this.#received);
      this.#received = [];
      await this.connection.finish(PATIENCE);
    }
  }

  /** The client has agreed on capabilities. @throws QmpError when it had before, or on one that is not offered */
  negotiate(capabilities: readonly string[]): void {
    if (this.#negotiated)
      throw new QmpError('Capabilities negotiation is already complete, command ignored', 'CommandNotFound');
    const missing = capabilities.find((name) => !this.backend.capabilities.includes(name));
    if (missing !== undefined) throw new QmpError(`Capability ${missing} not available`);
    this.#negotiated = true;
    this.#oob = capabilities.includes('oob');
  }

  /** The first of the descriptors that came last; the others are closed, as QEMU does. @throws QmpError */
  takeDescriptor(): number {
    const [first, ...others] = this.takeDescriptors();
    closeAll(others);
    if (first !== undefined) return first;
    throw new QmpError(
      this.connection.withoutDescriptors === 'no-koffi'
        ? 'No file descriptor can be received: the optional package koffi is missing (npm install koffi)'
        : 'No file descriptor supplied via SCM_RIGHTS',
    );
  }

  /** All descriptors that came last; whoever takes them closes them. */
  takeDescriptors(): readonly number[] {
    const received = this.#received;
    this.#received = [];
    return received;
  }

  /** Passes on the message of an event, if the client is one that is told. */
  notify(message: Reply): void {
    if (this.#negotiated) this.connection.notify(line(message));
  }

  /** Ends the connection when the client has read what it was sent. */
  finish(): Promise<void> {
    return this.connection.finish(PATIENCE);
  }

  /** Descriptors wait for the command that asks for them; new ones take the place of old ones. */
  #keep(descriptors: readonly number[]): void {
    if (descriptors.length === 0) return;
    closeAll(this.#received);
    this.#received = descriptors;
  }

  async #answerAll(messages: (Json | QmpError)[]): Promise<void> {
    for (const [i, message] of messages.entries()) {
      await this.#take(message);
      if (i % COMMANDS_A_TURN === COMMANDS_A_TURN - 1) await breathe();
    }
    messages.length = 0;
  }

  /** Has a message answered in its turn, or at once; settles when the next one may be looked at. */
  async #take(message: Json | QmpError): Promise<void> {
    const overtakes = this.#oob && message instanceof Map && message.has('exec-oob');
    const answered = overtakes ? this.#respond(message) : this.#inBand.then(() => this.#respond(message));
    if (!overtakes) this.#inBand = answered;
    const waiting = this.#waiting[overtakes ? 'outOfBand' : 'inBand'];
    waiting.add(answered);
    void answered.then(() => waiting.delete(answered));
    while (waiting.size >= (this.#oob ? QUEUE_LENGTH : 1)) await Promise.race(waiting);
  }

  async #respond(message: Json | QmpError): Promise<void> {
    await this.#send(message instanceof QmpError ? failure(message, undefined) : await this.#answer(message));
  }

  async #answer(message: Json): Promise<Reply> {
    const id = message instanceof Map ? (message.get('id') as Json | undefined) : undefined;
    try {
      const { command, args, oob } = checkRequest(message, this.#oob);
      return { return: await this.#execute(command, args, oob), id };
    } catch (error) {
      return failure(error, id);
    }
  }

  #execute(command: string, args: JsonObject, oob: boolean): Promise<Reply> | Reply {
    if (!this.#negotiated && command !== NEGOTIATION)
      throw new QmpError(`Expecting capabilities negotiation with '${NEGOTIATION}'`, 'CommandNotFound');
    if (!this.backend.has(command)) throw new QmpError(`The command ${command} has not been found`, 'CommandNotFound');
    return this.backend.execute(command, args, this, oob);
  }

  #send(message: Reply): Promise<void> | void {
    return this.connection.send(line(message));
  }
}

/** What a message asks for. @throws QmpError with QEMU's text; members are looked at in their order, as there */
function checkRequest(message: Json, oob: boolean): { command: string; args: JsonObject; oob: boolean } {
  if (!(message instanceof Map)) throw new QmpError('QMP input must be a JSON object');
  let found: string | null = null;
  for (const [name, value] of message as JsonObject) {
    if (name === 'id') continue;
    if (name === 'execute' || (name === 'exec-oob' && oob)) {
      if (typeof value !== 'string') throw new QmpError(`QMP input member '${name}' must be a string`);
      if (found) throw new QmpError(`QMP input member '${name}' clashes with '${found}'`);
      found = name;
    } else if (name !== 'arguments') throw new QmpError(`QMP input member '${name}' is unexpected`);
    else if (!(value instanceof Map)) throw new QmpError("QMP input member 'arguments' must be an object");
  }
  if (!found) throw new QmpError("QMP input lacks member 'execute'");
  const args = (message.get('arguments') as JsonObject | undefined) ?? NO_ARGUMENTS;
  return { command: message.get(found) as string, args, oob: found === 'exec-oob' };
}

function failure(error: unknown, id: Json | undefined): Reply {
  const errorClass = error instanceof QmpError ? error.errorClass : 'GenericError';
  return { id, error: { class: errorClass, desc: messageOf(error) } };
}

function line(message: Reply): string {
  return `${jsonText(message)}\r\n`;
}

/** The message of an event that happens now. */
export function eventMessage(event: string, data: Reply): Reply {
  return { timestamp: timestamp(), event, data };
}

function timestamp(): Reply {
  const microseconds = Math.floor(1000 * (performance.timeOrigin + performance.now()));
  return { seconds: Math.floor(microseconds / 1e6), microseconds: microseconds % 1e6 };
}
