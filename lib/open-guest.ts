/**
 * Opens whatever a user names as the source of a guest. The kind is recognised by its content, not by its name.
 *
 * Each kind is loaded when it is needed: a command that starts in a tenth of a second should not wait for a schema
 * library that it has no use for.
 */

import { fstatSync, readSync, type Stats } from 'node:fs';
import { describeContainer } from './formats/containers.js';
import { winDmpBits } from './formats/win-dmp.js';
import { type ByteSource, type DescriptorSource, PeekedInput } from './io/byte-input.js';
import { closeRead } from './io/close-read.js';
import { openToRead } from './io/open-to-read.js';
import type { OpenQemuOptions } from './live/qemu/options.js';
import { ioError, VmcoreError } from './model/errors.js';
import type { Guest } from './model/guest.js';
import type { ElfNote } from './model/note.js';
import { parseSize } from './model/sizes.js';
import { isElf, isKdumpFile, START_BYTES } from './sources/known-start.js';

/** What a raw memory file does not say of itself. */
interface RawMemoryOptions {
  /**
   * `raw:` only: bytes of RAM below 4 GiB; the rest begins at 4 GiB. By QEMU's rule for `pc` when absent: all of less than
   * 3.5 GiB, else 3 GiB. `q35` has 2 GiB there of 2.75 GiB and more
   */
  readonly below4g?: number | undefined;
  /** `raw:` only: file with what HMP `info registers -a` prints */
  readonly registers?: string | undefined;
  /** `raw:` only: take a file for memory that begins as a vmcore or another known file does */
  readonly forceRaw?: boolean | undefined;
}

/** What a source does not say of itself: a raw memory file, or a live machine (`qmp:`). */
export interface OpenGuestOptions extends RawMemoryOptions, OpenQemuOptions {
  /** file with the text of VMCOREINFO or its whole ELF note, in place of what the source has */
  readonly vmcoreinfo?: string | undefined;
}

/**
 * Opens a guest.
 * @param source a guest description (JSON), a vmcore (ELF core, kdump or full Windows crash dump), `raw:FILE`,
 *   `qmp:PATH` or `qmp:tcp:HOST:PORT` (a live QEMU), `-` (a vmcore on stdin), or `demo:`
 * @throws VmcoreError when it cannot be read or is nothing that is known
 */
export async function openGuest(source: string, options: OpenGuestOptions = {}): Promise<Guest> {
  const { vmcoreinfo, ...others } = options;
  if (vmcoreinfo === undefined) return openSource(source, others);
  // Before a machine is stopped for us.
  const note = await vmcoreinfoOf(vmcoreinfo);
  const { withVmcoreinfoNote } = await import('./linux/with-vmcoreinfo.js');
  return withVmcoreinfoNote(await openSource(source, others), note);
}

/** The note that a file holds. @throws VmcoreError READ, BAD_INPUT */
async function vmcoreinfoOf(path: string): Promise<ElfNote> {
  return (await import('./sources/raw/vmcoreinfo-file.js')).readVmcoreinfo(path);
}

async function openSource(source: string, options: Omit<OpenGuestOptions, 'vmcoreinfo'>): Promise<Guest> {
  if (source === 'raw:') throw new VmcoreError('USAGE', 'raw: lacks the memory file: raw:FILE');
  if (source.startsWith('raw:')) return (await raw()).openRawMemory(source.slice('raw:'.length), options);
  if (options.below4g !== undefined || options.registers !== undefined || options.forceRaw)
    throw new VmcoreError(
      'USAGE',
      `--below-4g, --registers and --force-raw describe a raw memory file, but ${source} describes itself; for raw memory say raw:${source}`,
    );
  if (source.startsWith('qmp:')) return openLive(source.slice('qmp:'.length), options);
  if (source === 'demo:') return (await demo()).demoGuest();
  if (source.startsWith('demo:'))
    return (await demo()).demoGuest({ memory: parseSize(source.slice('demo:'.length), 'demo:SIZE') });
  return source === '-' ? openDescriptor(0) : openPath(source);
}

