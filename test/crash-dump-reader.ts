/**
 * A reader of full Windows crash dumps that shares no line with lib/, for want of one in a package registry. It goes by
 * what readers say of themselves: windows-sys's DUMP_HEADER64 and DUMP_HEADER32, added up member by member; volatility3's
 * crash layer (the first run begins behind the header, each next one behind the one before); kdmp-parser (a map from
 * page addresses to file offsets, addresses translated page by page through it, KPRCBs by KDBG). It believes what it
 * reads.
 */

import { closeSync, fstatSync, openSync, readSync } from 'node:fs';

/** Members of the headers in their order, with their bytes: u32, pointers of the dump's width, or a number of bytes. */
const MEMBERS_64 =
  'Signature:4 ValidDump:4 MajorVersion:4 MinorVersion:4 DirectoryTableBase:8 PfnDataBase:8 PsLoadedModuleList:8 PsActiveProcessHead:8 MachineImageType:4 NumberProcessors:4 BugCheckCode:4 pad:4 BugCheckParameter1:8 BugCheckParameter2:8 BugCheckParameter3:8 BugCheckParameter4:8 VersionUser:32 KdDebuggerDataBlock:8 PhysicalMemoryBlock:704 ContextRecord:3000 Exception:152 DumpType:4 pad:4 RequiredDumpSpace:8 SystemTime:8 Comment:128 SystemUpTime:8 MiniDumpFields:4 SecondaryDataState:4 ProductType:4 SuiteMask:4 WriterStatus:4 Unused1:1 KdSecondaryVersion:1 Unused:2 Attributes:4 BootId:4 reserved:4008';
const MEMBERS_32 =
  'Signature:4 ValidDump:4 MajorVersion:4 MinorVersion:4 DirectoryTableBase:4 PfnDataBase:4 PsLoadedModuleList:4 PsActiveProcessHead:4 MachineImageType:4 NumberProcessors:4 BugCheckCode:4 BugCheckParameter1:4 BugCheckParameter2:4 BugCheckParameter3:4 BugCheckParameter4:4 VersionUser:32 PaeEnabled:1 KdSecondaryVersion:1 Spare3:2 KdDebuggerDataBlock:4 PhysicalMemoryBlock:700 ContextRecord:1200 Exception:80 Comment:128 Attributes:4 BootId:4 reserved0:1760 DumpType:4 MiniDumpFields:4 SecondaryDataState:4 ProductType:4 SuiteMask:4 WriterStatus:4 RequiredDumpSpace:8 reserved2:16 SystemUpTime:8 SystemTime:8 reserved3:56';

/** KDDEBUGGER_DATA64 as far as it is used: counted in 8-byte slots, the offsets of 16 bits behind MmVirtualTranslationBase. */
const KDBG_SLOT = { KernBase: 3, KiBugcheckData: 17, KiProcessorBlock: 67, EtwpDebuggerData: 102 } as const;

/** CONTEXT: PHome 6 × 8, then; i386: ContextFlags first. */
const CONTEXT_64 =
  'home:48 ContextFlags:4 MxCsr:4 SegCs:2 SegDs:2 SegEs:2 SegFs:2 SegGs:2 SegSs:2 EFlags:4 Dr0:8 Dr1:8 Dr2:8 Dr3:8 Dr6:8 Dr7:8 Rax:8 Rcx:8 Rdx:8 Rbx:8 Rsp:8 Rbp:8 Rsi:8 Rdi:8 R8:8 R9:8 R10:8 R11:8 R12:8 R13:8 R14:8 R15:8 Rip:8';
const CONTEXT_32 =
  'ContextFlags:4 Dr0:4 Dr1:4 Dr2:4 Dr3:4 Dr6:4 Dr7:4 FloatSave:112 SegGs:4 SegFs:4 SegEs:4 SegDs:4 Edi:4 Esi:4 Ebx:4 Edx:4 Ecx:4 Eax:4 Ebp:4 Eip:4 SegCs:4 EFlags:4 Esp:4 SegSs:4';

export type Members = Readonly<Record<string, bigint>>;

export interface CrashDump {
  readonly bits: 64 | 32;
  /** members of at most 8 bytes */
  readonly header: Members;
  readonly runs: readonly (readonly [basePage: bigint, pageCount: bigint])[];
  /** address of KDBG's tag holds `KDBG` */
  readonly hasKdbg: boolean;
  readonly kernBase: bigint;
  /** the context of each processor, by KDBG */
  readonly contexts: readonly Members[];
  /** bytes that KiBugcheckData points to */
  readonly bugcheck: Buffer | null;
  /** bytes behind the last run */
  readonly trailing: number;
}

function little(bytes: Buffer): bigint {
  return bytes.reduceRight((value, byte) => value * 256n + BigInt(byte), 0n);
}

function members(layout: string, bytes: Buffer): Members {
  let at = 0;
  return Object.fromEntries(
    layout.split(' ').flatMap((member) => {
      const [name, size] = member.split(':') as [string, string];
      const part = bytes.subarray(at, at + Number(size));
      at += Number(size);
      return part.length <= 8 ? [[name, little(part)] as const] : [];
    }),
  );
}

function offsetOf(layout: string, wanted: string): number {
  const names = layout.split(' ').map((member) => member.split(':') as [string, string]);
  return names
    .slice(
      0,
      names.findIndex(([name]) => name === wanted),
    )
    .reduce((sum, [, size]) => sum + Number(size), 0);
}

/** Reads all there is of a dump. */
export function readCrashDump(path: string): CrashDump {
  const fd = openSync(path, 'r');
  try {
    return read(fd);
  } finally {
    closeSync(fd);
  }
}

