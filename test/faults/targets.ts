/** The targets of the fault matrix: what the command line is given, and what is there afterwards. */

import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { Socket } from 'node:net';
import { join } from 'node:path';
import { isNamed, type TargetName } from './axes.js';
import { anonymousPipe, type Channel, FIFO_READER, nameOf, socketPair } from './channels.js';

/** The descriptor that a dump gets where it is given one by its number. */
const PASSED = 3;

/** What a file that is replaced had in it. */
const OLD = 'what was there before\n';
const NAME = 'vmcore';

/** What there is of a vmcore: all of it, by its digest; nothing; what was there before. */
export type Content = string | 'nothing' | 'old';

/** Where one dump goes. */
export interface OpenTarget {
  /** words of the command line */
  readonly words: readonly string[];
  /** what to give as stdout, and as descriptor 3 */
  readonly stdout: number | 'ignore';
  readonly passed: number | 'ignore';
  /** what strace knows it by */
  readonly paths: readonly string[];
  /** lets go of what the dump has inherited, as soon as it runs */
  started(): void;
  /** what came of it, when the dump has ended */
  content(): Promise<Content>;
  /** the one behind a pipe or a socket */
  readonly reader?: Reader | undefined;
}

/** How a target is to be. */
export interface TargetOptions {
  /** its reader reads no more when it has as many bytes */
  readonly stallsAt?: number | undefined;
}

/** Reads what a dump writes. */
export class Reader {
  readonly #socket: Socket;
  readonly #hash = createHash('sha1');
  readonly #ended: Promise<void>;
  #bytes = 0;

  constructor(
    fd: number,
    private readonly options: TargetOptions,
  ) {
    this.#socket = new Socket({ fd, readable: true, writable: false });
    this.#socket.on('data', (data: Buffer) => {
      this.#hash.update(data);
      this.#bytes += data.length;
      if (this.hasStalled) this.#socket.pause();
    });
    this.#ended = new Promise((resolve) => this.#socket.on('error', () => {}).on('close', () => resolve()));
  }

  /** Whether one that stalls has read all that it will. */
  get hasStalled(): boolean {
    return this.#bytes >= (this.options.stallsAt ?? Number.POSITIVE_INFINITY);
  }

  /** Goes away. */
  die(): void {
    this.#socket.destroy();
  }

  async content(): Promise<Content> {
    await this.#ended;
    return this.#bytes === 0 ? 'nothing' : this.#hash.digest('hex');
  }
}

/** A folder for one dump after the other. */
export class TargetFolder {
  constructor(readonly folder: string) {}

  get path(): string {
    return join(this.folder, NAME);
  }

  /** Everything in the folder but the target itself. */
  leftovers(): string[] {
    return readdirSync(this.folder).filter((name) => name !== NAME);
  }

  /** Makes a target, in a folder that is empty but for it. */
  open(name: TargetName, options: TargetOptions = {}): OpenTarget {
    rmSync(this.folder, { recursive: true, force: true });
    mkdirSync(this.folder, { recursive: true });
    if (isNamed(name)) return this.#file(name === 'forced');
    if (name === 'fd') return this.#descriptor();
    if (name === 'FIFO') return this.#fifo(options);
    return channelTarget(name === 'pipe' ? anonymousPipe() : socketPair(), name, options);
  }

  #file(forced: boolean): OpenTarget {
    if (forced) writeFileSync(this.path, OLD);
    const words = ['-o', this.path, '--sync', ...(forced ? ['--force'] : [])];
    return { ...INHERITS_NOTHING, words, paths: [this.path], content: async () => contentOf(this.path) };
  }

  #descriptor(): OpenTarget {
    const fd = openSync(this.path, 'w');
    return {
      words: ['--fd', `${PASSED}`],
      stdout: 'ignore',
      passed: fd,
      paths: [this.path],
      started: () => closeSync(fd),
      content: async () => contentOf(this.path),
    };
  }

  #fifo(options: TargetOptions): OpenTarget {
    execFileSync('mkfifo', [this.path]);
    const fd = openSync(this.path, FIFO_READER);
    // Without a writer of our own, a reader would see the end before the dump has begun.
    const writer = openSync(this.path, 'w');
    const reader = new Reader(fd, options);
    const content = () => {
      closeSync(writer);
      return reader.content();
    };
    return { ...INHERITS_NOTHING, words: ['-o', this.path], paths: [this.path], content, reader };
  }
}

const INHERITS_NOTHING = { stdout: 'ignore', passed: 'ignore', started() {} } as const;

function channelTarget({ read, write }: Channel, name: TargetName, options: TargetOptions): OpenTarget {
  const reader = new Reader(read, options);
  return {
    words: name === 'pipe' ? ['-o', '-'] : ['--fd', `${PASSED}`],
    stdout: name === 'pipe' ? write : 'ignore',
    passed: name === 'pipe' ? 'ignore' : write,
    paths: [nameOf(write)],
    started: () => closeSync(write),
    content: () => reader.content(),
    reader,
  };
}

/** What is at a path. */
export function contentOf(path: string): Content {
  if (!existsSync(path)) return 'nothing';
  const bytes = readFileSync(path);
  return bytes.equals(Buffer.from(OLD)) ? 'old' : createHash('sha1').update(bytes).digest('hex');
}

/** What has to be there when a dump has failed; undefined where what is there is its owner's. */
export function contentWithout(name: TargetName): Content | undefined {
  if (name === 'file') return 'nothing';
  return name === 'forced' ? 'old' : undefined;
}
