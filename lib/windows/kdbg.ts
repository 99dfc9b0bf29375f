/**
 * KDBG, the block that Windows keeps for debuggers: KDDEBUGGER_DATA64 of Microsoft's wdbgexts.h, the same in kernels of
 * 32 bits, whose pointers are the lower halves of its 64-bit slots. Since Windows 8 the kernel encodes it until a
 * debugger or a crash asks for it.
 */

/** Header.OwnerTag */
export const KDBG_TAG = 'KDBG';

/** Offsets of members, in bytes; pointers but for OwnerTag, Size, PaeEnabled and Offset… */
export const KDBG = {
  /** Header.List: LIST_ENTRY, of pointers as wide as the kernel's, in the list of such blocks */
  List: 0x0,
  OwnerTag: 0x10,
  /** Header.Size, u32: bytes of the whole block */
  Size: 0x14,
  /** where the kernel's image begins */
  KernBase: 0x18,
  /** u16, bit 0 */
  PaeEnabled: 0x36,
  PsLoadedModuleList: 0x48,
  PsActiveProcessHead: 0x50,
  KiBugcheckData: 0x88,
  MmPfnDatabase: 0xc0,
  /** the text of the build: `19041.1.amd64fre.vb_release.191206-1406` */
  NtBuildLab: 0x208,
  /** array of pointers to KPRCBs */
  KiProcessorBlock: 0x218,
  /** a variable that points to a PHYSICAL_MEMORY_DESCRIPTOR */
  MmPhysicalMemoryBlock: 0x270,
  /** u16: where in a KPRCB the pointer to the context frame is; since Windows 7 */
  OffsetPrcbContext: 0x338,
} as const;

/** Bytes up to OffsetPrcbContext and with it: a block that is shorter leads to no context frames. */
export const KDBG_MIN_SIZE = 0x33a;

/** More than any version has. */
export const KDBG_MAX_SIZE = 0x1000;
