/** A file with VMCOREINFO, for a guest that does not bring it: the text as the kernel has it, or a whole ELF note. */

import { VmcoreError } from '../../model/errors.js';
import { fileNote, VMCOREINFO_LIMIT } from '../../formats/vmcoreinfo.js';
import { readSmallFile } from '../../io/small-file.js';
import type { ElfNote } from '../../model/note.js';

/**
 * The note that a file holds.
 * @throws VmcoreError READ, or BAD_INPUT when there is no VMCOREINFO in it or it is larger than any
 */
export async function readVmcoreinfo(path: string): Promise<ElfNote> {
  const note = fileNote(await readSmallFile(path, 'VMCOREINFO', VMCOREINFO_LIMIT));
  if (note !== null) return note;
  throw new VmcoreError(
    'BAD_INPUT',
    `no VMCOREINFO in ${path}; give the text that begins with OSRELEASE=…, or the whole ELF note`,
  );
}
