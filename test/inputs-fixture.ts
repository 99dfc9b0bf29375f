/** Small files of the kinds that people name as sources: each has what its kind begins with, and little more. */

import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';

const MIB = 2 ** 20;

function u32(...values: readonly number[]): Buffer {
  return Buffer.from(Uint32Array.from(values).buffer);
}

function bytes(...parts: readonly (string | Buffer | number)[]): Buffer {
  return Buffer.concat(
    parts.map((part) =>
      typeof part === 'string' ? Buffer.from(part, 'latin1') : typeof part === 'number' ? Buffer.alloc(part) : part,
    ),
  );
}

/** A LiME header: magic, version, first and last address, reserved. */
function lime(first: bigint, last: bigint): Buffer {
  return bytes(u32(0x4c694d45, 1), Buffer.from(BigUint64Array.of(first, last, 0n).buffer));
}

function bitmapDump(): Buffer {
  const header = Buffer.alloc(0x2000);
  header.write('PAGEDU64', 'latin1');
  header.writeUInt32LE(5, 0xf98);
  header.writeUInt32LE(0x8664, 0x30);
  return bytes(header, 'FDMPDUMP', 8192);
}

const PAGE = Buffer.alloc(4096, 'A');
const LIBVIRT_HEADER = u32(2, 10, 0, 0, 0);

/** Files that are known, and what says so in the message. */
export const CONTAINERS: Readonly<Record<string, { readonly content: Buffer; readonly named: RegExp }>> = {
  'stream.qevm': {
    content: bytes('QEVM', '\0\0\0\x03', '\x07', '\0\0\0\x0f', 'pc-i440fx-7.2xx', 4096),
    named: /is a migration stream of QEMU; .*qmp:PATH/,
  },
  'saved.libvirt': {
    content: bytes('LibvirtQemudSave', LIBVIRT_HEADER, 4096),
    named: /is a save file of libvirt; .*virsh restore/,
  },
  'saved.part': {
    content: bytes('LibvirtQemudPart', LIBVIRT_HEADER, 4096),
    named: /is an incomplete save file of libvirt.*save it again/,
  },
  'one-page.lime': { content: bytes(lime(0x1000n, 0x1fffn), PAGE), named: /is a LiME image; .*guest description/ },
  'huge-range.lime': { content: bytes(lime(0n, 2n ** 63n), PAGE), named: /is a LiME image/ },
  'state.vmss': { content: bytes(u32(0xbed2bed0, 8, 1), 4096), named: /is VMware's state of a machine; .*\.vmem/ },
  'saved.vmrs': { content: bytes('\x01\0\0\0HyperV\0', 4096), named: /is Hyper-V's saved state of a machine/ },
  'x.xz': { content: bytes('\xfd7zXZ\0', 100), named: /is xz-compressed; .*xzcat/ },
  'x.bz2': { content: bytes('BZh91AY', 100), named: /is bzip2-compressed; .*bzcat/ },
  'x.lz4': { content: bytes('\x04\x22\x4d\x18', 100), named: /is lz4-compressed; .*lz4cat/ },
  'x.zip': { content: bytes('PK\x03\x04', 100), named: /is a zip archive; unpack it/ },
  'x.lzo': { content: bytes('\x89LZO\0\r\n\x1a\n', 100), named: /is lzop-compressed; .*lzop -dc/ },
  'x.gz': { content: bytes('\x1f\x8b\x08', 100), named: /is gzip-compressed; .*zcat/ },
  'x.zst': { content: bytes('(\xb5/\xfd', 100), named: /is zstd-compressed; .*zstdcat/ },
  'x.tar': { content: bytes(257, 'ustar', 250), named: /is a tar archive; unpack it/ },
  'disk.qcow2': { content: bytes('QFI\xfb\0\0\0\x03', 500), named: /is a disk image \(qcow2\), not memory/ },
  'bitmap.dmp': { content: bitmapDump(), named: /Windows crash dump/ },
};

/** A sparse memory file with a text at one place of it. */
function markedMemory(folder: string, name: string, size: number, at: number): string {
  const path = join(folder, name);
  const fd = openSync(path, 'w');
  ftruncateSync(fd, size);
  writeSync(fd, MARKER, at);
  closeSync(fd);
  return path;
}

/** What the memory files below have at 4 GiB when they are laid out as their machine does. */
export const MARKER = 'FIRST-ABOVE-4G';

/** 4 GiB of a Firecracker whose hole had 768 MiB. */
export function firecrackerOldMemory(folder: string): string {
  return markedMemory(folder, 'firecracker-old.mem', 4096 * MIB, 3328 * MIB);
}

/** 3.25 GiB of a machine whose hole begins at 3 GiB: Cloud Hypervisor, microvm, VMware. */
export function vmm3gMemory(folder: string): string {
  return markedMemory(folder, 'vmm-3g.mem', 3328 * MIB, 3072 * MIB);
}
