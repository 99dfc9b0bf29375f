/** Chunks as tests write and read them: without the kind, which follows from whether there are bytes. */
import { type Chunk, chunkBytes, releaseChunk } from '../lib/model/stage.js';

export interface PlainChunk {
  readonly paddr: number;
  readonly length: number;
  readonly data?: Uint8Array | undefined;
  readonly memory?: number | undefined;
  readonly release?: (() => void) | undefined;
}

/** A chunk of bytes, or a hole where there are none. */
export function chunkOf({ paddr, length, data, memory, release }: PlainChunk): Chunk {
  return data ? { kind: 'bytes', paddr, length, data, memory, release } : { kind: 'hole', paddr, length, memory };
}

/** What is in a chunk; of a hole no bytes. */
export function plain(chunk: Chunk): PlainChunk & { release(): void } {
  const { paddr, length, memory } = chunk;
  return { paddr, length, memory, data: chunkBytes(chunk) ?? undefined, release: () => releaseChunk(chunk) };
}

/** The chunks of a stream, plainly. */
export async function* plainly(chunks: AsyncIterable<Chunk>): AsyncGenerator<ReturnType<typeof plain>> {
  for await (const chunk of chunks) yield plain(chunk);
}
