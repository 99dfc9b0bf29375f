/**
 * Opens whatever a user names as the source of a guest. The kind is recognised by its content, not by its name.
 */

import { closeSync, fstatSync, openSync, readSync, type Stats } from 'node:fs';
import { ioError, VmcoreError } from '../errors.js';
import { ELFMAG } from '../formats/elf.js';
import type { Guest } from '../guest.js';
import { parseSize } from '../sizes.js';
import { demoGuest } from './demo.js';
import { openElfCore } from './elf-core.js';
import { openElfStream } from './elf-stream.js';
import { openGuestDescription } from './guest-description.js';
import { openRawMemory } from './raw-memory.js';

/** What a raw memory file does not say of itself. */
export interface OpenGuestOptions {
  /** `raw:` only: bytes of RAM below 4 GiB; the rest begins at 4 GiB. By QEMU's rule for `pc` when absent */
  readonly below4g?: number | undefined;
  /** `raw:` only: file with what HMP `info registers -a` prints */
  readonly registers?: string | undefined;
  /** `raw:` only: file with the text of VMCOREINFO or its whole ELF note */
  readonly vmcoreinfo?: string | undefined;
}

/** What the first bytes of files are that are known, but no guest can be made of. */
const FOREIGN_MAGIC: readonly (readonly [string, string])[] = [
  ['KDUMP   ', 'a kdump-compressed vmcore, which cannot be read yet'],
  ['makedumpfile', 'a flattened kdump vmcore, which cannot be read yet'],
  ['PAGEDU', 'a Windows crash dump, which cannot be read yet'],
  ['\x1f\x8b', 'gzip-compressed; decompress it first, for example `zcat FILE | vmcore dump -`'],
  ['(\xb5/\xfd', 'zstd-compressed; decompress it first, for example `zstdcat FILE | vmcore dump -`'],
];

/**
 * Opens a guest.
 * @param source a guest description (JSON), an ELF core, `raw:FILE`, `-` (an ELF core on stdin), or `demo:`
 * @throws VmcoreError when it cannot be read or is nothing that is known
 */
export async function openGuest(source: string, options: OpenGuestOptions = {}): Promise<Guest> {
  if (source.startsWith('raw:')) return openRawMemory(source.slice('raw:'.length), options);
  if (options.below4g !== undefined || options.registers !== undefined || options.vmcoreinfo !== undefined)
    throw new VmcoreError(
      'USAGE',
      `--below-4g, --registers and --vmcoreinfo describe a raw memory file, but ${source} describes itself; for raw memory say raw:${source}`,
    );
  if (source === 'demo:') return demoGuest();
  if (source.startsWith('demo:')) return demoGuest({ memory: parseSize(source.slice('demo:'.length), 'demo:SIZE') });
  return source === '-' ? openDescriptor(0) : openPath(source);
}

/** What stdin is decides: a file can seek, all else is a stream. */
function openDescriptor(fd: number): Promise<Guest> | Guest {
  return fstatSync(fd).isFile() ? openElfCore(`/proc/self/fd/${fd}`) : openElfStream({ fd }, 'stdin');
}

async function openPath(path: string): Promise<Guest> {
  const fd = attempt(path, () => openSync(path, 'r'));
  const stat = fstatSync(fd);
  if (!stat.isFile()) return openSpecial(path, fd, stat);
  const start = Buffer.alloc(64);
  const length = attempt(path, () => readSync(fd, start, 0, start.length, 0));
  closeSync(fd);
  return openByContent(path, start.subarray(0, length));
}

function openSpecial(path: string, fd: number, stat: Stats): Promise<Guest> {
  if (!stat.isDirectory()) return openElfStream({ fd }, path);
  closeSync(fd);
  throw new VmcoreError('READ', `cannot read ${path}: is a directory`);
}

function openByContent(path: string, start: Buffer): Promise<Guest> | Guest {
  if (ELFMAG.every((byte, i) => start[i] === byte)) return openElfCore(path);
  if (/^\ufeff?\s*\{/.test(start.toString('utf8'))) return openGuestDescription(path);
  const foreign = FOREIGN_MAGIC.find(([magic]) => start.toString('latin1').startsWith(magic));
  throw new VmcoreError(
    'BAD_INPUT',
    foreign
      ? `${path} is ${foreign[1]}`
      : `${path} is neither an ELF core nor a guest description (JSON); for raw memory say raw:${path}`,
  );
}

function attempt<T>(path: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw ioError('READ', `read ${path}`, error);
  }
}
