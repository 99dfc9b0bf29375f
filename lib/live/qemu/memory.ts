/**
 * How each block of a live machine's memory is read: from the file behind it, from the process's memory, or as QEMU
 * dumps it. For each block the best way that works is taken; and none is believed before a page that it gives equals
 * the page that QEMU dumps.
 */

import { VmcoreError } from '../../model/errors.js';
import {
  type Backing,
  blockEnd,
  dataRuns,
  describeBlock,
  type MemoryBlock,
  type MemoryRegion,
} from '../../model/physical-memory.js';
import { humanMonitor, type QmpClient } from '../../qmp/protocol/client.js';
import { formatSize } from '../../model/sizes.js';
import { PAGE_SIZE } from '../../model/stage.js';
import { nonZeroRuns } from '../../model/zeros.js';
import { checkMapped, openBackend, type SharedBackend, sharedBackends } from './backends.js';
import { type FlatRange, parseFlatView, placeOf } from './flat-view.js';
import { type DumpedRange, readRange } from './layout.js';
import { findInProcess, ProcessMemory } from './process.js';

/** Ways to read the memory: the files behind it, /proc/PID/mem, QEMU's own dump. */
export type MemoryWay = 'file' | 'proc' | 'stream';

/** A block, how it is read, and where its bytes are. */
export interface ReadableBlock extends MemoryRegion {
  readonly way: MemoryWay;
  readonly backing: Backing;
}

/** Blocks that are smaller than this, and in no file, are taken from QEMU's dump at once: that is what counts. */
const SMALL_BLOCK = 1 << 20;
/** Most bytes of blocks that nothing but QEMU's dump has, and that are kept in memory. */
const STREAMED_LIMIT = 64 << 20;
/** A machine with more blocks than this is read as one stream: each block is asked for. */
const MAX_BLOCKS = 256;

/** What was found. */
export interface ReadableMemory {
  readonly blocks: readonly ReadableBlock[];
  /** architecture, CPU states and notes */
  readonly machine: DumpedRange['machine'];
}

/** What the choice depends on. */
export interface MemoryChoice {
  /** ways to try before QEMU's own dump, best first */
  readonly ways: readonly ('file' | 'proc')[];
  /** QEMU's process, where the user says it */
  readonly pid: number | undefined;
  /** stops in between */
  readonly signal: AbortSignal | undefined;
  /** is told when a way gives other bytes than QEMU */
  onMismatch(text: string): void;
}

/** Why a machine has to be read as one stream. */
export class NoRandomAccess extends VmcoreError {
  constructor(reason: string) {
    super('READ', reason);
  }
}

/** A block that no way could be taken for. */
interface LeftBlock extends MemoryBlock {
  /** why, by way */
  readonly reasons: readonly string[];
}

/** The largest of the blocks that could be read in no other way is what counts: device memory is in no file, ever. */
function noRandomAccess(left: readonly LeftBlock[]): NoRandomAccess {
  const { base, length, reasons } = left.reduce((a, b) => (b.length > a.length ? b : a));
  return new NoRandomAccess(`${formatSize(length)} at 0x${base.toString(16)}: ${reasons.join('; ')}`);
}

/**
 * Finds a way for each block.
 * @throws NoRandomAccess when more than a little memory can be read as a stream only; VmcoreError
 */
export async function findMemory(
  client: QmpClient,
  blocks: readonly MemoryBlock[],
  choice: MemoryChoice,
): Promise<ReadableMemory> {
  if (blocks.length > MAX_BLOCKS) throw new NoRandomAccess(`there are ${blocks.length} blocks of memory`);
  const finder = new MemoryFinder(client, choice);
  try {
    for (const block of blocks) await finder.find(block);
    return await finder.finish();
  } catch (error) {
    finder.close();
    throw error;
  }
}

/** Tries the ways, block by block. */
class MemoryFinder {
  readonly #found: ReadableBlock[] = [];
  readonly #unchecked: ReadableBlock[] = [];
  readonly #left: LeftBlock[] = [];
  readonly #openers: Readonly<Record<'file' | 'proc', (block: MemoryBlock) => Promise<ReadableBlock>>>;
  #machine: DumpedRange['machine'] | null = null;

