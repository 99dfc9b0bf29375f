/**
 * A kdump from a stream that cannot seek. Its descriptors and pages come in any order, so it is written to a temporary
 * file first, put together if it was flattened; the file has no name and is gone when the guest is closed, whatever
 * happens to the process.
 */

import { tmpdir } from 'node:os';
import { VmcoreError } from '../../model/errors.js';
import {
  decodeFlattenedRecord,
  FLATTENED_HEADER_SIZE,
  FLATTENED_RECORD_SIZE,
  isFlattened,
} from '../../formats/flattened.js';
import type { DataRun } from '../../model/physical-memory.js';
import { type ByteInput, type ByteSource, openByteInput } from '../../io/byte-input.js';
import type { FileBacking } from '../../io/file-backing.js';
import { type KdumpGuest, readKdump } from './kdump-core.js';
import { DEFAULT_KDUMP_LIMITS, isKdump, type KdumpLimits } from './kdump-headers.js';
import type { RandomFile } from '../../io/random-file.js';
import { SpoolFile } from '../../io/spool-file.js';

/** Read from the stream at a time. */
const PIECE_BYTES = 1 << 20;

/** How a stream is kept. */
export interface KdumpStreamOptions {
  /** folder of the temporary file; the system's by default (TMPDIR) */
  readonly folder?: string | undefined;
  /** bytes that may be written there; as many as there is room for by default */
  readonly maxBytes?: number | undefined;
  readonly limits?: KdumpLimits | undefined;
}

/**
 * Opens a kdump-compressed vmcore that comes as a stream, flattened or raw, when all of it has come.
 * @param name what to call it in messages
 * @throws VmcoreError as openKdump; WRITE when there is no room for the temporary file; LIMIT
 */
export async function openKdumpStream(
  source: ByteSource,
  name: string,
  options: KdumpStreamOptions = {},
): Promise<KdumpGuest> {
  const input = openByteInput(source, name);
  let spool: Spool | null = null;
  try {
    spool = new Spool(name, options);
    const flattened = await receive(new Pieces(input, name), spool, name);
    const file = spool.reopen();
    try {
      return await readKdump(file, flattened, options.limits ?? DEFAULT_KDUMP_LIMITS);
    } catch (error) {
      file.close();
      throw error;
    }
  } finally {
    spool?.close();
    input.close();
  }
}

/** Writes the stream to the spool. Returns whether it was flattened. */
async function receive(input: Pieces, spool: Spool, name: string): Promise<boolean> {
  const start = await input.exactly(FLATTENED_HEADER_SIZE, 'a kdump header');
  if (isFlattened(start)) {
    await putTogether(input, spool, name);
    return true;
  }
  if (!isKdump(start)) throw new VmcoreError('BAD_INPUT', `${name} is not a kdump-compressed vmcore`);
  await spool.write(0, start);
  let at = start.length;
  for (let piece = await input.some(PIECE_BYTES); piece; piece = await input.some(PIECE_BYTES)) {
    await spool.write(at, piece);
    at += piece.length;
  }
  return false;
}

/** Writes each record's data where it belongs; as with makedumpfile -R the later one counts. */
async function putTogether(input: Pieces, spool: Spool, name: string): Promise<void> {
  for (;;) {
    const record = decodeFlattenedRecord(await input.exactly(FLATTENED_RECORD_SIZE, 'a flattened record'));
    if (record === 'end') return;
    if (record === null)
      throw new VmcoreError('BAD_INPUT', `${name}: a flattened record has a negative offset or size, or none`);
    for (let done = 0; done < record.size;) {
      const piece = await input.some(Math.min(PIECE_BYTES, record.size - done));
      if (!piece) throw ended(name, `a flattened record of ${record.size} bytes`);
      await spool.write(record.offset + done, piece);
      done += piece.length;
    }
  }
}

function ended(name: string, what: string): VmcoreError {
  return new VmcoreError('TRUNCATED', `${name} ends within ${what}`);
}

/** A stream in pieces of chosen size; the bytes are valid until the next. */
class Pieces {
  readonly #input: ByteInput;
  readonly #name: string;
  readonly #buffer = new Uint8Array(PIECE_BYTES);

  constructor(input: ByteInput, name: string) {
    this.#input = input;
    this.#name = name;
  }

  /** At least one and at most `limit` bytes; null at the end. */
  async some(limit: number): Promise<Uint8Array | null> {
    const count = await this.#input.readSome(this.#buffer.subarray(0, limit));
    return count === 0 ? null : this.#buffer.subarray(0, count);
  }

  /** @throws VmcoreError TRUNCATED */
  async exactly(length: number, what: string): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length;) {
      const count = await this.#input.readSome(bytes.subarray(done));
      if (count === 0) throw ended(this.#name, what);
      done += count;
    }
    return bytes;
  }
}

/** A temporary file that may not grow without bound. */
class Spool {
  readonly #file: SpoolFile;
  #left: number;

  constructor(
    readonly name: string,
    { folder = tmpdir(), maxBytes = Number.POSITIVE_INFINITY }: KdumpStreamOptions,
  ) {
    this.#file = SpoolFile.create(folder);
    this.#left = maxBytes;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    this.#left -= bytes.length;
    if (this.#left < 0) throw new VmcoreError('LIMIT', `${this.name} has more bytes than maxBytes allows to keep`);
    await this.#file.write(offset, bytes);
  }

  /** The same file, to be read. */
  reopen(): RandomFile {
    return new NamedFile(this.#file.reopen(), this.name);
  }

  close(): void {
    this.#file.close();
  }
}

/** A file under the name of what it came from. */
class NamedFile implements RandomFile {
  readonly size: number;

  constructor(
    readonly file: FileBacking,
    readonly name: string,
  ) {
    this.size = file.size;
  }

  readSync(offset: number, into: Uint8Array): void {
    this.file.readSync(offset, into);
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    return this.file.read(offset, into);
  }

  nextData(offset: number, end: number): DataRun | null {
    return this.file.nextData(offset, end);
  }

  close(): void {
    this.file.close();
  }
}
