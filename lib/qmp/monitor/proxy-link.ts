/**
 * The one connection to QEMU, shared: QEMU serves one client a socket, so what clients ask and what our own dumps ask
 * goes over the same. Commands of both may be under way together; answers find their way by ids of the connection's.
 *
 * Our dumps have QEMU dump, too (a few pages, to learn what the machine is), and QEMU tells the end of each. Clients
 * must not take that for the end of theirs, so it is kept from them; all else that happens they hear of.
 */

import type { VmcoreError } from '../../model/errors.js';
import {
  capabilitiesOf,
  type ExecuteOptions,
  type QmpArguments,
  type QmpClient,
  QmpCommandError,
  type QmpConnection,
  type QmpEvent,
  type QmpValue,
} from '../protocol/client.js';
import { MAX_TOKEN_BYTES } from '../protocol/json-lexer.js';
import type { Json, JsonObject } from '../protocol/json-parser.js';
import { type Reply, requestText } from '../protocol/json-text.js';
import { QmpError } from '../protocol/qmp-error.js';

/** A command of a client, on its way to QEMU. */
export interface ForwardedCommand {
  readonly command: string;
  readonly args: JsonObject;
  /** to be carried out of band */
  readonly oob?: boolean | undefined;
  /** descriptors that go along; they stay the caller's */
  readonly fds?: readonly number[] | undefined;
}

const DUMP = 'dump-guest-memory';
const DUMP_END = 'DUMP_COMPLETED';

/** A connection to QEMU that several share. */
export class SharedQemu {
  /** ends of dumps that came while a dump of ours was asked for; null while none is */
  #held: JsonObject[] | null = null;
  /** a dump of ours goes on in the background, and its end is to come */
  #detached = false;
  #passing: Promise<unknown> = Promise.resolve();
  readonly #listeners = new Set<(message: JsonObject) => void>();

  constructor(private readonly connection: QmpConnection) {
    connection.onEventMessage((message) => this.#take(message));
  }

  /** What QEMU says of its version in its greeting. */
  get version(): Reply {
    const hello = this.connection.greeting.get('QMP');
    return (hello instanceof Map && (hello as JsonObject).get('version')) || new Map();
  }

  /** What QEMU offers in its greeting. */
  get capabilities(): readonly string[] {
    return capabilitiesOf(this.connection.greeting);
  }

  /** Whether descriptors can be passed on. */
  get passesDescriptors(): boolean {
    return this.connection.passesDescriptors;
  }

  /** Settles when the connection has ended, with the reason. */
  get closed(): Promise<VmcoreError> {
    return this.connection.closed;
  }

  /** Hears of the events that concern clients. */
  onEvent(listener: (message: JsonObject) => void): void {
    this.#listeners.add(listener);
  }

  /**
   * Passes a client's command on; no value of it or of the answer is altered.
   * @returns what QEMU returns
   * @throws QmpError what QEMU refuses it with; VmcoreError when the connection ends
   */
  async forward({ command, args, oob, fds = [] }: ForwardedCommand): Promise<Json> {
    const text = (id: string) =>
      requestText({ [oob ? 'exec-oob' : 'execute']: command, arguments: args.size > 0 ? args : undefined, id });
    // QEMU's error would bear no id. Escapes can make a text longer than it was.
    if (Buffer.byteLength(text('')) > MAX_TOKEN_BYTES) throw new QmpError('JSON token size limit exceeded');
    const answer = await this.#inTurn(fds, () => this.connection.exchange(text, { fds }));
    const error = answer.get('error');
    if (!(error instanceof Map)) return answer.get('return')!;
    const refusal = error as JsonObject;
    throw new QmpError(String(refusal.get('desc')), String(refusal.get('class')));
  }

  /** The connection as our own dumps use it. Closing it leaves the connection to the others. */
  client(): OwnClient {
    return new OwnClient(this.connection, (args, options) => this.#dump(args, options));
  }

  /** Ends the connection. */
  close(): void {
    this.connection.close();
  }

  /** QEMU keeps only the descriptors that came last until a command takes them: one such command at a time. */
  #inTurn<T>(fds: readonly number[], exchange: () => Promise<T>): Promise<T> {
    if (fds.length === 0) return exchange();
    const turn = this.#passing.then(exchange, exchange);
    this.#passing = turn.catch(() => {});
    return turn;
  }

  /** A dump of ours. QEMU tells its end before it answers, or, of a detached one, at any time. */
  async #dump(args?: QmpArguments, options?: ExecuteOptions): Promise<QmpValue> {
    const held: JsonObject[] = [];
    this.#held = held;
    try {
      const result = await this.connection.execute(DUMP, args, options);
      if (held.pop() === undefined) this.#detached = args?.['detach'] === true;
      return result;
    } catch (error) {
      // QEMU begins no dump when there is one already, of another monitor: the end is that one's.
      const isOther = error instanceof QmpCommandError && error.duringDump;
      if (!isOther) held.pop();
      throw error;
    } finally {
      this.#held = null;
      for (const message of held) this.#tell(message);
    }
  }

  #take(message: JsonObject): void {
    if (message.get('event') !== DUMP_END) this.#tell(message);
    else if (this.#held) this.#held.push(message);
    else if (this.#detached) this.#detached = false;
    else this.#tell(message);
  }

  #tell(message: JsonObject): void {
    for (const listener of this.#listeners) listener(message);
  }
}

/** What a dump of ours sees of the shared connection. It hears of all events. */
export class OwnClient implements QmpClient {
  #resumed = false;

  constructor(
    private readonly connection: QmpConnection,
    private readonly dump: (args?: QmpArguments, options?: ExecuteOptions) => Promise<QmpValue>,
  ) {}

  /** Whether it was asked here for the machine to run. */
  get resumed(): boolean {
    return this.#resumed;
  }

  get name(): string {
    return this.connection.name;
  }

  get peerPid(): number | null {
    return this.connection.peerPid;
  }

  get passesDescriptors(): boolean {
    return this.connection.passesDescriptors;
  }

  get descriptor(): number | null {
    return this.connection.descriptor;
  }

  get closed(): Promise<VmcoreError> {
    return this.connection.closed;
  }

  execute(command: string, args?: QmpArguments, options?: ExecuteOptions): Promise<QmpValue> {
    if (command === 'cont') this.#resumed = true;
    return command === DUMP ? this.dump(args, options) : this.connection.execute(command, args, options);
  }

  onEvent(listener: (event: QmpEvent) => void): () => void {
    return this.connection.onEvent(listener);
  }

  async reconnect(): Promise<QmpClient | null> {
    return (await this.connection.reconnect?.()) ?? null;
  }

  close(): void {}
}
