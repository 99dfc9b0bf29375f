/**
 * A QEMU under our control: launched with its memory in a shared file, spoken to over QMP, gone when we are gone.
 *
 * Watch out: a dump by QEMU touches every page of a sparse memory file. Copy the memory first, dump afterwards.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { EventEmitter } from 'node:events';
import { accessSync, constants, mkdtempSync, readdirSync, readFileSync, rmSync, statfsSync, statSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { shortTemporary } from '../short-folder.js';

/** The id of the memory backend: the name QEMU gives the guest's RAM in `info mtree`. */
export const RAM_ID = 'guest-ram';

const FOLDER_PREFIX = 'vmcore-qemu-';
const CONNECT_TIMEOUT_MS = 30_000;

export interface QemuOptions {
  /** Name or path of the program; default: `qemu-system-x86_64`. */
  readonly binary?: string;
  readonly machine: 'pc' | 'q35';
  /** More options of `-machine`, such as `max-ram-below-4g=17M`. */
  readonly machineOptions?: readonly string[];
  /** Bytes of RAM. */
  readonly memory: number;
  readonly cpus?: number;
  readonly cpu?: string;
  /** Anything else for the command line. */
  readonly args?: readonly string[];
  /** Where the RAM file and the sockets go; default: /dev/shm when it has room, else the temporary folder. */
  readonly base?: string;
}

export interface DumpRequest {
  readonly paging: boolean;
  readonly file: string;
  /** QEMU 7.2 has no `kdump-raw-zlib`. */
  readonly format?: 'elf' | 'kdump-zlib' | 'kdump-raw-zlib';
  readonly begin?: number;
  readonly length?: number;
}

/** What QEMU answers when it refuses a command. */
export class QmpError extends Error {
  constructor(
    readonly errorClass: string,
    readonly desc: string,
    command: string,
  ) {
    super(`${command}: ${desc}`);
  }
}

type Json = Record<string, unknown>;
interface Pending {
  readonly command: string;
  resolve(value: unknown): void;
  reject(reason: Error): void;
}

/** A small QMP client: one line a message, answers matched by id. Emits `event` with each event's whole message. */
export class QmpClient extends EventEmitter {
  #socket: Socket;
  #pending = new Map<number, Pending>();
  #nextId = 1;
  #text = '';
  #dead: Error | undefined;

  private constructor(socket: Socket) {
    super();
    this.#socket = socket;
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => this.#take(text));
    socket.on('error', (error) => this.#fail(error));
    socket.on('close', () => this.#fail(new Error('QEMU closed its QMP socket')));
  }

  static async connect(path: string): Promise<QmpClient> {
    const socket = await new Promise<Socket>((resolve, reject) => {
      const socket = connect(path, () => {
        socket.off('error', reject);
        resolve(socket);
      });
      socket.once('error', reject);
    });
    const client = new QmpClient(socket);
    await client.execute('qmp_capabilities');
    return client;
  }

  execute<T = unknown>(command: string, args?: Json): Promise<T> {
    if (this.#dead !== undefined) return Promise.reject(this.#dead);
    const id = this.#nextId++;
    return new Promise<T>((resolve, reject) => {
      this.#pending.set(id, { command, resolve: resolve as (value: unknown) => void, reject });
      this.#socket.write(`${JSON.stringify({ execute: command, ...(args && { arguments: args }), id })}\n`);
    });
  }

  close(): void {
    this.#socket.destroy();
  }

  #take(text: string): void {
    const lines = (this.#text + text).split('\n');
    this.#text = lines.pop()!;
    for (const line of lines) if (line.trim() !== '') this.#message(JSON.parse(line) as Json);
  }

  #message(message: Json): void {
    if ('event' in message) this.emit('event', message);
    const pending = this.#pending.get(message['id'] as number);
    if (pending === undefined) return;
    this.#pending.delete(message['id'] as number);
    const error = message['error'] as { class: string; desc: string } | undefined;
    if (error === undefined) pending.resolve(message['return']);
    else pending.reject(new QmpError(error.class, error.desc, pending.command));
  }

  #fail(error: Error): void {
    this.#dead ??= error;
    for (const { reject } of this.#pending.values()) reject(this.#dead);
    this.#pending.clear();
  }
}

/** A guest that has not come to where it was waited for, and never will. */
export class GuestStuck extends Error {}

/** What Linux writes when one of its CPUs does nothing any more. */
const STUCK_CPU = /^.*(?:soft lockup|rcu.*stall).*$/m;

/** Everything to kill and to remove should this process end before it has done so itself. */
const running = new Map<Qemu, string>();

function abandonAll(): void {
  for (const qemu of running.keys()) qemu.killNow();
}
function onSignal(signal: NodeJS.Signals): void {
  abandonAll();
  process.kill(process.pid, signal);
}
function remember(qemu: Qemu, folder: string): void {
  if (running.size === 0) {
    process.on('exit', abandonAll);
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, onSignal);
  }
  running.set(qemu, folder);
}
function forget(qemu: Qemu): void {
  running.delete(qemu);
  if (running.size > 0) return;
  process.off('exit', abandonAll);
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.off(signal, onSignal);
}

/** One running guest, its RAM in the file `ramFile`. */
export class Qemu {
  readonly ramFile: string;
  #child: ChildProcess;
  #folder: string;
  #qmp: QmpClient | undefined;
  #exited: Promise<void>;
  #stderr = '';
  /** what the guest had written to its serial port when QEMU ended */
  #lastWords = '';

