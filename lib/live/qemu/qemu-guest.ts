/**
 * A live QEMU as a guest: the machine is kept still, described by QEMU's own dump, its memory read in the best way that
 * is to be had, and runs on when that is done.
 */

import { VmcoreError } from '../../model/errors.js';
import type { Architecture, ChunkOptions, CpuState, Guest, LiveMachine, LiveReport } from '../../model/guest.js';
import type { MemoryBlock, PhysicalMemory } from '../../model/physical-memory.js';
import type { QmpClient } from '../../qmp/protocol/client.js';
import type { Chunk, Source } from '../../model/stage.js';
import { openElfStream } from '../../sources/elf/elf-stream.js';
import { type CopyRoom, defaultCopyLimit, MemoryCopy } from './memory-copy.js';
import { MemoryGuest } from '../../sources/memory-guest.js';
import { QemuDump } from './qemu-dump.js';
import { readBlocks } from './layout.js';
import { findMemory, type MemoryWay, NoRandomAccess, type ReadableBlock } from './memory.js';
import type { MemoryPath, OpenQemuOptions } from './options.js';
import { Patience, PatientClient } from './patience.js';
import { Pause } from './pause.js';
import { SpoolFile } from '../../io/spool-file.js';
import type { ElfNote } from '../../model/note.js';

/** What is tried before QEMU's own dump. */
const WAYS: Readonly<Record<MemoryPath, readonly ('file' | 'proc')[]>> = {
  auto: ['file', 'proc'],
  file: ['file'],
  proc: ['proc'],
  stream: [],
};

/**
 * Opens the machine of a QEMU. It stands still until `live.release()` or `close()`, and then runs if it ran before.
 * @param client a connection to its monitor; closed with the guest
 * @throws VmcoreError, and the machine runs again if it ran before
 */
export async function openQemu(client: QmpClient, options: OpenQemuOptions = {}): Promise<Guest> {
  // Before the pause: for a folder that is not there, nobody has to stand still.
  const room = options.pauseOnlyForCopy ? copyRoom(options) : null;
  try {
    return await openInPause(client, options, room);
  } finally {
    room?.spool?.close();
  }
}

async function openInPause(client: QmpClient, options: OpenQemuOptions, room: CopyRoom | null): Promise<Guest> {
  const warnings: string[] = [];
  const warn = (text: string) => {
    warnings.push(text);
    options.onWarning?.(text);
  };
  const patience = () => new Patience(client.name, options.signal);
  const hasty = new PatientClient(client, patience(), warn);
  // Whoever is in a hurry need not wait until the machine runs again; but it shall, however long that takes.
  const patient = new PatientClient(client, new Patience(client.name), warn);
  const pause = await Pause.begin(patient, patience(), warn);
  let opened: Opened | null = null;
  try {
    opened = await openPaused(hasty, { ...options, onWarning: warn });
    const guest = new QemuGuest(client, pause, opened, { warn, warnings });
    if (room) await guest.copy(room, options.signal);
    return guest;
  } catch (error) {
    opened?.guest.close();
    await patience().wait(releaseAfter(error, pause, opened));
    throw error;
  }
}

function copyRoom({ copyLimit, copySpool }: OpenQemuOptions): CopyRoom {
  const spool = copySpool === undefined ? null : SpoolFile.create(copySpool);
  return { limit: copyLimit ?? defaultCopyLimit(), spool };
}

/** Ends a pause because of an error; one more error is told with the first. */
async function releaseAfter(error: unknown, pause: Pause, opened: Opened | null): Promise<void> {
  try {
    await opened?.end();
    await pause.release();
  } catch (second) {
    if (second === error || !(error instanceof VmcoreError) || !(second instanceof VmcoreError)) throw error;
    throw new VmcoreError(error.code, `${error.message}; and ${second.message}`, { cause: error });
  }
}

/** A machine whose memory can be read, and how. */
interface Opened {
  readonly guest: Guest;
  readonly memory: LiveReport['memory'];
  /** ends what QEMU does for us, so that it can be asked for more */
  end(): Promise<void>;
}

async function openPaused(client: QmpClient, options: OpenQemuOptions): Promise<Opened> {
  const { memoryPath = 'auto', pid, signal, onWarning = () => {} } = options;
  if (memoryPath === 'stream') return openAsStream(client);
  const blocks = await readBlocks(client);
  try {
    const { blocks: found, machine } = await findMemory(client, blocks, {
      ways: WAYS[memoryPath],
      pid,
      signal,
      onMismatch: onWarning,
    });
    const guest = new MemoryGuest({ name: client.name, regions: found, ...machine });
    return { guest, memory: found.map(reportOf), end: async () => {} };
  } catch (error) {
    if (!(error instanceof NoRandomAccess)) throw error;
    if (memoryPath !== 'auto')
      throw new VmcoreError('READ', `--memory-path ${memoryPath} cannot be had: ${error.message}`, { cause: error });
    onWarning(`the memory is read through QEMU's own dump, which is slower: ${error.message}`);
    return openAsStream(client);
  }
}

