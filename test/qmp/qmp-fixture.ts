/** A server under test, as a process of its own, and a client that can pass descriptors. */

import { type ChildProcess, type StdioOptions, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { shellStatus } from '../cli/run-cli.js';
import { makeShortFolder } from '../short-folder.js';
import { CLI, skipUnless } from '../tools.js';

/** The greatest patience with a server on a busy machine, in milliseconds. */
const PATIENCE = 60_000;

type Call = (fd: number, message: Buffer, flags: number) => number;
interface Koffi {
  load(name: null): { func(prototype: string): Call };
  address(bytes: Uint8Array): bigint;
}

function loadKoffi(): Koffi | null {
  try {
    return createRequire(import.meta.url)('koffi') as Koffi;
  } catch {
    return null;
  }
}

const koffi = loadKoffi();

/** The skip of tests that pass descriptors. */
export const noKoffi = skipUnless(koffi ? [] : ['koffi']);

/** sendmsg(2) with SCM_RIGHTS. */
function sendWithDescriptors(socket: number, text: string, descriptors: readonly number[]): void {
  const data = Buffer.from(text);
  const iovec = Buffer.alloc(16);
  iovec.writeBigUInt64LE(koffi!.address(data));
  iovec.writeBigUInt64LE(BigInt(data.length), 8);
  const length = 16 + 4 * descriptors.length;
  const control = Buffer.alloc(Math.ceil(length / 8) * 8);
  control.writeBigUInt64LE(BigInt(length));
  control.writeInt32LE(1, 8);
  control.writeInt32LE(1, 12);
  descriptors.forEach((fd, i) => {
    control.writeInt32LE(fd, 16 + 4 * i);
  });
  const message = Buffer.alloc(56);
  message.writeBigUInt64LE(koffi!.address(iovec), 16);
  message.writeBigUInt64LE(1n, 24);
  message.writeBigUInt64LE(koffi!.address(control), 32);
  message.writeBigUInt64LE(BigInt(control.length), 40);
  const sendmsg = koffi!.load(null).func('int64_t sendmsg(int fd, void *message, int flags)');
  const sent = sendmsg(socket, message, 0);
  if (sent !== data.length) throw new Error(`sendmsg sent ${sent} of ${data.length} bytes`);
}

export type Message = Record<string, unknown>;

/** A connection to a monitor: whole lines, no more protocol than that. */
export class Wire {
  readonly #lines: string[] = [];
  #text = '';
  #ended = false;
  #changed: () => void = () => {};

  private constructor(readonly socket: Socket) {
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => {
      const lines = (this.#text + text).split('\r\n');
      this.#text = lines.pop()!;
      this.#lines.push(...lines);
      this.#changed();
    });
    socket.on('error', () => {});
    socket.on('close', () => {
      this.#ended = true;
      this.#changed();
    });
  }

  static async connect(path: string): Promise<Wire> {
    const socket = connect(path);
    await once(socket, 'connect');
    return new Wire(socket);
  }

  /** Connects and negotiates. */
  static async negotiated(path: string): Promise<Wire> {
    const wire = await Wire.connect(path);
    await wire.line();
    await wire.execute('qmp_capabilities');
    return wire;
  }

  send(text: string | Uint8Array, descriptors: readonly number[] = []): void {
    if (descriptors.length === 0) this.socket.write(text);
    else
      sendWithDescriptors(
        (this.socket as unknown as { _handle: { fd: number } })._handle.fd,
        text as string,
        descriptors,
      );
  }

  /** The next line; null when the server has closed the connection. */
  async line(patience = PATIENCE): Promise<string | null> {
    const end = Date.now() + patience;
    while (this.#lines.length === 0 && !this.#ended) {
      if (Date.now() >= end) throw new Error('no line from the server in time');
      const changed = new Promise<void>((resolve) => {
        this.#changed = resolve;
      });
      await Promise.race([changed, sleep(Math.max(1, end - Date.now()), undefined, { ref: false })]);
    }
    return this.#lines.shift() ?? null;
  }

  async message(patience?: number): Promise<Message> {
    const line = await this.line(patience);
    if (line === null) throw new Error('the server has closed the connection');
    return JSON.parse(line) as Message;
  }

  /** The next message that satisfies a condition; others are dropped. */
  async until(condition: (message: Message) => boolean): Promise<Message> {
    for (;;) {
      const message = await this.message();
      if (condition(message)) return message;
    }
  }

  /** Sends a command, and gives its answer; events are dropped. */
  async execute(command: string, args?: Message, descriptors?: readonly number[]): Promise<Message> {
    this.send(`${JSON.stringify({ execute: command, arguments: args })}\n`, descriptors);
    return this.until((message) => 'return' in message || 'error' in message);
  }

  close(): void {
    this.socket.destroy();
  }
}

/** The text of the error that an answer is. */
export function errorText(answer: Message): string | undefined {
  return (answer['error'] as { desc: string } | undefined)?.desc;
}

/** What to start a server with. */
export interface ServerOptions {
  readonly source?: string;
  readonly args?: readonly string[];
  readonly stdio?: StdioOptions;
  /** options of Node's */
  readonly node?: readonly string[];
}

/** `vmcore qmp` as a process, in a folder of its own. */
export class TestServer {
  readonly folder = makeShortFolder();
  readonly path = join(this.folder, 'qmp');
  readonly child: ChildProcess;
  /** as a shell has it */
  readonly exited: Promise<number>;
  stderr = '';

  private constructor({
    source = 'demo:64M',
    args = [],
    stdio = ['ignore', 'ignore', 'pipe'],
    node = [],
  }: ServerOptions) {
    // Without what tap has every process of Node's load.
    const command = [
      '-u',
      'NODE_OPTIONS',
      process.execPath,
      ...node,
      CLI,
      'qmp',
      source,
      '--listen',
      `unix:${this.path}`,
    ];
    this.child = spawn('env', [...command, ...args], { stdio });
    this.child.stderr?.on('data', (data) => {
      this.stderr += data;
    });
    this.exited = once(this.child, 'close').then(([code, signal]) =>
      shellStatus(code as number | null, signal as NodeJS.Signals | null),
    );
  }

  static async start(options: ServerOptions = {}): Promise<TestServer> {
    const server = new TestServer(options);
    for (const end = Date.now() + PATIENCE; !readdirSync(server.folder).includes('qmp'); await sleep(10)) {
      if (server.child.exitCode !== null) throw new Error(`the server ended: ${server.stderr}`);
      if (Date.now() > end) throw new Error('the server does not listen');
    }
    return server;
  }

  connect(): Promise<Wire> {
    return Wire.negotiated(this.path);
  }

  /** Descriptors that the server has open. */
  get descriptors(): number {
    return readdirSync(`/proc/${this.child.pid}/fd`).length;
  }

  /** Resident memory of the server in MiB. */
  get memory(): number {
    const status = readFileSync(`/proc/${this.child.pid}/status`, 'latin1');
    return Number(/^VmRSS:\s+(\d+) kB/m.exec(status)![1]) / 1024;
  }

  /** Files in the server's folder, but for its socket. */
  files(): string[] {
    return readdirSync(this.folder).filter((name) => name !== 'qmp');
  }

  size(name: string): number {
    return statSync(join(this.folder, name)).size;
  }

  /** Ends the server and removes its folder. */
  async stop(): Promise<void> {
    this.child.kill('SIGTERM');
    await this.exited;
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Options of Node's for a process that has no koffi. */
export function withoutKoffi(t: { teardown(work: () => void): void }): string[] {
  const folder = makeShortFolder();
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const hook = join(folder, 'hook.cjs');
  writeFileSync(
    hook,
    `const m = require('node:module'); const r = m._resolveFilename;
     m._resolveFilename = (name, ...rest) => { if (name === 'koffi') throw new Error('no'); return r(name, ...rest); };`,
  );
  return ['--require', hook];
}

/** Waits for a condition. */
export async function eventually(condition: () => boolean | Promise<boolean>, patience = PATIENCE): Promise<boolean> {
  for (const end = Date.now() + patience; !(await condition()); await sleep(20)) if (Date.now() > end) return false;
  return true;
}
