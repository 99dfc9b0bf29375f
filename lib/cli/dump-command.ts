/** `vmcore dump`: the memory of a guest into a vmcore. */

import { fstatSync, open, statSync } from 'node:fs';
import { promisify } from 'node:util';
import type { Argv } from 'yargs';
import { type DumpJob, type DumpSummary, type DumpTarget, dump } from '../dump.js';
import { errnoOf, ioError, VmcoreError } from '../model/errors.js';
import type { Guest, LiveReport } from '../model/guest.js';
import { ownDescriptor } from '../io/own-descriptor.js';
import { EXCLUDE_NAMES } from '../model/page-exclusion.js';
import type { MemoryBlock } from '../model/physical-memory.js';
import type { DumpedPages } from '../plan.js';
import { FORMATS, type Format } from '../request.js';
import { resumeAfterFailure } from '../resume.js';
import { findFileTarget } from '../sinks/file-target.js';
import { formatSize, parseSize } from '../model/sizes.js';
import { Interrupt } from './interrupt.js';
import { liveOptions, liveText } from './live-source.js';
import { numberOption } from './number-option.js';
import { checkPassed } from './passed-descriptor.js';
import { showProgress } from './progress-bar.js';
import { openSource, type SourceArguments, sourceOptions, warn } from './source-options.js';
import { ALL_LEVELS } from '../model/dump-level.js';

/** Names of the options, as yargs gives them. */
interface DumpArguments extends SourceArguments {
  format: Format;
  paging: boolean;
  begin?: string;
  length?: string;
  output?: string;
  fd?: number;
  force: boolean;
  sparse: boolean;
  sync: boolean;
  codec?: 'fast' | 'portable';
  level?: number;
  findKdbg: boolean;
  findVmcoreinfo?: boolean;
  dumpLevel?: number;
  exclude?: string;
  excludeFallback?: 'refuse' | 'keep';
  keepDeviceMemory: boolean;
  keepLayout: boolean;
  progress?: boolean;
  json: boolean;
}

export const command = 'dump <source>';
export const describe = 'turn the memory of a guest into a vmcore';

/** The last of the descriptors that Node has a use for. */
const STDERR = 2;

/** Options that take a text. */
const TEXTS = [
  'format',
  'output',
  'begin',
  'length',
  'below-4g',
  'registers',
  'vmcoreinfo',
  'exclude',
  'copy-limit',
  'copy-spool',
] as const;

/** Declares the options. */
export function builder(yargs: Argv): Argv {
  return liveOptions(sourceOptions(yargs))
    .option('format', { alias: 'f', choices: FORMATS, default: 'elf', describe: 'format of the vmcore' })
    .option('output', { alias: 'o', type: 'string', describe: 'file to make, or - for stdout' })
    .option('fd', numberOption('fd', { smallest: 0 }, 'write to this open descriptor instead'))
    .option('force', { type: 'boolean', default: false, describe: 'replace an existing file' })
    .option('paging', { type: 'boolean', default: false, describe: 'list virtual addresses, by the page tables (gdb)' })
    .option('begin', { type: 'string', describe: 'only from this physical address; needs --length' })
    .option('length', { type: 'string', describe: 'only so many bytes; needs --begin' })
    .option('sparse', {
      type: 'boolean',
      default: true,
      describe: 'leave zeros out of the file (--no-sparse: write them)',
    })
    .option('sync', { type: 'boolean', default: false, describe: 'have it on the disk before it gets its name' })
    .option('codec', {
      choices: ['fast', 'portable'] as const,
      describe: 'kdump: WebAssembly in threads, or plain JavaScript in one',
    })
    .option(
      'level',
      numberOption('level', { smallest: 1 }, 'kdump: 1 is fast (the default), 2 is smaller; zlib knows higher ones'),
    )
    .option('dump-level', {
      alias: 'd',
      ...numberOption(
        'dump-level',
        { smallest: 0, largest: ALL_LEVELS },
        'Linux: leave pages out, sum of 1 zero, 2 cache, 4 cache-private, 8 user, 16 free (makedumpfile -d)',
      ),
    })
    .option('exclude', { type: 'string', describe: 'the same by name: zero,cache,cache-private,user,free' })
    .option('exclude-fallback', {
      choices: ['refuse', 'keep'] as const,
      describe: "what to do when the kernel's lists of pages are damaged: refuse (the default), or keep the pages",
    })
    .option('keep-device-memory', {
      type: 'boolean',
      default: false,
      describe: 'kdump with --dump-level: keep memory above all that the kernel knows of (video memory, ROMs)',
    })
    .option('keep-layout', {
      type: 'boolean',
      default: false,
      describe: 'elf: make pages that are left out zeros instead of segments without bytes',
    })
    .option('find-vmcoreinfo', {
      type: 'boolean',
      describe:
        'look for VMCOREINFO in memory, in place of what the source has; by default for raw memory to kdump, and where --dump-level needs it and there is none',
    })
    .option('find-kdbg', {
      type: 'boolean',
      default: true,
      describe: "win-dmp: search the memory of a guest that has no dump header of its driver's",
    })
    .option('progress', { type: 'boolean', describe: 'progress on stderr; by default when it is a terminal' })
    .option('json', { type: 'boolean', default: false, describe: 'print one JSON object at the end' })
    .requiresArg([...TEXTS])
    .example('$0 dump guest.json -o vmcore', 'a guest described by a JSON file')
    .example('$0 dump raw:guest.ram --registers regs.txt --paging -o vmcore', 'a memory file and its registers')
    .example('$0 dump guest.json -f kdump-raw-lzo -d 31 -o vmcore', 'a Linux guest, without the pages nobody debugs')
    .example('$0 dump qmp:/run/guest.qmp -f kdump-raw-lzo -o vmcore', 'a live QEMU')
    .example('$0 dump - -o vmcore < fifo', 'what QEMU dumps into a FIFO')
    .example('$0 dump qemu.elf --begin 1M --length 64K -o part', '64 KiB of an ELF core')
    .example('$0 dump demo: -o - | ssh host "cat > vmcore"', 'the built-in guest, through a pipe');
}

