/**
 * The sources of the fault matrix: one Windows guest, which every format takes, as a memory file, an ELF, a kdump and a
 * machine that runs. It has more data than a dump has memory for, so that a stage that stops has all others wait.
 */

import { spawn } from 'node:child_process';
import { closeSync, ftruncateSync, mkdirSync, openSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { dump } from '../../lib/dump.js';
import { openGuest } from '../../lib/open-guest.js';
import type { Qemu } from '../guests/qemu.js';
import { bootWindows } from '../guests/windows.js';
import { ALL_RUNS, MEMORY, registersText, windowsGuestFixture } from '../windows-fixture.js';
import type { SourceName } from './axes.js';
import { anonymousPipe, nameOf } from './channels.js';

const MIB = 2 ** 20;
const PAGE = 4096;

/** The part of the guest that is nothing but data, and where it is. */
const DATA_BYTES = 96 * MIB;
const DATA_BASE = 16 * MIB;
/** A hole in it. */
const HOLE = { start: 20 * MIB, end: 23 * MIB };

/** RAM of the machine that runs, of which 17 MiB are below 4 GiB; the rest is data. */
const LIVE_MEMORY = 104 * MIB;
const LIVE_DATA_AT = 17 * MIB;

/** A source of one dump. */
export interface OpenSource {
  /** words of the command line */
  readonly words: readonly string[];
  /** what to give as stdin: a descriptor */
  readonly stdin: number | 'ignore';
  /** the files that are read, as strace knows them */
  readonly paths: readonly string[];
  /** lets go of what the dump has inherited, as soon as it runs */
  started(): void;
  /** the run state of a machine that runs; null where there is none */
  status(): Promise<string | null>;
}

const OFFLINE = { stdin: 'ignore', started() {}, status: async () => null } as const;

/** The files of the offline sources. */
export class SourceFiles {
  private constructor(
    readonly folder: string,
    private readonly dataBytes: number,
  ) {}

  /** Makes them. */
  static async make(folder: string, dataBytes = DATA_BYTES): Promise<SourceFiles> {
    const files = new SourceFiles(folder, dataBytes);
    mkdirSync(folder, { recursive: true });
    files.#writeGuest();
    const guest = await openGuest(files.path('guest.json'));
    await dump(guest, { format: 'elf' }, { file: files.path('guest.elf') }).finished;
    await dump(guest, { format: 'kdump-raw-zlib' }, { file: files.path('guest.kdump') }).finished;
    guest.close();
    return files;
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  /** A source that nobody has to keep running. */
  open(name: Exclude<SourceName, 'live-file' | 'live-proc'>): OpenSource {
    if (name === 'stream') return streamOf(this.path('guest.elf'));
    if (name === 'memory') {
      const paths = ['guest.json', 'guest.ram', 'registers', 'note'].map((file) => this.path(file));
      return { ...OFFLINE, words: [paths[0]!], paths };
    }
    const path = this.path(name === 'ELF' ? 'guest.elf' : 'guest.kdump');
    return { ...OFFLINE, words: [path], paths: [path] };
  }

  /** The built-in guest. */
  demo(): OpenSource {
    return { ...OFFLINE, words: ['demo:'], paths: [] };
  }

  #writeGuest(): void {
    const run = { BasePage: BigInt(DATA_BASE / PAGE), PageCount: BigInt(this.dataBytes / PAGE) };
    const { guest, bytes } = windowsGuestFixture({ runs: [...ALL_RUNS, run] });
    writeRam(this.path('guest.ram'), 'w', bytes, MIB, this.dataBytes);
    writeFileSync(this.path('registers'), registersText(64, 0));
    writeFileSync(this.path('note'), guest.notes[0]!.raw);
    const memory = [
      { base: 0, length: MEMORY, file: 'guest.ram', offset: 0 },
      { base: DATA_BASE, length: this.dataBytes, file: 'guest.ram', offset: MIB },
    ];
    const description = { version: 1, arch: 'x86_64', memory, registers: 'registers', vmcoreinfo: 'note' };
    writeFileSync(this.path('guest.json'), JSON.stringify(description));
  }
}

/** Writes the start of a memory file, and data from an offset on. */
function writeRam(path: string, flags: 'w' | 'r+', start: Uint8Array, dataAt: number, length: number): void {
  const fd = openSync(path, flags);
  writeSync(fd, start, 0, start.length, 0);
  for (let at = 0; at < length; at += MIB)
    if (at < HOLE.start || at >= HOLE.end)
      writeSync(fd, PIECES[(at / MIB) % PIECES.length]!, 0, Math.min(MIB, length - at), dataAt + at);
  if (flags === 'w') ftruncateSync(fd, dataAt + length);
  closeSync(fd);
}

/** A MiB of pages that shrink to next to nothing, three times, and one of pages that shrink by half. Every third is zeros. */
const PIECES = [piece(textPage), piece(textPage), piece(textPage), piece(noisePage)];

function piece(fill: (page: Uint8Array, number: number) => void): Uint8Array {
  const bytes = new Uint8Array(MIB);
  for (let number = 0; number < MIB / PAGE; number++)
    if (number % 3 !== 2) fill(bytes.subarray(number * PAGE, (number + 1) * PAGE), number);
  return bytes;
}

function textPage(page: Uint8Array, number: number): void {
  const line = Buffer.from(`page ${number} of a guest that is there to be dumped\n`);
  for (let at = 0; at < PAGE; at++) page[at] = line[at % line.length]!;
}

function noisePage(page: Uint8Array, number: number): void {
  let state = number;
  for (let at = 0; at < PAGE; at += 2) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    page[at] = state >>> 24;
  }
}

