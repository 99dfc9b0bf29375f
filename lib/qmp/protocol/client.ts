/**
 * A client of QEMU's monitor (docs/interop/qmp-spec): commands out, answers and events in.
 *
 * What reads a live machine takes a `QmpClient` and never a path, so that it can work over a connection that somebody
 * else made: QEMU serves one client a socket, and a proxy that sits between shares its own.
 *
 * Messages are read by the parser that serves our own monitor: QEMU may be set to spread a message over many lines
 * (`-mon pretty=on`), and whoever listens at the other end must not cost unbounded memory. It bounds the bytes, the
 * tokens and the nesting of a message.
 */

import { randomBytes } from 'node:crypto';
import { systemErrorText, VmcoreError } from '../../model/errors.js';
import { canSendDescriptors, peerPid, sendWithDescriptors, socketDescriptor } from './client-socket.js';
import { type Json, type JsonObject, JsonStream } from './json-parser.js';
import { MonitorSocket } from './monitor-socket.js';
import { QmpError } from './qmp-error.js';
import { checkSocketPath } from './socket-path.js';

/** A value that QEMU sends: integers that a number cannot hold exactly are bigints. */
export type QmpValue =
  null | boolean | number | bigint | string | readonly QmpValue[] | { readonly [name: string]: QmpValue };

/** Arguments of a command. Members that are undefined are left out. */
export type QmpArguments = Readonly<Record<string, unknown>>;

/** What happened in QEMU, unasked: `STOP`, `RESUME`, `DUMP_COMPLETED`. */
export interface QmpEvent {
  readonly event: string;
  /** what it says of itself; empty when it says nothing */
  readonly data: { readonly [name: string]: QmpValue };
}

/** Options of a command. */
export interface ExecuteOptions {
  /** descriptors that go with the command (`getfd`, `add-fd`); they stay the caller's, who may close them afterwards */
  readonly fds?: readonly number[] | undefined;
}

/** A connection to a monitor that is ready for commands. Many commands may be under way at a time. */
export interface QmpClient {
  /** what to call it in messages: `QEMU at /run/guest.qmp` */
  readonly name: string;
  /**
   * The process that made the socket, as the system tells it (SO_PEERCRED); null when it cannot tell. Not always QEMU:
   * a parent may have made the socket and handed it over, as libvirt does.
   */
  readonly peerPid: number | null;
  /** whether `execute` can pass descriptors */
  readonly passesDescriptors: boolean;
  /** the connection's own descriptor, for a process that is to outlive this one; null when there is none */
  readonly descriptor: number | null;
  /** settles when the connection has ended, with the reason */
  readonly closed: Promise<VmcoreError>;
  /**
   * Runs a command.
   * @returns what QEMU returns
   * @throws QmpCommandError what QEMU answers with when it refuses; VmcoreError READ when the connection ends
   */
  execute(command: string, args?: QmpArguments, options?: ExecuteOptions): Promise<QmpValue>;
  /** Hears of events until the function that is returned is called. */
  onEvent(listener: (event: QmpEvent) => void): () => void;
  /**
   * Another connection to the same monitor, for when this one has ended; absent or null where there is none to be had.
   * @throws VmcoreError
   */
  reconnect?(): Promise<QmpClient | null>;
  /** Ends the connection; commands that are under way fail. */
  close(): void;
}

/** A client that also hands on what others ask and QEMU answers, as it is: no number and no text is altered. */
export interface QmpConnection extends QmpClient {
  /** what QEMU greeted with: its version and capabilities */
  readonly greeting: JsonObject;
  /**
   * Sends a request that somebody else has made, and gives the answer, be it a result or an error.
   * @param requestText the request as JSON, with the id that it is given here in the place of its own
   * @throws VmcoreError READ when the connection ends; UNSUPPORTED when descriptors cannot be passed
   */
  exchange(requestText: (id: string) => string, options?: ExecuteOptions): Promise<JsonObject>;
  /** Hears of whole messages of events until the function that is returned is called. */
  onEventMessage(listener: (message: JsonObject) => void): () => void;
}