function reportOf({ base, length, way, backing }: ReadableBlock): LiveReport['memory'][number] {
  return { base, length, way, from: way === 'stream' ? "QEMU's dump" : backing.name };
}

/** All of the memory, as QEMU dumps it. */
async function openAsStream(client: QmpClient): Promise<Opened> {
  const dump = await QemuDump.start(client, { detach: true });
  const end = () => {
    dump.close();
    return dump.finished;
  };
  try {
    const guest = await openElfStream(dump, client.name);
    const memory = guest.blocks.map(({ base, length }) => ({
      base,
      length,
      way: 'stream' as const,
      from: "QEMU's dump",
    }));
    return { guest, memory, end };
  } catch (error) {
    await end();
    throw error;
  }
}

/** A live machine. Its memory can be read until it runs on. */
class QemuGuest implements Guest, LiveMachine {
  readonly name: string;
  #inner: Guest;
  #copied: Pick<LiveReport, 'copiedBytes' | 'spooledBytes'> | null = null;
  #closed = false;
  #released: Promise<void> | null = null;

  constructor(
    private readonly client: QmpClient,
    private readonly pause: Pause,
    private readonly opened: Opened,
    private readonly said: { readonly warnings: readonly string[]; warn(text: string): void },
  ) {
    this.name = client.name;
    this.#inner = opened.guest;
  }

  get live(): LiveMachine {
    return this;
  }

  get arch(): Architecture {
    return this.#inner.arch;
  }

  get blocks(): readonly MemoryBlock[] {
    return this.#inner.blocks;
  }

  get cpus(): readonly CpuState[] {
    return this.#inner.cpus;
  }

  get notes(): readonly ElfNote[] {
    return this.#inner.notes;
  }

  get memory(): PhysicalMemory | null {
    return this.#inner.memory;
  }

  /** @throws VmcoreError UNSUPPORTED when the machine has been released and its memory was not copied */
  chunks(options?: ChunkOptions): Source<Chunk> {
    if (this.#released && this.#copied === null)
      throw new VmcoreError('UNSUPPORTED', `${this.name} has been released: its memory is not what it was`);
    return this.#inner.chunks(options);
  }

  /**
   * Copies the memory and lets the machine run on. Where that fails the copy is whole, and `release` says it again.
   * @throws VmcoreError
   */
  async copy(room: CopyRoom, signal: AbortSignal | undefined): Promise<void> {
    const original = this.#inner;
    const copy = await MemoryCopy.of(original, room, signal);
    const { name, arch, cpus, notes } = original;
    this.#inner = new MemoryGuest({ name, arch, cpus, notes, regions: copy.regionsOf(original) });
    this.#copied = { copiedBytes: copy.bytes, spooledBytes: copy.spooledBytes };
    await this.release().catch(() => {});
    original.close();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#inner.close();
    // Whoever cares how that goes has called release before.
    void this.release()
      .catch(() => {})
      .then(() => this.client.close());
  }

  release(): Promise<void> {
    this.#released ??= this.#runOn();
    return this.#released;
  }

  async #runOn(): Promise<void> {
    // In this order: QEMU refuses to run a machine that it is dumping.
    await this.opened.end();
    await this.pause.release();
    const { disturbance } = this.pause;
    if (disturbance !== null) this.said.warn(`${disturbance}: the dump is not of one instant, take it again`);
  }

  get report(): LiveReport {
    const { pause, opened } = this;
    return {
      memoryPath: mainWay(opened.memory),
      memory: opened.memory,
      wasRunning: pause.wasRunning,
      statusBefore: pause.statusBefore,
      statusAfter: pause.statusAfter,
      pausedSeconds: pause.seconds,
      ...this.#copied,
      warnings: this.said.warnings,
    };
  }
}

/** How most of the memory is read. */
function mainWay(memory: LiveReport['memory']): MemoryWay {
  const bytes = new Map<MemoryWay, number>();
  for (const { way, length } of memory) bytes.set(way, (bytes.get(way) ?? 0) + length);
  return [...bytes].sort(([, a], [, b]) => b - a)[0]?.[0] ?? 'stream';
}
