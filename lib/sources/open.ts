/**
 * Opens whatever a user names as the source of a guest. The kind is recognised by its content, not by its name.
 *
 * Each kind is loaded when it is needed: a command that starts in a tenth of a second should not wait for a schema
 * library that it has no use for.
 */

import { closeSync, constants, fstatSync, openSync, readSync, type Stats, statSync } from 'node:fs';
import { ioError, VmcoreError } from '../errors.js';
import { ELFMAG } from '../formats/elf.js';
import type { Guest } from '../guest.js';
import { parseSize } from '../sizes.js';

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
  if (source.startsWith('raw:')) return (await raw()).openRawMemory(source.slice('raw:'.length), options);
  if (options.below4g !== undefined || options.registers !== undefined || options.vmcoreinfo !== undefined)
    throw new VmcoreError(
      'USAGE',
      `--below-4g, --registers and --vmcoreinfo describe a raw memory file, but ${source} describes itself; for raw memory say raw:${source}`,
    );
  if (source === 'demo:') return (await demo()).demoGuest();
  if (source.startsWith('demo:'))
    return (await demo()).demoGuest({ memory: parseSize(source.slice('demo:'.length), 'demo:SIZE') });
  return source === '-' ? openDescriptor(0) : openPath(source);
}

const raw = () => import('./raw-memory.js');
const demo = () => import('./demo.js');
const elfCore = () => import('./elf-core.js');
const elfStream = () => import('./elf-stream.js');
const description = () => import('./guest-description.js');

/** What stdin is decides: a file can seek, all else is a stream. */
async function openDescriptor(fd: number): Promise<Guest> {
  if (fstatSync(fd).isFile()) return (await elfCore()).openElfCore(`/proc/self/fd/${fd}`);
  return (await elfStream()).openElfStream({ fd }, 'stdin');
}

/** A FIFO is opened before it has a writer: open(2) would wait for one, and the process could not be interrupted. */
const WITHOUT_WAITING = constants.O_RDONLY | constants.O_NONBLOCK;

async function openPath(path: string): Promise<Guest> {
  const fd = attempt(path, () => openSync(path, statSync(path).isFIFO() ? WITHOUT_WAITING : 'r'));
  const stat = fstatSync(fd);
  if (!stat.isFile()) return openSpecial(path, fd, stat);
  const start = Buffer.alloc(64);
  const length = attempt(path, () => readSync(fd, start, 0, start.length, 0));
  closeSync(fd);
  return openByContent(path, start.subarray(0, length));
}

async function openSpecial(path: string, fd: number, stat: Stats): Promise<Guest> {
  if (!stat.isDirectory()) return (await elfStream()).openElfStream({ fd }, path);
  closeSync(fd);
  throw new VmcoreError('READ', `cannot read ${path}: is a directory`);
}

async function openByContent(path: string, start: Buffer): Promise<Guest> {
  if (ELFMAG.every((byte, i) => start[i] === byte)) return (await elfCore()).openElfCore(path);
  if (/^\ufeff?\s*\{/.test(start.toString('utf8'))) return (await description()).openGuestDescription(path);
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