/** Runs the command. */
export async function handler(args: DumpArguments): Promise<void> {
  checkTexts(args);
  checkVmcoreinfo(args);
  const range = rangeOf(args);
  const interrupt = new Interrupt();
  try {
    const target = await interrupt.race(targetOf(args));
    const guest = await openSource(args, interrupt);
    let job: DumpJob | null = null;
    try {
      checkRegisters(guest, args);
      const request = { ...args, range, dumpLevel: dumpLevelOf(args), findVmcoreinfo: findsVmcoreinfo(args) };
      const toStdout = target.fd !== undefined && isStdout(target.fd);
      job = dump(guest, request, target, interrupt.signal);
      job.on('warning', warn);
      const endProgress = await showProgress(job, args.progress);
      const summary = await job.finished.finally(endProgress);
      report({ ...summary, live: guest.live?.report }, args.json, toStdout);
    } catch (error) {
      throw job ? error : await resumeAfterFailure(guest, error, warn);
    } finally {
      guest.close();
    }
  } catch (error) {
    if (interrupt.exitCode === null) throw error;
    await interrupt.exit();
  } finally {
    interrupt.stop();
  }
}

/** `-o ''`, and `--no-output`, which yargs makes of every option. */
function checkTexts(args: DumpArguments): void {
  const values = args as unknown as Readonly<Record<string, unknown>>;
  for (const name of TEXTS)
    if (values[name] !== undefined && (typeof values[name] !== 'string' || values[name] === ''))
      throw new VmcoreError('USAGE', `--${name} needs a value`);
}

/** What is left out, by number or by name. */
function dumpLevelOf({ dumpLevel, exclude }: DumpArguments): number | undefined {
  if (exclude === undefined) return dumpLevel;
  if (dumpLevel !== undefined)
    throw new VmcoreError('USAGE', '--dump-level and --exclude say the same thing: give one of them');
  return exclude.split(',').reduce((level, name) => level | excludeBit(name.trim()), 0);
}

function excludeBit(name: string): number {
  const bit = Object.entries(EXCLUDE_NAMES).find(([known]) => known === name)?.[1];
  if (bit === undefined)
    throw new VmcoreError('USAGE', `--exclude knows ${Object.keys(EXCLUDE_NAMES).join(', ')}, but not '${name}'`);
  return bit;
}

function checkVmcoreinfo({ findVmcoreinfo, vmcoreinfo }: DumpArguments): void {
  if (findVmcoreinfo && vmcoreinfo !== undefined)
    throw new VmcoreError(
      'USAGE',
      '--find-vmcoreinfo and --vmcoreinfo both say which VMCOREINFO to take: give one of them',
    );
}

/** Debuggers go by VMCOREINFO in a kdump, and raw memory never comes with it. */
function findsVmcoreinfo({ source, format, findVmcoreinfo, vmcoreinfo }: DumpArguments): boolean | undefined {
  const isRawToKdump = source.startsWith('raw:') && format.startsWith('kdump-') && vmcoreinfo === undefined;
  return findVmcoreinfo ?? (isRawToKdump || undefined);
}

/** Raw memory knows no registers unless told: what is asked of them is refused, and that there are none is said. */
function checkRegisters(guest: Guest, { source, registers, paging }: DumpArguments): void {
  if (guest.cpus.length > 0) return;
  const isRaw = source.startsWith('raw:') && registers === undefined;
  if (isRaw && paging)
    throw new VmcoreError('USAGE', `--paging needs the CPU registers of ${guest.name}: give --registers FILE`);
  // Paging will be refused for other sources as well; one line is enough.
  if (!paging)
    warn(`${guest.name} comes without CPU registers, and so will the vmcore${isRaw ? '; give --registers FILE' : ''}`);
}

function rangeOf({ begin, length }: DumpArguments): MemoryBlock | undefined {
  if (begin === undefined && length === undefined) return undefined;
  if (begin === undefined || length === undefined)
    throw new VmcoreError('USAGE', `--${begin === undefined ? 'length needs --begin' : 'begin needs --length'} too`);
  const range = { base: parseSize(begin, '--begin'), length: parseSize(length, '--length') };
  if (range.length === 0) throw new VmcoreError('USAGE', '--length must be above 0');
  return range;
}

