/**
 * An ELF core file as a guest: QEMU's and Cloud Hypervisor's, VirtualBox's, Xen's, /proc/vmcore.
 *
 * The file is opened for as long as the guest is; its memory is read where it stands, so that holes stay holes. Blocks
 * are those of the PT_LOADs (see elf-memory.ts); what has p_memsz beyond p_filesz was left out, reads as zeros, and is
 * told of as missing; what has p_offset -1 is not memory.
 */

import type { DecodedElfHeader, ProgramHeader } from '../../formats/elf.js';
import { FileBacking } from '../../io/file-backing.js';
import type { MissingPages } from '../../model/page-exclusion.js';
import { PAGE_SIZE } from '../../model/page-size.js';
import type { MemoryBlock, MemoryRegion } from '../../model/physical-memory.js';
import {
  checkStored,
  type CoreHeaders,
  type CoreReader,
  DEFAULT_ELF_LIMITS,
  type ElfLimits,
  readCoreHeaders,
  readElfHeader,
  truncatedError,
} from './elf-headers.js';
import { leftOutPages, machineBlocks, resolveMemory, type StoredBlock } from './elf-memory.js';
import { checkRepeats, repeatedMemory } from './elf-repeats.js';
import { isXenCore, readXenCore } from './xen-core.js';
import { MemoryGuest, type MemoryGuestFields } from '../memory-guest.js';
import { statfsSync } from 'node:fs';

/** A guest that came from an ELF core file. */
export class ElfCoreGuest extends MemoryGuest {
  /** the pages that were left out; null when none was */
  readonly missing: MissingPages | null;
  readonly #blocks: readonly MemoryBlock[];

  constructor(
    fields: MemoryGuestFields,
    /** the header, as it stands */
    readonly header: DecodedElfHeader,
    /** the program headers, as they stand */
    readonly programHeaders: readonly ProgramHeader[],
    pieces: readonly StoredBlock[],
  ) {
    super(fields);
    this.missing = leftOutPages(pieces);
    this.#blocks = machineBlocks(pieces);
  }

  override get blocks(): readonly MemoryBlock[] {
    return this.#blocks;
  }
}

/** f_type of procfs (linux/magic.h) */
const PROC_SUPER_MAGIC = 0x9fa0;

/**
 * Opens an ELF core file.
 * @param path   a regular file (or block device) that can seek; for a pipe see openElfStream
 * @param limits what its headers may make us hold and go through
 * @returns a guest that holds the file open until `close`
 * @throws VmcoreError READ when the file cannot be read; BAD_INPUT when it is not the core of an x86 machine or
 *   contradicts itself; TRUNCATED when it ends before what its headers claim; LIMIT; UNSUPPORTED (paravirtual Xen)
 */
export async function openElfCore(path: string, limits: ElfLimits = DEFAULT_ELF_LIMITS): Promise<ElfCoreGuest> {
  const file = FileBacking.open(path);
  try {
    return await readCore(file, limits);
  } catch (error) {
    file.close();
    throw error;
  }
}

async function readCore(file: FileBacking, limits: ElfLimits): Promise<ElfCoreGuest> {
  const reader = readerOf(file);
  const header = await readElfHeader(reader);
  const isXen = isXenCore(header);
  const headers = isXen
    ? await readXenCore(reader, header, limits)
    : await readCoreHeaders(reader, header, limits, { notesFirst: false });
  checkStored(file.name, file.size, headers.loads);
  const pieces = resolveMemory(file.name, headers, limits);
  const repeated = await compareRepeats(file, headers, pieces);
  const regions = pieces.map(({ base, length, offset }): MemoryRegion =>
    offset === null ? { base, length, backing: null, offset: 0 } : { base, length, backing: file, offset },
  );
  const { arch, cpus, notes, programHeaders } = headers;
  const assumption = isXen && repeated > 0 ? namedAgain(file.name, repeated) : headers.assumption;
  return new ElfCoreGuest({ name: file.name, arch, regions, cpus, notes, assumption }, header, programHeaders, pieces);
}

/**
 * Compares what the file has twice. In /proc both are the memory itself, which may change meanwhile: that is no
 * contradiction.
 * @returns how many bytes are there again
 */
async function compareRepeats(
  file: FileBacking,
  { loads }: CoreHeaders,
  pieces: readonly StoredBlock[],
): Promise<number> {
  const repeated = repeatedMemory(file.name, loads, pieces);
  if (repeated.length > 0 && statfsSync(file.name).type !== PROC_SUPER_MAGIC) await checkRepeats(file, repeated);
  return repeated.reduce((sum, { length }) => sum + length, 0);
}

function namedAgain(name: string, bytes: number): string {
  const pages = bytes / PAGE_SIZE;
  return `${name} names ${pages} page ${pages === 1 ? 'frame' : 'frames'} again; each has the same bytes both times, and is taken once`;
}

/** Reads parts of a file whose size is known, so that nothing is allocated for what is not there. */
function readerOf(file: FileBacking): CoreReader {
  return {
    name: file.name,
    async read(offset, length, what) {
      if (offset + length > file.size) throw truncatedError(file.name, file.size, what, offset + length);
      const bytes = new Uint8Array(length);
      await file.read(offset, bytes);
      return bytes;
    },
  };
}