/** A vmcore that somebody else writes into a pipe. */
function streamOf(path: string): OpenSource {
  const { read, write } = anonymousPipe();
  const name = nameOf(read);
  const cat = spawn('cat', [path], { stdio: ['ignore', write, 'ignore'] });
  cat.on('error', () => {});
  closeSync(write);
  return { words: ['-'], stdin: read, paths: [name], started: () => closeSync(read), status: async () => null };
}

/** A machine that runs. */
export class LiveSource {
  private constructor(
    private readonly qemu: Qemu,
    private readonly socket: string,
  ) {}

  static async boot(folder: string): Promise<LiveSource> {
    mkdirSync(folder, { recursive: true });
    const socket = join(folder, 'qmp');
    const args = ['-qmp', `unix:${socket},server=on,wait=off`];
    const qemu = await bootWindows('win-64', folder, { base: folder, memory: LIVE_MEMORY, args });
    writeRam(qemu.ramFile, 'r+', new Uint8Array(0), LIVE_DATA_AT, LIVE_MEMORY - LIVE_DATA_AT);
    return new LiveSource(qemu, socket);
  }

  open(name: 'live-file' | 'live-proc'): OpenSource {
    const way = name === 'live-file' ? 'file' : 'proc';
    const path = way === 'file' ? this.qemu.ramFile : `/proc/${this.qemu.pid}/mem`;
    return {
      words: [`qmp:${this.socket}`, '--memory-path', way],
      stdin: 'ignore',
      paths: [path],
      started() {},
      status: () => this.#settledStatus(),
    };
  }

  kill(): Promise<void> {
    return this.qemu.kill();
  }

  /** The run state, when the watchdog has had its time; a machine that stands still runs on for the next dump. */
  async #settledStatus(): Promise<string> {
    for (let tries = 0; ; tries++) {
      const { status } = await this.qemu.execute<{ status: string }>('query-status');
      if (status === 'running') return status;
      if (tries < WATCHDOG_STEPS) await sleep(WATCHDOG_STEP);
      else {
        await this.qemu.cont();
        return status;
      }
    }
  }
}

/** How often to look whether a machine runs again, and how long to wait in between, in milliseconds. */
const WATCHDOG_STEPS = 100;
const WATCHDOG_STEP = 50;