type Target = DumpTarget & { readonly fd?: number };

async function targetOf(args: DumpArguments): Promise<Target> {
  if ((args.output === undefined) === (args.fd === undefined))
    throw new VmcoreError('USAGE', 'say where to: one of -o FILE, -o - (stdout) and --fd N');
  if (args.fd !== undefined) return descriptorTarget(args.fd, `fd ${args.fd}`);
  if (args.output === '-') return stdoutTarget();
  return fileTarget(args.output!, args);
}

function descriptorTarget(fd: number, name: string): DumpTarget & { fd: number } {
  checkPassed(fd);
  // Ours alone, so what close(2) says is for us to hear; of Node's own three it would miss them.
  return { fd, name, close: fd > STDERR };
}

function stdoutTarget(): DumpTarget & { fd: number } {
  if (process.stdout.isTTY)
    throw new VmcoreError('USAGE', 'a vmcore on a terminal helps nobody; say -o FILE, or pipe it');
  return descriptorTarget(1, 'stdout');
}

/**
 * A path of a FIFO or device is written to as it is, a socket has no way to be opened; everything else becomes a file.
 * What cannot be made is refused here: no guest is stopped, and none read, for a file that cannot be kept.
 */
async function fileTarget(path: string, { force, sparse, sync }: DumpArguments): Promise<Target> {
  try {
    const stat = statSync(path, { throwIfNoEntry: false });
    if (!stat || stat.isFile() || stat.isDirectory()) {
      await findFileTarget(path, force);
      return { file: path, force, sparse, sync };
    }
    if (stat.isSocket())
      throw new VmcoreError(
        'WRITE',
        `cannot write ${path}: is a socket; connect to it and hand over the descriptor (--fd), or pipe the vmcore (-o -)`,
      );
    return await specialTarget(path);
  } catch (error) {
    throw ioError('WRITE', `open ${path}`, error);
  }
}

async function specialTarget(path: string): Promise<Target> {
  try {
    // Not a FileHandle, which closes its descriptor when it is collected as garbage.
    return { fd: await promisify(open)(path, 'w'), name: path, close: true };
  } catch (error) {
    const own = ownDescriptor(path);
    if (own === null || errnoOf(error) !== 'EACCES') throw error;
    return descriptorTarget(own, path);
  }
}

/** Whether a descriptor is stdout by another name: `--fd 3 3>&1`, `-o /dev/stdout`. */
function isStdout(fd: number): boolean {
  if (fd === 1) return true;
  const [mine, stdout] = [fstatSync(fd), fstatSync(1)];
  return !mine.isCharacterDevice() && mine.dev === stdout.dev && mine.ino === stdout.ino;
}

/** A summary, and how the live machine was read that it is of. */
type Report = DumpSummary & { readonly live?: LiveReport | undefined };

/** Prints what was made; never among the bytes of a vmcore on stdout. */
function report(summary: Report, json: boolean, stdoutTaken: boolean): void {
  const stream = stdoutTaken ? process.stderr : process.stdout;
  stream.write(json ? `${JSON.stringify(summary)}\n` : `${summaryText(summary)}\n`);
}

function summaryText({
  output,
  format,
  architecture,
  pages,
  bytesRead,
  bytesWritten,
  size,
  seconds,
  vmcoreinfoAt,
  live,
}: Report): string {
  const rate = formatSize((pages.total * 4096) / Math.max(seconds, 1e-3));
  return [
    `${output}: ${format}, ${architecture}, ${formatSize(size)}`,
    ...(vmcoreinfoAt ? [`VMCOREINFO found in guest memory at ${vmcoreinfoAt}`] : []),
    pagesText(pages),
    ...(pages.deviceKept ? [keptText(pages.deviceKept)] : []),
    `read ${formatSize(bytesRead)}, wrote ${formatSize(bytesWritten)} in ${seconds.toFixed(2)} s (${rate}/s)`,
    ...(live ? liveText(live) : []),
  ].join('\n');
}

/** makedumpfile says `Completed` of a dump that it has lost, so this is the place to know it from. */
function keptText(pages: number): string {
  return `${pages} of them are device memory above RAM, for which makedumpfile can lose the others: leave pages out with -d here, or with vmcore dump -d of this file, and not with makedumpfile`;
}

function pagesText({ total, data, zero, missing, excluded, excludedByReason, deviceLeftOut }: DumpedPages): string {
  const reasons = Object.entries(excludedByReason ?? {}).map(([reason, count]) => `${count} ${reason}`);
  return [
    `${total} pages: ${data} written, ${zero} zero and ${excluded ? 'not stored' : 'left out'}`,
    ...(excluded ? [`, ${excluded} left out${reasons.length > 0 ? ` (${reasons.join(', ')})` : ''}`] : []),
    ...(deviceLeftOut ? [`; ${deviceLeftOut} more are device memory above RAM, and left out`] : []),
    ...(missing ? [`; ${missing} are no memory of the guest's, and zeros`] : []),
  ].join('');
}
