/**
 * What QEMU's own dump tells of a machine: which blocks of memory it has, and the bytes of a range of it with all of
 * the machine's notes.
 *
 * The blocks stand in the program headers of a dump of everything, which is given up before its notes are read: they
 * then fill the pipe's only page, and QEMU, which reads memory only to write it, never gets to the memory. The notes
 * come with a dump of one page that is known to hold data. So no page of a sparse memory file is allocated by asking.
 */

import { VmcoreError } from '../../model/errors.js';
import { PT_LOAD } from '../../formats/elf.js';
import type { Guest } from '../../model/guest.js';
import { describeBlock, type MemoryBlock, sortedBlocks } from '../../model/physical-memory.js';
import type { QmpClient } from '../../qmp/protocol/client.js';
import {
  type CoreReader,
  DEFAULT_ELF_LIMITS,
  readElfHeader,
  readProgramHeaderTable,
  truncatedError,
} from '../../sources/elf/elf-headers.js';
import { openElfStream } from '../../sources/elf/elf-stream.js';
import { QemuDump } from './qemu-dump.js';
import { chunkBytes } from '../../model/stage.js';

/** What is read of a dump for its program headers. */
const HEADERS_LIMIT = 32 << 20;

/**
 * The machine's memory blocks, as QEMU dumps them: sorted, adjacent ones apart where QEMU has them apart.
 * @throws VmcoreError when QEMU refuses to dump, or its dump is not what it should be
 */
export async function readBlocks(client: QmpClient): Promise<readonly MemoryBlock[]> {
  const dump = await QemuDump.start(client, { sparing: true });
  try {
    const reader = new HeaderReader(dump, `the dump by ${client.name}`);
    const header = await readElfHeader(reader);
    const table = await readProgramHeaderTable(reader, header, DEFAULT_ELF_LIMITS);
    const loads = table.filter(({ type, memsz }) => type === PT_LOAD && memsz > 0);
    return sortedBlocks(loads.map(({ paddr, memsz }) => ({ base: paddr, length: memsz })));
  } finally {
    dump.close();
    await dump.finished;
  }
}

/** Reads forward, no byte further than it must. */
class HeaderReader implements CoreReader {
  #bytes = Buffer.alloc(0);

  constructor(
    private readonly dump: QemuDump,
    readonly name: string,
  ) {}

  async read(offset: number, length: number, what: string): Promise<Uint8Array> {
    const end = offset + length;
    if (end > HEADERS_LIMIT)
      throw new VmcoreError('LIMIT', `${this.name}: ${what} reaches to byte ${end}, further than headers go`);
    const missing = Buffer.alloc(Math.max(0, end - this.#bytes.length));
    for (let done = 0; done < missing.length;) {
      const count = await this.dump.readSome(missing.subarray(done));
      if (count === 0) throw truncatedError(this.name, this.#bytes.length + done, what, end);
      done += count;
    }
    this.#bytes = Buffer.concat([this.#bytes, missing]);
    return this.#bytes.subarray(offset, end);
  }
}

/** A range of memory, and the machine that it is of. */
export interface DumpedRange {
  /** its bytes, as QEMU dumps them */
  readonly bytes: Uint8Array;
  /** architecture, CPU states and notes */
  readonly machine: Pick<Guest, 'arch' | 'cpus' | 'notes'>;
}

/**
 * Dumps a range that lies within a block.
 * @throws VmcoreError
 */
export async function readRange(client: QmpClient, range: MemoryBlock): Promise<DumpedRange> {
  const dump = await QemuDump.start(client, { range });
  try {
    const guest = await openElfStream(dump, `the dump by ${client.name}`);
    const bytes = new Uint8Array(range.length);
    let done = 0;
    for await (const chunk of guest.chunks()) {
      const at = chunk.paddr - range.base;
      const data = chunkBytes(chunk);
      if (at < 0 || at + chunk.length > bytes.length || !data) break;
      bytes.set(data, at);
      done += chunk.length;
    }
    if (done !== range.length)
      throw new VmcoreError('READ', `${client.name} was asked for memory ${describeBlock(range)}, and gave another`);
    return { bytes, machine: { arch: guest.arch, cpus: guest.cpus, notes: guest.notes } };
  } finally {
    dump.close();
    await dump.finished;
  }
}