  constructor(
    private readonly client: QmpClient,
    private readonly choice: MemoryChoice,
  ) {
    this.#openers = { file: fileOpener(client, choice.pid), proc: processOpener(client, choice.pid) };
  }

  async find(block: MemoryBlock): Promise<void> {
    const reasons: string[] = [];
    for (const way of this.choice.ways) {
      this.#checkSignal();
      if (way === 'proc' && block.length < SMALL_BLOCK) break;
      const reason = await this.#attempt(way, block);
      if (reason === null) return;
      reasons.push(reason);
    }
    this.#left.push({ ...block, reasons });
  }

  /** What is left comes from QEMU's dump, where it is little. @throws NoRandomAccess */
  async finish(): Promise<ReadableMemory> {
    const left = this.#left.reduce((sum, { length }) => sum + length, 0);
    if (left > STREAMED_LIMIT) throw noRandomAccess(this.#left);
    for (const block of this.#left) this.#found.push(await this.#take(block));
    for (const block of this.#unchecked) await this.#acceptUntouched(block);
    this.#machine ??= (await this.#dump(firstPage(this.#found[0]!))).machine;
    return { blocks: this.#found.sort((a, b) => a.base - b.base), machine: this.#machine };
  }

  close(): void {
    for (const backing of new Set([...this.#found, ...this.#unchecked].map(({ backing }) => backing))) backing.close();
  }

  #checkSignal(): void {
    if (this.choice.signal?.aborted) throw new VmcoreError('ABORTED', `looking at ${this.client.name} was given up`);
  }

  /** Tries a way. @returns null when it is taken, else why not */
  async #attempt(way: 'file' | 'proc', block: MemoryBlock): Promise<string | null> {
    try {
      const opened = await this.#openers[way](block);
      try {
        await this.#accept(opened);
      } catch (error) {
        opened.backing.close();
        throw error;
      }
      return null;
    } catch (error) {
      if (!(error instanceof VmcoreError) || error.code === 'ABORTED') throw error;
      await this.#checkConnection();
      return error.message;
    }
  }

  /** Without a connection there is no other way either. @throws VmcoreError why it has ended */
  async #checkConnection(): Promise<void> {
    const lost = await Promise.race([this.client.closed, Promise.resolve(null)]);
    if (lost) throw lost;
  }

  /** Takes a block when a page of it is as QEMU says. @throws VmcoreError */
  async #accept(block: ReadableBlock): Promise<void> {
    const page = await dataPage(block);
    if (page === null) this.#unchecked.push(block);
    else if (await this.#isEqual(block, page)) this.#found.push(block);
    else throw this.#mismatch(block, page);
  }

  #mismatch({ backing }: ReadableBlock, page: MemoryBlock): VmcoreError {
    const text = `${backing.name} has other bytes at ${describeBlock(page)} of the guest's memory than QEMU`;
    this.choice.onMismatch(text);
    return new VmcoreError('READ', text);
  }

  /**
   * A block that was never written to. To have QEMU dump of it would allocate a page of its file, and one zero page is
   * like another. It is taken where another block of the same file has been compared, or where QEMU's process shows
   * that this is the file.
   */
  async #acceptUntouched(block: ReadableBlock): Promise<void> {
    const { way, backing, base, length } = block;
    const isCompared = this.#found.some((found) => found.backing.name === backing.name);
    if (!isCompared && way === 'file') {
      const unlike = await this.#whyUnlike(block);
      if (unlike !== null) {
        const reason = `${backing.name} has no data, and so cannot be told from another file: ${unlike}`;
        throw noRandomAccess([{ base, length, reasons: [reason] }]);
      }
    }
    this.#found.push(block);
  }

  /** Why QEMU's process does not show that it has a block in the file where we read it; null when it does. */
  async #whyUnlike(block: ReadableBlock): Promise<string | null> {
    try {
      await checkMapped(this.client, block, this.choice.pid);
      return null;
    } catch (error) {
      if (!(error instanceof VmcoreError) || error.code === 'ABORTED') throw error;
      return error.message;
    }
  }

  async #isEqual(block: ReadableBlock, page: MemoryBlock): Promise<boolean> {
    const bytes = Buffer.alloc(page.length);
    await block.backing.read(block.offset + (page.base - block.base), bytes);
    return bytes.equals((await this.#dump(page)).bytes);
  }

  async #dump(range: MemoryBlock): Promise<DumpedRange> {
    this.#checkSignal();
    const dumped = await readRange(this.client, range);
    this.#machine ??= dumped.machine;
    return dumped;
  }

  async #take(block: MemoryBlock): Promise<ReadableBlock> {
    const { bytes } = await this.#dump(block);
    const name = `${this.client.name}, memory ${describeBlock(block)}`;
    return { base: block.base, length: block.length, offset: 0, way: 'stream', backing: new BytesBacking(name, bytes) };
  }
}