/** Connects and opens the machine; the connection is closed with the guest, or when there is none. */
async function openLive(address: string, options: OpenGuestOptions): Promise<Guest> {
  const [{ connectQmp }, { openQemu }] = await Promise.all([
    import('./qmp/protocol/client.js'),
    import('./live/qemu/qemu-guest.js'),
  ]);
  const client = await connectQmp(address, options);
  try {
    return await openQemu(client, options);
  } catch (error) {
    client.close();
    throw error;
  }
}

const raw = () => import('./sources/raw/raw-memory.js');
const demo = () => import('./sources/demo/demo.js');
const elfCore = () => import('./sources/elf/elf-core.js');
const elfStream = () => import('./sources/elf/elf-stream.js');
const kdumpCore = () => import('./sources/kdump/kdump-core.js');
const kdumpStream = () => import('./sources/kdump/kdump-stream.js');
const winDmpCore = () => import('./sources/windows/win-dmp-core.js');
const description = () => import('./sources/description/guest-description.js');

/** What stdin is decides: a file can seek, all else is a stream. */
async function openDescriptor(fd: number): Promise<Guest> {
  return isSeekable(fstatSync(fd)) ? openPath(`/proc/self/fd/${fd}`) : openStream({ fd }, 'stdin');
}

async function openPath(path: string): Promise<Guest> {
  const source = attempt(path, () => openToRead(path));
  const stat = fstatSync(source.fd);
  if (!isSeekable(stat)) return openSpecial(path, source, stat);
  const start = Buffer.alloc(START_BYTES);
  try {
    const length = attempt(path, () => readSync(source.fd, start, 0, start.length, 0));
    return await openByContent(path, start.subarray(0, length));
  } finally {
    if (source.owned) closeRead(source.fd);
  }
}

/** A block device can be read at any place, as a file can; its size is found (file-backing.ts). */
function isSeekable(stat: Stats): boolean {
  return stat.isFile() || stat.isBlockDevice();
}

async function openSpecial(path: string, source: DescriptorSource, stat: Stats): Promise<Guest> {
  if (!stat.isDirectory()) return openStream(source, path);
  if (source.owned) closeRead(source.fd);
  throw new VmcoreError('READ', `cannot read ${path}: is a directory`);
}

async function openByContent(path: string, start: Uint8Array): Promise<Guest> {
  if (isElf(start)) return (await elfCore()).openElfCore(path);
  if (isKdumpFile(start)) return (await kdumpCore()).openKdump(path);
  if (winDmpBits(start)) return (await winDmpCore()).openWinDmp(path);
  if (/^\ufeff?\s*\{/.test(Buffer.from(start).toString('utf8')))
    return (await description()).openGuestDescription(path);
  throw unknownKind(
    path,
    start,
    `${path} is neither a vmcore (ELF, kdump, Windows crash dump) nor a guest description (JSON); for raw memory say raw:${path}`,
  );
}

/**
 * Opens a vmcore that is a stream: ELF in one pass, kdump through a temporary file.
 * @param source a descriptor is closed with the guest when it is `owned`
 * @param name   what to call it in messages
 * @throws VmcoreError
 */
export async function openStream(source: ByteSource, name: string): Promise<Guest> {
  const input = await PeekedInput.open(source, name, START_BYTES);
  if (isElf(input.start)) return (await elfStream()).openElfStream(input, name);
  if (isKdumpFile(input.start)) return (await kdumpStream()).openKdumpStream(input, name);
  input.close();
  if (winDmpBits(input.start))
    throw new VmcoreError(
      'UNSUPPORTED',
      `${name} is a Windows crash dump, whose processors can be found only with random access; save it to a file`,
    );
  throw unknownKind(name, input.start, `${name} is not a vmcore (ELF, kdump)`);
}

function unknownKind(name: string, start: Uint8Array, message: string): VmcoreError {
  if (start.length === 0) return new VmcoreError('BAD_INPUT', `${name} is empty`);
  const container = describeContainer(name, start);
  return new VmcoreError('BAD_INPUT', container ? `${name} ${container}` : message);
}

function attempt<T>(path: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw ioError('READ', `read ${path}`, error);
  }
}
