/**
 * An ELF core file as a guest: QEMU's and Cloud Hypervisor's, VirtualBox's, Xen's, /proc/vmcore.
 *
 * The file is opened for as long as the guest is; its memory is read where it stands, so that holes stay holes. Blocks
 * are those of the PT_LOADs (see elf-memory.ts); what has p_filesz < p_memsz is a block of zeros behind that of its
 * bytes; what has no bytes in the file at all (p_filesz 0, p_offset -1) is not memory.
 */

import type { DecodedElfHeader, ProgramHeader } from '../../formats/elf.js';
import type { MemoryRegion } from '../../model/physical-memory.js';
import {
  checkStored,
  type CoreHeaders,
  type CoreReader,
  DEFAULT_ELF_LIMITS,
  type ElfLimits,
  readCoreHeaders,
  readElfHeader,
  readProgramHeaderTable,
  truncatedError,
} from './elf-headers.js';
import { resolveMemory } from './elf-memory.js';
import { FileBacking } from '../../io/file-backing.js';
import { MemoryGuest, type MemoryGuestFields } from '../memory-guest.js';
import { isXenCore, readXenCore } from './xen-core.js';

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
  const headers = await readHeaders(reader, await readElfHeader(reader), limits);
  checkStored(file.name, file.size, headers.loads);
  const regions = resolveMemory(file.name, headers, limits).map(({ base, length, offset }): MemoryRegion =>
    offset === null ? { base, length, backing: null, offset: 0 } : { base, length, backing: file, offset },
  );
  const { arch, cpus, notes } = headers;
  return new ElfCoreGuest({ name: file.name, arch, regions, cpus, notes }, reader, limits);
}

function readHeaders(reader: CoreReader, header: DecodedElfHeader, limits: ElfLimits): Promise<CoreHeaders> {
  if (isXenCore(header)) return readXenCore(reader, header, limits);
  return readCoreHeaders(reader, header, limits, { notesFirst: false });
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

/** Header and program headers of an ELF core, as they stand. */
export interface CoreProgramHeaders {
  readonly header: DecodedElfHeader;
  readonly programHeaders: readonly ProgramHeader[];
}

/** The guest of an ELF core file. */
export class ElfCoreGuest extends MemoryGuest {
  constructor(
    fields: MemoryGuestFields,
    private readonly reader: CoreReader,
    private readonly limits: ElfLimits,
  ) {
    super(fields);
  }

  /** The table itself, for those who want to see it; of a core with sections only it is empty. @throws VmcoreError */
  async programHeaders(): Promise<CoreProgramHeaders> {
    const header = await readElfHeader(this.reader);
    if (isXenCore(header)) return { header, programHeaders: [] };
    return { header, programHeaders: await readProgramHeaderTable(this.reader, header, this.limits) };
  }
}