/** The file way. What QEMU says of its memory is asked once, and is the same for all blocks. */
function fileOpener(client: QmpClient, pid: number | undefined): (block: MemoryBlock) => Promise<ReadableBlock> {
  let known: Promise<{ ranges: FlatRange[]; backends: ReadonlyMap<string, SharedBackend> }> | null = null;
  const ask = async () => ({
    backends: await sharedBackends(client),
    ranges: parseFlatView(await humanMonitor(client, 'info mtree -f')),
  });
  return async ({ base, length }) => {
    known ??= ask();
    const { ranges, backends } = await known;
    const place = placeOf({ base, length }, ranges);
    const backend = place && backends.get(place.region);
    if (!backend) throw new VmcoreError('READ', 'it is in no shared file');
    const { backing, offset } = await openBackend(client, backend, { base, length, offset: place.offset }, pid);
    return { base, length, offset, backing, way: 'file' };
  };
}

/** The proc way. */
function processOpener(client: QmpClient, pid: number | undefined): (block: MemoryBlock) => Promise<ReadableBlock> {
  return async ({ base, length }) => {
    const { pid: found, address } = await findInProcess(client, { base, length }, pid);
    return { base, length, offset: address, backing: ProcessMemory.open(found), way: 'proc' };
  };
}

function firstPage({ base, length }: MemoryBlock): MemoryBlock {
  return { base, length: Math.min(PAGE_SIZE, length) };
}

/** Bytes that are read at a time, and at most, to find a page that is not zero. */
const PIECE = 256 << 10;
const SEARCHED = 64 << 20;

/**
 * A page of a block that is not zero. The search begins in the middle: what a machine's first pages hold is the same in
 * every machine of its kind, and so is not worth a comparison.
 * @returns null when there is none, as far as was searched
 */
async function dataPage(block: ReadableBlock): Promise<MemoryBlock | null> {
  const middle = block.base + Math.floor(block.length / 2 / PAGE_SIZE) * PAGE_SIZE;
  return (await firstDataPage(block, middle, blockEnd(block))) ?? firstDataPage(block, block.base, middle);
}

async function firstDataPage(block: ReadableBlock, from: number, to: number): Promise<MemoryBlock | null> {
  const piece = Buffer.alloc(PIECE);
  let searched = 0;
  for (const run of dataRuns(block, from, to))
    for (let at = run.start; at < run.end && searched < SEARCHED; at += PIECE) {
      const bytes = piece.subarray(0, Math.min(PIECE, run.end - at));
      await block.backing.read(block.offset + (at - block.base), bytes);
      const [found] = nonZeroRuns(bytes, 0);
      if (found) return { base: at + found.start, length: Math.min(PAGE_SIZE, bytes.length - found.start) };
      searched += bytes.length;
    }
  return null;
}

/** Bytes at hand. */
class BytesBacking implements Backing {
  constructor(
    readonly name: string,
    private readonly bytes: Uint8Array,
  ) {}

  readSync(offset: number, into: Uint8Array): void {
    into.set(this.bytes.subarray(offset, offset + into.length));
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.readSync(offset, into);
  }

  close(): void {}
}