/** What QEMU says when it refuses a command. */
export class QmpCommandError extends VmcoreError {
  /**
   * @param command    what was refused
   * @param errorClass QEMU's `QapiErrorClass`: `GenericError`, `CommandNotFound`
   * @param desc       QEMU's words, on one line
   */
  constructor(
    readonly command: string,
    readonly errorClass: string,
    readonly desc: string,
  ) {
    super(errorClass === 'CommandNotFound' ? 'UNSUPPORTED' : 'READ', `QEMU refuses ${command}: ${desc}`);
  }

  /** Whether QEMU refuses because it dumps, for another monitor as well as for this one. */
  get duringDump(): boolean {
    return this.desc.includes('dump in process');
  }
}

/** How to connect. */
export interface ConnectOptions {
  /** gives up connecting; a connection that has been made is not ended by it */
  readonly signal?: AbortSignal | undefined;
  /** milliseconds to wait for the greeting, and for the answer to the first command */
  readonly patience?: number | undefined;
  /** enable out-of-band commands, where QEMU offers them; false by default */
  readonly oob?: boolean | undefined;
}

/**
 * How long QEMU may take to greet, in milliseconds. It greets at once, unless it is busy (a dump that is not detached
 * keeps its main loop) or serves somebody else on this socket: then the system accepts for it, and nothing comes.
 */
const GREETING_PATIENCE = 5000;

/** Characters of the other end's words that are repeated in messages. */
const SHOWN = 300;

/**
 * Connects to a monitor and negotiates.
 * @param address path of a UNIX socket, or `tcp:HOST:PORT`
 * @throws VmcoreError READ when nobody answers, or not as a monitor does; USAGE for a malformed address; ABORTED
 */
export async function connectQmp(address: string, options: ConnectOptions = {}): Promise<QmpConnection> {
  const { signal, patience = GREETING_PATIENCE, oob = false } = options;
  const name = `QEMU at ${address}`;
  const client = new SocketClient(await openSocket(address, signal), name, () => connectQmp(address));
  const abort = () => client.fail(new VmcoreError('ABORTED', `connecting to ${name} was given up`));
  const timeout = setTimeout(() => client.fail(silentError(name, patience)), patience);
  signal?.addEventListener('abort', abort, { once: true });
  try {
    if (signal?.aborted) abort();
    await client.greeted;
    const enable = oob && capabilitiesOf(client.greeting).includes('oob') ? ['oob'] : undefined;
    await client.execute('qmp_capabilities', { enable });
    return client;
  } catch (error) {
    client.close();
    throw error;
  } finally {
    clearTimeout(timeout);
    signal?.removeEventListener('abort', abort);
  }
}

/** What a greeting offers: `oob`. */
export function capabilitiesOf(greeting: JsonObject): readonly string[] {
  const hello = greeting.get('QMP');
  const offered = hello instanceof Map ? (hello as JsonObject).get('capabilities') : undefined;
  return Array.isArray(offered) ? offered.filter((name: Json) => typeof name === 'string') : [];
}

/** Runs a command line of the human monitor. @returns what it prints, with plain line ends @throws as `execute` */
export async function humanMonitor(client: QmpClient, line: string): Promise<string> {
  const text = await client.execute('human-monitor-command', { 'command-line': line });
  if (typeof text !== 'string') throw nonsense(client.name, `human-monitor-command returned no text`);
  return text.replaceAll('\r\n', '\n');
}

/** The object that a value has to be. @throws VmcoreError READ */
export function objectOf(value: QmpValue | undefined, what: string): { readonly [name: string]: QmpValue } {
  if (isObject(value)) return value;
  throw new VmcoreError('READ', `QEMU answers ${what} with something else than an object`);
}

