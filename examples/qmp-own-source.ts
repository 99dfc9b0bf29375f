/**
 * A guest of one's own behind QEMU's monitor protocol: here 16 MiB whose every word is its own address. Anything that
 * can say what bytes are at an offset can be served, and dumped by whatever talks to QEMU.
 *
 *   node dist/examples/qmp-own-source.js stdio
 *   node dist/examples/qmp-own-source.js unix:/tmp/own.qmp
 */

import { type Backing, type ChunkOptions, type Guest, MemorySource, PhysicalMemory, QmpServer } from '../lib/index.js';

class AddressMemory implements Backing {
  readonly name = 'addresses';
  readSync(offset: number, into: Uint8Array): void {
    const view = new DataView(into.buffer, into.byteOffset, into.length);
    for (let at = 0; at + 8 <= into.length; at += 8) view.setBigUint64(at, BigInt(offset + at), true);
  }
  read = async (offset: number, into: Uint8Array): Promise<void> => this.readSync(offset, into);
  close(): void {}
}

class AddressGuest implements Guest {
  readonly name = 'addresses';
  readonly arch = 'x86_64';
  readonly cpus = [];
  readonly notes = [];
  readonly blocks = [{ base: 0, length: 16 << 20, backing: new AddressMemory(), offset: 0 }];
  readonly memory = new PhysicalMemory(this.blocks);
  chunks = (options?: ChunkOptions) => new MemorySource(this.blocks, options);
  close(): void {}
}

const server = new QmpServer(new AddressGuest());
await server.listen(process.argv[2] ?? 'stdio');
await server.finished;
await server.close();
