/** `vmcore dump`: the memory of a guest into a vmcore. */

import { fstatSync, open, statSync } from 'node:fs';
import { promisify } from 'node:util';
import type { Argv } from 'yargs';
import { type DumpSummary, type DumpTarget, dump } from '../dump.js';
import { ioError, VmcoreError } from '../errors.js';
import type { Guest } from '../guest.js';
import type { MemoryBlock } from '../physical-memory.js';
import { FORMATS, type Format } from '../plan.js';
import { formatSize, parseSize } from '../sizes.js';
import { Interrupt } from './interrupt.js';
import { showProgress } from './progress-bar.js';
import { checkBounds, checkNumber, openSource, type SourceArguments, sourceOptions } from './source-options.js';

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
  progress?: boolean;
  json: boolean;
}

export const command = 'dump <source>';
export const describe = 'turn the memory of a guest into a vmcore';

/** Options that take a text, and those that take a number. */
const TEXTS = ['format', 'output', 'begin', 'length', 'below-4g', 'registers', 'vmcoreinfo'] as const;
const NUMBERS = ['fd', 'level'] as const;

/** Declares the options. */
export function builder(yargs: Argv): Argv {
  return sourceOptions(yargs)
    .option('format', { alias: 'f', choices: FORMATS, default: 'elf', describe: 'format of the vmcore' })
    .option('output', { alias: 'o', type: 'string', describe: 'file to make, or - for stdout' })
    .option('fd', { type: 'number', describe: 'write to this open descriptor instead' })
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
    .option('level', { type: 'number', describe: 'kdump-zlib: 1 is fast, more is smaller' })
    .option('find-kdbg', {
      type: 'boolean',
      default: true,
      describe: "win-dmp: search the memory of a guest that has no dump header of its driver's",
    })
    .option('progress', { type: 'boolean', describe: 'progress on stderr; by default when it is a terminal' })
    .option('json', { type: 'boolean', default: false, describe: 'print one JSON object at the end' })
    .requiresArg([...TEXTS, ...NUMBERS])
    .example('$0 dump guest.json -o vmcore', 'a guest described by a JSON file')
    .example('$0 dump raw:guest.ram --registers regs.txt --paging -o vmcore', 'a memory file and its registers')
    .example('$0 dump - -o vmcore < fifo', 'what QEMU dumps into a FIFO')
    .example('$0 dump qemu.elf --begin 1M --length 64K -o part', '64 KiB of an ELF core')
    .example('$0 dump demo: -o - | ssh host "cat > vmcore"', 'the built-in guest, through a pipe');
}

/** Runs the command. */
export async function handler(args: DumpArguments): Promise<void> {
  checkTexts(args);
  checkNumbers(args);
  const range = rangeOf(args);
  const interrupt = new Interrupt();
  try {
    const target = await interrupt.race(targetOf(args));
    const guest = await interrupt.race(openSource(args));
    try {
      checkRegisters(guest, args);
      const request = { ...args, range };
      const job = dump(guest, request, target, interrupt.signal);
      job.on('warning', warn);
      const endProgress = await showProgress(job, args.progress);
      const summary = await job.finished.finally(endProgress);
      report(summary, args.json, target.fd !== undefined && isStdout(target.fd));
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

function warn(text: string): void {
  process.stderr.write(`vmcore: warning: ${text}\n`);
}

/** `-o ''`, and `--no-output`, which yargs makes of every option. */
function checkTexts(args: DumpArguments): void {
  const values = args as unknown as Readonly<Record<string, unknown>>;
  for (const name of TEXTS)
    if (values[name] !== undefined && (typeof values[name] !== 'string' || values[name] === ''))
      throw new VmcoreError('USAGE', `--${name} needs a value`);
}

function checkNumbers(args: DumpArguments): void {
  checkBounds(args);
  checkNumber('--fd', args.fd, 0);
  checkNumber('--level', args.level, 1);
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
  try {
    fstatSync(fd);
  } catch (error) {
    throw ioError('WRITE', `write ${name}`, error);
  }
  return { fd, name };
}

function stdoutTarget(): DumpTarget & { fd: number } {
  if (process.stdout.isTTY)
    throw new VmcoreError('USAGE', 'a vmcore on a terminal helps nobody; say -o FILE, or pipe it');
  return descriptorTarget(1, 'stdout');
}

/** A path of a FIFO or device is written to as it is; everything else becomes a file. */
async function fileTarget(path: string, { force, sparse, sync }: DumpArguments): Promise<Target> {
  try {
    const stat = statSync(path, { throwIfNoEntry: false });
    if (!stat || stat.isFile() || stat.isDirectory()) return { file: path, force, sparse, sync };
    // Not a FileHandle, which closes its descriptor when it is collected as garbage.
    return { fd: await promisify(open)(path, 'w'), name: path };
  } catch (error) {
    throw ioError('WRITE', `open ${path}`, error);
  }
}

/** Whether a descriptor is stdout by another name: `--fd 3 3>&1`, `-o /dev/stdout`. */
function isStdout(fd: number): boolean {
  if (fd === 1) return true;
  const [mine, stdout] = [fstatSync(fd), fstatSync(1)];
  return !mine.isCharacterDevice() && mine.dev === stdout.dev && mine.ino === stdout.ino;
}

/** Prints what was made; never among the bytes of a vmcore on stdout. */
function report(summary: DumpSummary, json: boolean, stdoutTaken: boolean): void {
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
}: DumpSummary): string {
  const rate = formatSize((pages.total * 4096) / Math.max(seconds, 1e-3));
  return [
    `${output}: ${format}, ${architecture}, ${formatSize(size)}`,
    `${pages.total} pages: ${pages.data} written, ${pages.zero} zero and left out${
      pages.missing ? `; ${pages.missing} are no memory of the guest's, and zeros` : ''
    }`,
    `read ${formatSize(bytesRead)}, wrote ${formatSize(bytesWritten)} in ${seconds.toFixed(2)} s (${rate}/s)`,
  ].join('\n');
}