function read(fd: number): CrashDump {
  const bytesAt = (offset: number, length: number): Buffer => {
    const bytes = Buffer.alloc(length);
    const count = readSync(fd, bytes, 0, length, offset);
    if (count !== length) throw new Error(`the dump ends within 0x${offset.toString(16)}+0x${length.toString(16)}`);
    return bytes;
  };
  const kind = bytesAt(0, 8).toString('latin1');
  if (kind !== 'PAGEDU64' && kind !== 'PAGEDUMP') throw new Error(`not a crash dump: ${kind}`);
  const bits = kind === 'PAGEDU64' ? 64 : 32;
  const [layout, pointer, headerPages] = bits === 64 ? [MEMBERS_64, 8, 2] : [MEMBERS_32, 4, 1];
  const bytes = bytesAt(0, headerPages * 4096);
  const header = members(layout, bytes);
  if (header['DumpType'] !== 1n) throw new Error(`DumpType ${header['DumpType']}`);

  const block = bytes.subarray(offsetOf(layout, 'PhysicalMemoryBlock'));
  const runs = Array.from({ length: block.readUInt32LE(0) }, (_, i) => {
    // Two numbers of the pointer's width come first: NumberOfRuns (padded) and NumberOfPages.
    const at = pointer * (2 + 2 * i);
    return [little(block.subarray(at, at + pointer)), little(block.subarray(at + pointer, at + 2 * pointer))] as const;
  });
  const places = new Map<bigint, number>();
  let offset = bytes.length;
  for (const [base, count] of runs)
    for (let pfn = base; pfn < base + count; pfn++, offset += 4096) if (!places.has(pfn)) places.set(pfn, offset);

  const page = (address: bigint): Buffer | null => {
    const place = places.get(address >> 12n);
    return place === undefined ? null : bytesAt(place, 4096);
  };
  const translate = bits === 64 ? walk4 : header['PaeEnabled'] === 1n ? walkPae : walk2;
  const virtual = (address: bigint, length: number): Buffer | null => {
    const parts: Buffer[] = [];
    for (let at = address, left = length; left > 0;) {
      const inPage = Number(at & 0xfffn);
      const physical = translate(page, header['DirectoryTableBase']!, at);
      const whole = physical === null ? null : page(physical);
      if (whole === null) return null;
      const part = whole.subarray(inPage, Math.min(4096, inPage + left));
      parts.push(part);
      left -= part.length;
      at += BigInt(part.length);
    }
    return Buffer.concat(parts);
  };
  const pointerAt = (address: bigint): bigint => {
    const bytes = virtual(address, pointer);
    if (bytes === null) throw new Error(`0x${address.toString(16)} cannot be read`);
    return little(bytes);
  };

  const kdbg = header['KdDebuggerDataBlock']!;
  const slot = (name: keyof typeof KDBG_SLOT) => kdbg + 8n * BigInt(KDBG_SLOT[name]);
  const toContext = little(virtual(slot('EtwpDebuggerData') + 8n, 2)!);
  const [context, size] = bits === 64 ? [CONTEXT_64, 0x4d0] : [CONTEXT_32, 716];
  const contexts = Array.from({ length: Number(header['NumberProcessors']) }, (_, i) => {
    const prcb = pointerAt(pointerAt(slot('KiProcessorBlock')) + BigInt(pointer * i));
    return members(context, virtual(pointerAt(prcb + toContext), size)!);
  });
  return {
    bits,
    header,
    runs,
    hasKdbg: virtual(kdbg + 16n, 4)?.toString('latin1') === 'KDBG',
    kernBase: pointerAt(slot('KernBase')),
    contexts,
    bugcheck: virtual(pointerAt(slot('KiBugcheckData')), 5 * pointer),
    trailing: fstatSync(fd).size - offset,
  };
}

type PageOf = (address: bigint) => Buffer | null;

const ADDRESS = 0xf_ffff_ffff_f000n;
const PRESENT = 1n;
const LARGE = 0x80n;

function entry(page: PageOf, table: bigint, index: bigint, size: number): bigint {
  const at = (table & 0xfffn) + index * BigInt(size);
  const bytes = page(table);
  return bytes ? little(bytes.subarray(Number(at), Number(at) + size)) : 0n;
}

/** Entries of 8 bytes, `levels` of tables of 512. */
function walk8(page: PageOf, table: bigint, address: bigint, levels: number): bigint | null {
  const shift = BigInt(12 + 9 * (levels - 1));
  const found = entry(page, table, (address >> shift) & 511n, 8);
  if ((found & PRESENT) === 0n) return null;
  const inside = address & ((1n << shift) - 1n);
  if (levels === 1) return (found & ADDRESS) | inside;
  if (levels < 4 && (found & LARGE) !== 0n) return (found & ADDRESS & ~((1n << shift) - 1n)) | inside;
  return walk8(page, found & ADDRESS, address, levels - 1);
}

function walk4(page: PageOf, base: bigint, address: bigint): bigint | null {
  return walk8(page, base & ADDRESS, address, 4);
}

function walkPae(page: PageOf, base: bigint, address: bigint): bigint | null {
  const top = entry(page, base & ~0x1fn, (address >> 30n) & 3n, 8);
  return (top & PRESENT) === 0n ? null : walk8(page, top & ADDRESS, address, 2);
}

function walk2(page: PageOf, base: bigint, address: bigint): bigint | null {
  const pde = entry(page, base & ~0xfffn, address >> 22n, 4);
  if ((pde & PRESENT) === 0n) return null;
  if ((pde & LARGE) !== 0n) return (pde & 0xffc0_0000n) | (address & 0x3f_ffffn);
  const pte = entry(page, pde & ~0xfffn, (address >> 12n) & 1023n, 4);
  return (pte & PRESENT) === 0n ? null : (pte & ~0xfffn) | (address & 0xfffn);
}
