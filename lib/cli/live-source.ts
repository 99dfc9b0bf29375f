/** What commands that read a live QEMU have in common: its options, opening it, and letting it run on. */

import type { Argv } from 'yargs';
import { VmcoreError } from '../model/errors.js';
import type { LiveReport } from '../model/guest.js';
import { formatSize, parseSize } from '../model/sizes.js';
import type { OpenGuestOptions } from '../open-guest.js';
import { MEMORY_PATHS, type MemoryPath } from '../live/qemu/options.js';
import { numberOption } from './number-option.js';

/** What a live machine's source begins with. */
const LIVE = 'qmp:';

/** The options as yargs gives them. */
export interface LiveArguments {
  source: string;
  memoryPath?: MemoryPath;
  pid?: number;
  pauseOnlyForCopy?: boolean;
  copyLimit?: string;
  copySpool?: string;
}

/** Declares the options. */
export function liveOptions(yargs: Argv): Argv {
  return yargs
    .option('memory-path', {
      choices: MEMORY_PATHS,
      describe: 'qmp: read the file behind the memory, /proc/PID/mem, or what QEMU dumps (default: the best there is)',
    })
    .option('pid', numberOption('pid', { smallest: 1 }, "qmp: QEMU's process, where the socket does not tell"))
    .option('pause-only-for-copy', {
      type: 'boolean',
      describe: 'qmp: copy the memory and resume the guest, then compress and write',
    })
    .option('copy-limit', {
      type: 'string',
      describe: 'qmp: most memory for that copy (default: half of what is free)',
    })
    .option('copy-spool', {
      type: 'string',
      describe: 'qmp: folder for a temporary file that takes what does not fit there',
    })
    .requiresArg(['memory-path', 'copy-limit', 'copy-spool']);
}

/** Whether a source is a live machine. */
export function isLive({ source }: LiveArguments): boolean {
  return source.startsWith(LIVE);
}

/** The options as `openGuest` takes them. @throws VmcoreError USAGE */
export function liveOpenOptions(args: LiveArguments): OpenGuestOptions {
  const { memoryPath, pid, pauseOnlyForCopy, copyLimit, copySpool } = args;
  const ofCopy = copyLimit !== undefined || copySpool !== undefined;
  if (!isLive(args)) {
    if (memoryPath !== undefined || pid !== undefined || pauseOnlyForCopy || ofCopy)
      throw new VmcoreError(
        'USAGE',
        '--memory-path, --pid, --pause-only-for-copy, --copy-limit and --copy-spool are for a live machine: qmp:PATH',
      );
    return {};
  }
  if (ofCopy && !pauseOnlyForCopy)
    throw new VmcoreError('USAGE', '--copy-limit and --copy-spool go with --pause-only-for-copy');
  if (copySpool === '') throw new VmcoreError('USAGE', '--copy-spool needs a folder');
  return {
    memoryPath,
    pid,
    pauseOnlyForCopy,
    copyLimit: copyLimit === undefined ? undefined : parseSize(copyLimit, '--copy-limit'),
    copySpool,
  };
}

type MemoryWay = LiveReport['memoryPath'];

const WAYS_BY_SPEED: readonly MemoryWay[] = ['file', 'proc', 'stream'];

const WAYS: Readonly<Record<MemoryWay, string>> = {
  file: 'from the file behind it',
  proc: "from QEMU's process",
  stream: "through QEMU's own dump",
};

/** The lines of a summary that tell how a live machine was read. */
export function liveText(report: LiveReport): string[] {
  const { memoryPath, copiedBytes, spooledBytes } = report;
  const others = WAYS_BY_SPEED.filter((way) => way !== memoryPath).map((way) => otherText(report, way));
  const spooled = spooledBytes ? ` (${formatSize(spooledBytes)} of it to a temporary file)` : '';
  const copied = copiedBytes === undefined ? '' : `, and copied first${spooled}`;
  return [`memory read ${wayText(report, memoryPath)}${others.join('')}${copied}`, stateText(report)];
}

/** The blocks that were not read as most of the memory was. */
function otherText(report: LiveReport, way: MemoryWay): string {
  const bytes = report.memory.reduce((sum, block) => sum + (block.way === way ? block.length : 0), 0);
  return bytes === 0 ? '' : `, ${formatSize(bytes)} of it ${wayText(report, way)}`;
}

/** A way of reading, and where it reads. */
function wayText({ memory }: LiveReport, way: MemoryWay): string {
  const from = new Set(memory.filter((block) => block.way === way).map((block) => block.from));
  return way === 'stream' ? WAYS[way] : `${WAYS[way]} (${[...from].join(', ')})`;
}

/** What became of the machine. */
function stateText({ wasRunning, statusBefore, statusAfter, pausedSeconds }: LiveReport): string {
  const seconds = `${pausedSeconds.toFixed(2)} s`;
  if (statusAfter === undefined) return `the guest was ${statusBefore} (${seconds} needed)`;
  if (statusAfter !== statusBefore)
    return `the guest was ${statusBefore}, and is ${statusAfter} now (${seconds} needed)`;
  return wasRunning
    ? `the guest was paused for ${seconds}, and runs again`
    : `the guest was ${statusBefore}, and still is (${seconds} needed)`;
}