  private constructor(options: QemuOptions) {
    const base = options.base ?? roomyFolder(options.memory);
    removeOrphans(base);
    this.#folder = mkdtempSync(join(base, `${FOLDER_PREFIX}${process.pid}-`));
    this.ramFile = join(this.#folder, 'ram');
    const [command, args] = withParent(
      options.binary ?? 'qemu-system-x86_64',
      commandLine(options, this.#folder, this.ramFile),
    );
    this.#child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'] });
    remember(this, this.#folder);
    this.#child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr += text;
    });
    this.#exited = new Promise((resolve) => {
      this.#child.once('error', (error) => {
        this.#stderr += error.message;
        resolve();
      });
      this.#child.once('exit', () => resolve());
    });
    void this.#exited.then(() => {
      this.#lastWords = readIfThere(join(this.#folder, 'serial'));
      this.#bury();
    });
  }

  /** Starts QEMU and the guest in it. */
  static async launch(options: QemuOptions): Promise<Qemu> {
    const qemu = new Qemu(options);
    try {
      await qemu.#connect();
    } catch (error) {
      await qemu.kill();
      throw error;
    }
    return qemu;
  }

  get pid(): number {
    return this.#child.pid!;
  }

  /** Settles when QEMU has ended. */
  get exited(): Promise<void> {
    return this.#exited;
  }

  /** Emits `event` with each QMP event. */
  get events(): EventEmitter {
    return this.#qmp!;
  }

  execute<T = unknown>(command: string, args?: Json): Promise<T> {
    return this.#qmp!.execute<T>(command, args);
  }

  /** What the human monitor prints for a command line, with plain line ends. */
  async hmp(line: string): Promise<string> {
    const text = await this.execute<string>('human-monitor-command', { 'command-line': line });
    return text.replaceAll('\r\n', '\n');
  }

  /** What the guest has written to its first serial port. */
  async serial(): Promise<string> {
    try {
      return await readFile(join(this.#folder, 'serial'), 'latin1');
    } catch (error) {
      // It was removed when QEMU ended: say so, and why.
      this.#mustRun();
      throw error;
    }
  }

  async waitForSerial(marker: string, timeoutMs: number): Promise<void> {
    for (const end = Date.now() + timeoutMs; ; await sleep(20)) {
      const text = await this.serial();
      if (text.includes(marker)) return;
      this.#mustRun();
      const stuck = STUCK_CPU.exec(text)?.[0];
      if (stuck !== undefined) throw new GuestStuck(`a CPU of the guest is stuck: ${stuck}`);
      if (Date.now() > end)
        throw new GuestStuck(`no ${marker} from the guest within ${timeoutMs} ms:\n${text.slice(-2000)}`);
    }
  }

  /** Waits until every CPU has executed its last HLT (or was never started). */
  async waitUntilHalted(timeoutMs: number): Promise<void> {
    for (const end = Date.now() + timeoutMs; ; await sleep(10)) {
      const registers = await this.hmp('info registers -a');
      if (!registers.includes('HLT=0')) return;
      if (Date.now() > end) throw new Error(`not all CPUs halted within ${timeoutMs} ms:\n${registers}`);
    }
  }

  stop(): Promise<unknown> {
    return this.execute('stop');
  }

  cont(): Promise<unknown> {
    return this.execute('cont');
  }

  /** Has QEMU dump the guest, to a file that must not exist or a FIFO. Returns when it is written. */
  async dump({ paging, file, format, begin, length }: DumpRequest): Promise<void> {
    await this.execute('dump-guest-memory', {
      paging,
      protocol: `file:${file}`,
      ...(format !== undefined && { format }),
      ...(begin !== undefined && { begin }),
      ...(length !== undefined && { length }),
    });
  }

  /** Ends QEMU the polite way, removes its files. */
  async quit(): Promise<void> {
    try {
      await this.#qmp?.execute('quit');
    } catch {
      // The socket may close before the answer arrives.
    }
    const gone = await Promise.race([this.#exited.then(() => true), sleep(5000, false, { ref: false })]);
    if (!gone) this.#child.kill('SIGKILL');
    await this.#exited;
  }

  /** Ends QEMU at once, removes its files. */
  async kill(): Promise<void> {
    this.killNow();
    if (this.#child.pid !== undefined) await this.#exited;
  }

  /** As `kill`, for where nothing can be awaited. */
  killNow(): void {
    this.#child.kill('SIGKILL');
    this.#bury();
  }

  #bury(): void {
    this.#qmp?.close();
    rmSync(this.#folder, { recursive: true, force: true });
    forget(this);
  }

  async #connect(): Promise<void> {
    for (const end = Date.now() + CONNECT_TIMEOUT_MS; ; await sleep(10)) {
      this.#mustRun();
      try {
        this.#qmp = await QmpClient.connect(join(this.#folder, 'qmp'));
        return;
      } catch (error) {
        if (Date.now() > end) throw error;
      }
    }
  }

  #mustRun(): void {
    const { exitCode, signalCode, pid } = this.#child;
    if (exitCode === null && signalCode === null && pid !== undefined) return;
    const serial = this.#lastWords || readIfThere(join(this.#folder, 'serial'));
    const panic = /Kernel panic - [^\r\n]*/.exec(serial)?.[0];
    const why = panic ? `the guest panicked: ${panic}` : `QEMU ended (${signalCode ?? exitCode})`;
    throw new Error(`${why}: ${this.#stderr.trim()}\n${serial.slice(-2000)}`);
  }
}

function readIfThere(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
}

function commandLine(options: QemuOptions, folder: string, ramFile: string): string[] {
  const { machine, machineOptions = [], memory, cpus = 1, cpu = 'qemu64', args = [] } = options;
  return [
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-vga', 'none', '-accel', 'tcg', '-no-reboot'],
    ...['-machine', [machine, `memory-backend=${RAM_ID}`, ...machineOptions].join(',')],
    ...['-m', `${memory / 1024}K`, '-smp', `${cpus}`, '-cpu', cpu],
    ...['-object', `memory-backend-file,id=${RAM_ID},mem-path=${ramFile},size=${memory},share=on`],
    ...['-qmp', `unix:${join(folder, 'qmp')},server=on,wait=off`],
    ...['-chardev', `file,id=serial0,path=${join(folder, 'serial')}`, '-serial', 'chardev:serial0'],
    ...args,
  ];
}

let setpriv: boolean | undefined;

/** The command line of a process that dies with us even when we are killed with SIGKILL. */
export function withParent(command: string, args: string[]): [string, string[]] {
  setpriv ??= spawnSync('setpriv', ['--pdeathsig', 'KILL', 'true']).status === 0;
  return setpriv ? ['setpriv', ['--pdeathsig', 'KILL', command, ...args]] : [command, args];
}

/** /dev/shm when the RAM, all of it touched, fits twice over; the temporary folder otherwise. */
export function roomyFolder(bytes: number): string {
  const shm = '/dev/shm';
  try {
    accessSync(shm, constants.W_OK);
    const { bavail, bsize } = statfsSync(shm);
    const available =
      Number(/^MemAvailable:\s+(\d+) kB/m.exec(readFileSync('/proc/meminfo', 'latin1'))?.[1] ?? 0) * 1024;
    if (bavail * bsize > 2 * bytes && available > 2 * bytes) return shm;
  } catch {
    // No /dev/shm.
  }
  return shortTemporary();
}

/** Removes what a process that was killed with SIGKILL could not remove itself. */
function removeOrphans(base: string): void {
  for (const name of readdirSync(base)) {
    const pid = new RegExp(`^${FOLDER_PREFIX}(\\d+)-`).exec(name)?.[1];
    if (pid !== undefined && !isAlive(Number(pid))) removeIfOurs(join(base, name));
  }
}

/** What another user left behind is that user's to remove. */
function removeIfOurs(path: string): void {
  if (statSync(path, { throwIfNoEntry: false })?.uid === process.getuid?.())
    rmSync(path, { recursive: true, force: true });
}

export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
