/**
 * What files are that people have of a machine and that no guest can be made of as they are: each by its first bytes,
 * with what it is and what to do about it. A new one is a row.
 */

/** A file that is known and cannot be read. */
interface Container {
  /** bytes as latin1 text, and where they stand */
  readonly magic: string;
  readonly at?: number;
  /** `a QEMU migration stream` */
  readonly what: string;
  /** what to do, with FILE for its path */
  readonly advice: string;
}

function packed(magic: string, name: string, program: string): Container {
  const what = `${name}-compressed`;
  return { magic, what, advice: `decompress it first, for example \`${program} FILE | vmcore dump -\`` };
}

function archive(magic: string, name: string, at = 0): Container {
  return { magic, at, what: `a ${name} archive`, advice: 'unpack it first, and name the file in it' };
}

function disk(magic: string, name: string, at = 0): Container {
  return {
    magic,
    at,
    what: `a disk image (${name}), not memory`,
    advice:
      'if it has a snapshot of the machine, load that in the hypervisor and dump the machine, of QEMU by qmp:PATH',
  };
}

function vmware(magic: string): Container {
  return {
    magic,
    what: "VMware's state of a machine",
    advice:
      'its memory is in the .vmem beside it: name that with raw:, and --below-4g 3G where it is larger; with none beside it, make a core (vmss2core -N)',
  };
}

const RESTORE = 'restore it paused (virsh restore FILE --paused) and dump the machine (virsh dump --memory-only)';

/** The more bytes tell, the earlier a row stands. */
const CONTAINERS: readonly Container[] = [
  { magic: 'LibvirtQemudSave', what: 'a save file of libvirt', advice: RESTORE },
  {
    magic: 'LibvirtQemudPart',
    what: 'an incomplete save file of libvirt: virsh save did not end',
    advice: 'the machine cannot be restored from it; save it again',
  },
  {
    magic: 'QEVM',
    what: 'a migration stream of QEMU',
    advice: "have a QEMU of the same machine type take it (-incoming 'exec:cat FILE' -S), and dump that by qmp:PATH",
  },
  {
    magic: 'EMiL',
    what: 'a LiME image',
    advice:
      'name its ranges in a guest description (JSON): base, length, file, and as offset where the bytes of each begin, behind its header of 32 bytes',
  },
  {
    magic: 'AVML',
    what: 'a compressed image of AVML',
    advice: 'convert it (avml-convert --format raw FILE out), and say raw:out',
  },
  ...['\xd0\xbe\xd2\xbe', '\xd1\xba\xd1\xba', '\xd2\xbe\xd2\xbe', '\xd3\xbe\xd3\xbe'].map(vmware),
  {
    magic: 'HyperV',
    at: 4,
    what: "Hyper-V's saved state of a machine",
    advice: 'make a crash dump of it (LiveKd -hvl -o), and name that',
  },
  {
    magic: '\x7fVirtualBox SavedState',
    what: 'a saved state of VirtualBox',
    advice: 'start the machine and take a core of it: VBoxManage debugvm NAME dumpvmcore --filename=FILE',
  },
  {
    magic: 'LinuxGuestRecord',
    what: "a saved domain of Xen's",
    advice: 'restore it paused (xl restore -p FILE) and take a core of it: xl dump-core DOMAIN FILE',
  },
  {
    magic: 'Xen saved domain',
    what: "a saved domain of Xen's",
    advice: 'restore it paused (xl restore -p FILE) and take a core of it: xl dump-core DOMAIN FILE',
  },
  { magic: 'MDMP', what: 'a minidump of a process', advice: 'a machine has a crash dump (MEMORY.DMP) or a core' },
  {
    magic: 'EVF\x09\x0d\x0a\xff\0',
    what: 'an EWF image (EnCase)',
    advice: 'mount or export its raw contents (ewfexport), and say raw:FILE',
  },
  ...['hibr', 'HIBR', 'wake', 'WAKE'].map((magic) => ({
    magic: `${magic}\0\0\0`,
    what: 'a hibernation file of Windows',
    advice: 'convert it to a crash dump first, for example with volatility or Hibr2Bin',
  })),
  disk('QFI\xfb', 'qcow2'),
  disk('QED\0', 'QED'),
  disk('KDMV', 'VMDK'),
  disk('vhdxfile', 'VHDX'),
  disk('conectix', 'VHD'),
  disk('\x7f\x10\xda\xbe', 'VDI', 0x40),
  packed('\xfd7zXZ\0', 'xz', 'xzcat'),
  packed('\x89LZO\0\r\n\x1a\n', 'lzop', 'lzop -dc'),
  packed('(\xb5/\xfd', 'zstd', 'zstdcat'),
  packed('\x04\x22\x4d\x18', 'lz4', 'lz4cat'),
  packed('\x02\x21\x4c\x18', 'lz4', 'lz4cat'),
  packed('\x1f\x8b', 'gzip', 'zcat'),
  packed('BZh', 'bzip2', 'bzcat'),
  packed('\x1f\x9d', 'compress', 'zcat'),
  archive('PK\x03\x04', 'zip'),
  archive("7z\xbc\xaf'\x1c", '7z'),
  archive('Rar!\x1a\x07', 'rar'),
  archive('ustar', 'tar', 257),
];

/** Bytes of a file that tell all of them apart. */
export const CONTAINER_START_BYTES = 512;

/**
 * What a file is, by its first bytes, as a sentence without its subject: `is xz-compressed; decompress it first, …`.
 * @returns null when it is nothing of these
 */
export function describeContainer(path: string, start: Uint8Array): string | null {
  const text = Buffer.from(start).toString('latin1');
  const known = CONTAINERS.find(({ magic, at = 0 }) => text.startsWith(magic, at));
  return known ? `is ${known.what}; ${known.advice.replaceAll('FILE', () => path)}` : null;
}