function isObject(value: QmpValue | undefined): value is { readonly [name: string]: QmpValue } {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function silentError(name: string, patience: number): VmcoreError {
  return new VmcoreError(
    'READ',
    `${name} does not greet within ${patience / 1000} s: it may serve another client on this socket (it serves one ` +
      'at a time; end that one, or give QEMU another -qmp), or be no monitor',
  );
}

function nonsense(name: string, what: string): VmcoreError {
  return new VmcoreError('READ', `${name} does not talk as QEMU's monitor (QMP) does: ${what}`);
}

/** What the other end said, on one line and not endless. */
function shown(text: string): string {
  const line = text.replace(/\s+/g, ' ').trim();
  return line.length <= SHOWN ? line : `${line.slice(0, SHOWN)}…`;
}

/** Where to connect: a path unless it begins with `tcp:`. */
function socketAddress(address: string): { path: string } | { host: string; port: number } {
  if (!address.startsWith('tcp:')) {
    if (address === '') throw new VmcoreError('USAGE', 'qmp: takes the path of a socket, or tcp:HOST:PORT');
    checkSocketPath(address);
    return { path: address };
  }
  const [, host = '', port = ''] = /^tcp:(.+):([0-9]{1,5})$/.exec(address) ?? [];
  if (host === '' || Number(port) > 0xffff || Number(port) === 0)
    throw new VmcoreError('USAGE', `${address} is not tcp:HOST:PORT`);
  return { host: host.replace(/^\[(.*)\]$/, '$1'), port: Number(port) };
}

/** The signal ends connecting only: whoever is interrupted may have more to say to QEMU before it goes. */
function openSocket(address: string, signal: AbortSignal | undefined): Promise<MonitorSocket> {
  const where = socketAddress(address);
  return new Promise((resolve, reject) => {
    const socket = new MonitorSocket().connect(where) as MonitorSocket;
    const settle = (error: VmcoreError | null) => {
      socket.removeAllListeners('error').removeAllListeners('connect');
      signal?.removeEventListener('abort', abort);
      if (error) reject(error);
      else resolve(socket);
      if (error) socket.on('error', () => {}).destroy();
    };
    const abort = () => settle(new VmcoreError('ABORTED', `connecting to ${address} was given up`));
    socket.on('error', (error) =>
      settle(new VmcoreError('READ', `cannot connect to ${address}: ${connectErrorText(error)}`)),
    );
    socket.on('connect', () => settle(null));
    signal?.addEventListener('abort', abort, { once: true });
  });
}

/** A socket without a listener is what a QEMU that was killed leaves behind. */
function connectErrorText(error: Error): string {
  if ('code' in error && error.code === 'ECONNREFUSED') return 'nobody listens there (is QEMU running?)';
  return systemErrorText(error);
}

interface Waiting {
  resolve(answer: JsonObject): void;
  reject(error: VmcoreError): void;
}

/** A client over a socket of its own. */
class SocketClient implements QmpConnection {
  readonly peerPid: number | null;
  readonly passesDescriptors: boolean;
  readonly closed: Promise<VmcoreError>;
  /** settles when the greeting has come; rejects when the connection ends before */
  readonly greeted: Promise<void>;
  readonly #messages = new JsonStream((message) => this.#take(message));
  readonly #waiting = new Map<string, Waiting>();
  readonly #listeners = new Set<(message: JsonObject) => void>();
  #onClosed: (error: VmcoreError) => void = () => {};
  #onGreeting: (() => void) | null = null;
  #failure: VmcoreError | null = null;
  #greeting: JsonObject = new Map();
  /** QEMU gives the answer to a client that has gone to its next one, who must not take it for its own. */
  readonly #idPrefix = `vmcore-${randomBytes(8).toString('hex')}`;
  #lastId = 0;

  constructor(
    private readonly socket: MonitorSocket,
    readonly name: string,
    readonly reconnect: () => Promise<QmpConnection>,
  ) {
    this.peerPid = peerPid(socket);
    this.passesDescriptors = canSendDescriptors(socket);
    this.closed = new Promise((resolve) => {
      this.#onClosed = resolve;
    });
    this.greeted = Promise.race([
      new Promise<void>((resolve) => {
        this.#onGreeting = resolve;
      }),
      this.closed.then((error) => Promise.reject(error)),
    ]);
    this.greeted.catch(() => {});
    socket.on('data', (data: Buffer) => this.#messages.feed(data));
    socket.on('error', (error) => this.fail(this.#lost(`the connection failed: ${systemErrorText(error)}`)));
    socket.on('close', () => this.fail(this.#lost('it has closed the connection')));
  }

  get greeting(): JsonObject {
    return this.#greeting;
  }

  get descriptor(): number | null {
    return socketDescriptor(this.socket);
  }

  async execute(command: string, args?: QmpArguments, options?: ExecuteOptions): Promise<QmpValue> {
    const answer = await this.exchange((id) => JSON.stringify({ execute: command, arguments: args, id }), options);
    const { error, ...rest } = plainObject(answer);
    if (isObject(error)) throw commandError(command, error);
    return rest['return']!;
  }

  async exchange(requestText: (id: string) => string, { fds = [] }: ExecuteOptions = {}): Promise<JsonObject> {
    if (this.#failure) throw this.#failure;
    if (fds.length > 0 && !this.passesDescriptors)
      throw new VmcoreError('UNSUPPORTED', `descriptors cannot be passed to ${this.name}`);
    const id = `${this.#idPrefix}-${++this.#lastId}`;
    const answer = new Promise<JsonObject>((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
    answer.catch(() => {});
    const text = `${requestText(id)}\n`;
    try {
      if (fds.length > 0) await sendWithDescriptors(this.socket, text, fds);
      else this.socket.write(text);
    } catch (error) {
      this.socket.hearOut(error as Error);
    }
    return answer;
  }

  onEvent(listener: (event: QmpEvent) => void): () => void {
    return this.onEventMessage((message) => {
      const { event, data } = plainObject(message);
      listener({ event: String(event), data: isObject(data) ? data : {} });
    });
  }

  onEventMessage(listener: (message: JsonObject) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  close(): void {
    this.fail(new VmcoreError('ABORTED', `the connection to ${this.name} was closed`));
  }

  /** Ends the connection for a reason; what is under way fails with it. */
  fail(error: VmcoreError): void {
    if (this.#failure) return;
    this.#failure = error;
    this.socket.destroy();
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
    this.#onClosed(error);
  }

  #lost(what: string): VmcoreError {
    return new VmcoreError('READ', `${this.name} is gone: ${what}`);
  }

  #take(message: Json | QmpError): void {
    if (this.#failure) return;
    if (message instanceof QmpError) this.fail(nonsense(this.name, shown(message.desc)));
    else if (!(message instanceof Map)) this.fail(nonsense(this.name, 'a message is no object'));
    else this.#takeObject(message);
  }

  #takeObject(message: JsonObject): void {
    if (this.#onGreeting) this.#takeGreeting(message);
    else if (message.has('event')) this.#takeEvent(message);
    else this.#takeAnswer(message);
  }

  #takeGreeting(message: JsonObject): void {
    if (!message.has('QMP')) {
      this.fail(nonsense(this.name, 'it does not greet first'));
      return;
    }
    this.#greeting = message;
    this.#onGreeting?.();
    this.#onGreeting = null;
  }

  #takeEvent(message: JsonObject): void {
    if (typeof message.get('event') !== 'string') return;
    for (const listener of [...this.#listeners]) listener(message);
  }

  #takeAnswer(message: JsonObject): void {
    const id = message.get('id');
    const waiting = typeof id === 'string' ? this.#waiting.get(id) : undefined;
    // Of a request that QEMU could not read, it cannot tell the id.
    if (id === undefined && message.has('error')) this.fail(nonsense(this.name, 'it refuses what was not asked'));
    if (!waiting) return;
    if (!message.has('return') && !(message.get('error') instanceof Map))
      this.fail(nonsense(this.name, 'an answer neither returns nor refuses'));
    else {
      this.#waiting.delete(id as string);
      waiting.resolve(message);
    }
  }
}

function commandError(command: string, error: { readonly [name: string]: QmpValue }): QmpCommandError {
  const { class: errorClass, desc } = error;
  return new QmpCommandError(command, shown(String(errorClass)), shown(String(desc)));
}

function plainObject(object: JsonObject): Record<string, QmpValue> {
  // Defines its members, so that one of the name __proto__ is one like any other.
  return Object.fromEntries([...object].map(([name, value]) => [name, plain(value)]));
}

/** A value as JavaScript has it. The parser has bounded its depth. */
function plain(value: Json): QmpValue {
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : value;
  if (value instanceof Map) return plainObject(value);
  if (Array.isArray(value)) return value.map(plain);
  return value as null | boolean | number | string;
}
