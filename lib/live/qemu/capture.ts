/**
 * A live machine, saved as a guest description: registers, blocks and VMCOREINFO in small files, and for the memory
 * where it is in the file behind it. What is in no such file (ROM, device memory) is little, and is copied.
 */

import { basename, resolve } from 'node:path';
import { VmcoreError } from '../../model/errors.js';
import { NOTE_NAME_VMCOREINFO } from '../../formats/notes.js';
import type { Guest } from '../../model/guest.js';
import { humanMonitor, type QmpClient } from '../../qmp/protocol/client.js';
import {
  describeCpu,
  type GuestDescription,
  writeGuestDescription,
} from '../../sources/description/guest-description.js';

/** A file of a capture. */
export interface CapturedFile {
  readonly path: string;
  readonly bytes: Uint8Array;
}

/**
 * Describes a machine that stands still.
 * @param guest the machine, opened with `memoryPath: 'file'`
 * @param path  of the description; its other files get names that begin with it
 * @returns the files to write, the description last: it names the others
 * @throws VmcoreError UNSUPPORTED when the memory is in no file; READ
 */
export async function captureGuest(client: QmpClient, guest: Guest, path: string): Promise<readonly CapturedFile[]> {
  const registers = { path: `${path}.registers`, bytes: Buffer.from(await humanMonitor(client, 'info registers -a')) };
  const vmcoreinfo = guest.notes.find(({ name }) => name === NOTE_NAME_VMCOREINFO);
  const { memory, copied } = describeMemory(guest, `${path}.blocks`);
  const description: GuestDescription = {
    version: 1,
    arch: guest.arch,
    memory,
    registers: basename(registers.path),
    cpus: guest.cpus.map(describeCpu),
    ...(vmcoreinfo ? { vmcoreinfo: `${basename(path)}.vmcoreinfo` } : {}),
  };
  return [
    registers,
    ...(vmcoreinfo ? [{ path: `${path}.vmcoreinfo`, bytes: vmcoreinfo.raw }] : []),
    ...(copied.bytes.length > 0 ? [copied] : []),
    { path, bytes: Buffer.from(writeGuestDescription(description)) },
  ];
}

/** Blocks in the file by its absolute path; the others, back to back, in one of ours. */
function describeMemory(guest: Guest, path: string): { memory: GuestDescription['memory']; copied: CapturedFile } {
  if (!guest.memory || !guest.live) throw new VmcoreError('UNSUPPORTED', `${guest.name} cannot be captured`);
  const ways = new Map(guest.live.report.memory.map(({ base, way, from }) => [base, { way, from }]));
  const parts: Buffer[] = [];
  let offset = 0;
  const memory = guest.memory.regions.map(({ base, length, offset: fileOffset }) => {
    const { way, from } = ways.get(base)!;
    if (way === 'file') return { base, length, file: resolve(from), offset: fileOffset };
    const bytes = Buffer.alloc(length);
    guest.memory!.read(base, bytes);
    parts.push(bytes);
    offset += length;
    return { base, length, file: basename(path), offset: offset - length };
  });
  return { memory, copied: { path, bytes: Buffer.concat(parts) } };
}
