/**
 * What is asked of a dump, and the one check of it: a program without types, or one that computes its options, can ask
 * for anything, and what is no format or no number of threads is not to be found out half-way.
 *
 * The checks are our own because a schema library takes longer to load than many a dump takes.
 */

import type { MemoryBlock } from './model/physical-memory.js';
import { ALL_LEVELS } from './model/dump-level.js';
import { type Rule, YES_OR_NO, checkOptions, isWholeNumber, oneOf, wholeNumber } from './model/option-rules.js';

/** The formats that can be written; names as in QEMU's DumpGuestMemoryFormat. */
export const FORMATS = [
  'elf',
  'kdump-zlib',
  'kdump-lzo',
  'kdump-snappy',
  'kdump-raw-zlib',
  'kdump-raw-lzo',
  'kdump-raw-snappy',
  'win-dmp',
] as const;
/** One of FORMATS. */
export type Format = (typeof FORMATS)[number];

/** What is to be dumped. */
export interface DumpRequest {
  /** `elf` by default */
  readonly format?: Format | undefined;
  /** elf only: list virtual addresses by the guest's page tables, so that gdb can use them */
  readonly paging?: boolean | undefined;
  /** only this range of guest physical memory, in bytes; may span holes and the end of memory */
  readonly range?: MemoryBlock | undefined;
  /** bound on the mappings that paging may find; see resolveMappings */
  readonly maxMappings?: number | undefined;
  /** bound on the page tables that paging may read; see resolveMappings */
  readonly maxPageTables?: number | undefined;
  /** kdump: `fast` (the default) is the WebAssembly kernel in worker threads, `portable` plain JavaScript in this one */
  readonly codec?: 'fast' | 'portable' | undefined;
  /** kdump: threads that compress; as many as the machine has by default. The bytes do not depend on it */
  readonly threads?: number | undefined;
  /** kdump: 1, the default, is fast, 2 is smaller; zlib knows higher ones (`portable`: up to 9) */
  readonly level?: number | undefined;
  /** win-dmp: look for KDBG in a guest without a dump header of its driver's; true by default */
  readonly findKdbg?: boolean | undefined;
  /**
   * leave pages out: DL_EXCLUDE_* bits, 0 to 31, with the meaning of makedumpfile's dump levels. All but the lowest need
   * a Linux guest, VMCOREINFO and random access; none are left out when absent. Goes with elf and kdump
   */
  readonly dumpLevel?: number | undefined;
  /** what to do where the kernel's structures do not hold together: `refuse`, the default, or `keep` their pages */
  readonly excludeFallback?: 'refuse' | 'keep' | undefined;
  /**
   * kdump with `dumpLevel`: keep memory above all that the kernel has struct pages for (video memory, ROMs), which is
   * left out otherwise, where the guest has VMCOREINFO
   */
  readonly keepDeviceMemory?: boolean | undefined;
  /** elf: pages that are left out are zeros; without it, long runs of them end segments */
  readonly keepLayout?: boolean | undefined;
  /**
   * look for VMCOREINFO in memory; what is found takes the place of the one that the guest came with, if it did. By
   * default only when `dumpLevel` needs it and the guest came without. To look may take as long as reading all of the
   * memory
   */
  readonly findVmcoreinfo?: boolean | undefined;
}

const RANGE: Rule = {
  // A range of 0 bytes is refused where ranges are cut, in QEMU's words.
  what: '{ base, length } in bytes, whole numbers from 0 on',
  allows(value) {
    if (typeof value !== 'object' || value === null) return false;
    const { base, length } = value as Partial<MemoryBlock>;
    return isWholeNumber(base, 0) && isWholeNumber(length, 0);
  },
};

/** The rules of all options; one that is absent is always right. */
const RULES: Readonly<Record<keyof DumpRequest, Rule>> = {
  format: oneOf(FORMATS),
  paging: YES_OR_NO,
  range: RANGE,
  maxMappings: wholeNumber(1),
  maxPageTables: wholeNumber(1),
  codec: oneOf(['fast', 'portable']),
  threads: wholeNumber(1),
  level: wholeNumber(1),
  findKdbg: YES_OR_NO,
  dumpLevel: wholeNumber(0, ALL_LEVELS),
  excludeFallback: oneOf(['refuse', 'keep']),
  keepDeviceMemory: YES_OR_NO,
  keepLayout: YES_OR_NO,
  findVmcoreinfo: YES_OR_NO,
};

/** @throws VmcoreError USAGE that names the option which is wrong, what it has to be, and what it was */
export function checkRequest(request: DumpRequest): void {
  checkOptions(request, RULES);
}
