/** Which pages makedumpfile keeps of an ELF vmcore: the second bitmap of the kdump that it makes. */

import { execFileSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { PageSet } from '../../lib/model/page-set.js';
import { FileBacking } from '../../lib/io/file-backing.js';
import { DEFAULT_KDUMP_LIMITS, readKdumpHeaders } from '../../lib/sources/kdump/kdump-headers.js';
import { bitRuns } from '../../lib/sources/kdump/page-bitmap.js';

export interface MakedumpfilePages {
  /** One past the highest page frame that makedumpfile looked at: where the kernel's struct pages end. */
  readonly end: number;
  /** Pages that are in the dump; those of zeros are, as references to one that is stored. */
  readonly kept: PageSet;
}

/** Runs makedumpfile at a dump level; its output takes the place of `kdump`, and is removed. */
export async function makedumpfilePages(
  makedumpfile: string,
  elf: string,
  level: number,
  kdump: string,
): Promise<MakedumpfilePages> {
  execFileSync(makedumpfile, ['-l', '-d', `${level}`, elf, kdump], { stdio: 'pipe' });
  const file = FileBacking.open(kdump);
  try {
    const { maxMapnr, storedBitmapOffset } = readKdumpHeaders(file, DEFAULT_KDUMP_LIMITS);
    const kept = new PageSet();
    for await (const { start, end } of bitRuns({ file, offset: storedBitmapOffset, bits: maxMapnr }))
      kept.add(start, end - start);
    return { end: maxMapnr, kept };
  } finally {
    file.close();
    rmSync(kdump);
  }
}
