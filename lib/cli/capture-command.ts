/** `vmcore capture`: a live QEMU as a guest description, for later. */

import type { Argv } from 'yargs';
import { VmcoreError } from '../model/errors.js';
import { findFileTarget } from '../sinks/file-target.js';
import { WholeFile } from '../sinks/whole-file.js';
import { writeFully } from '../io/write-fully.js';
import type { CapturedFile } from '../live/qemu/capture.js';
import { Interrupt } from './interrupt.js';
import { numberOption } from './number-option.js';
import { sourceOperand } from './source-operand.js';
import { warn } from './source-options.js';

/** Names of the options, as yargs gives them. */
interface CaptureArguments {
  source: string;
  output: string;
  pid?: number;
  force: boolean;
}

export const command = 'capture <source>';
export const describe = 'save a live QEMU as a guest description that refers to its memory file';

/** Declares the options. */
export function builder(yargs: Argv): Argv {
  return sourceOperand(yargs, 'source', 'qmp:PATH or qmp:tcp:HOST:PORT')
    .option('output', { alias: 'o', type: 'string', demandOption: true, describe: 'the description to make (JSON)' })
    .option('pid', numberOption('pid', { smallest: 1 }, "QEMU's process, where the socket does not tell"))
    .option('force', { type: 'boolean', default: false, describe: 'replace existing files' })
    .requiresArg(['output'])
    .example('$0 capture qmp:/run/guest.qmp -o guest.json', 'then, while it is paused: vmcore dump guest.json')
    .epilogue(
      'The memory stays in its file, which changes while the guest runs: pause the guest first, and dump the ' +
        'description or copy the memory file before it runs again.',
    );
}

/** Runs the command. */
export async function handler(args: CaptureArguments): Promise<void> {
  if (!args.source.startsWith('qmp:'))
    throw new VmcoreError('USAGE', `capture takes a live QEMU, qmp:PATH, not ${args.source}`);
  if (args.output === '' || args.output === '-') throw new VmcoreError('USAGE', 'say where to: -o FILE');
  const interrupt = new Interrupt();
  try {
    await capture(args, interrupt.signal);
  } catch (error) {
    if (interrupt.exitCode === null) throw error;
    await interrupt.exit();
  } finally {
    interrupt.stop();
  }
}

async function capture({ source, output, pid, force }: CaptureArguments, signal: AbortSignal): Promise<void> {
  const [{ connectQmp }, { openQemu }, { captureGuest }] = await Promise.all([
    import('../qmp/protocol/client.js'),
    import('../live/qemu/qemu-guest.js'),
    import('../live/qemu/capture.js'),
  ]);
  // A guest is not stopped for what cannot be kept.
  await findFileTarget(output, force);
  const client = await connectQmp(source.slice('qmp:'.length), { signal });
  try {
    const guest = await openQemu(client, { memoryPath: 'file', pid, signal, onWarning: warn });
    try {
      const files = await captureGuest(client, guest, output);
      await writeAll(files, force);
      process.stdout.write(`${output}: ${files.map(({ path }) => path).join(', ')}\n`);
      if (guest.live?.report.wasRunning)
        warn(
          'the guest runs on, and its memory file changes: the registers are of the past; pause it before you capture',
        );
    } finally {
      await guest.live?.release();
      guest.close();
    }
  } finally {
    client.close();
  }
}

/** All files or none; what they replace stays until all are written. @throws VmcoreError EXISTS, WRITE */
async function writeAll(files: readonly CapturedFile[], force: boolean): Promise<void> {
  const made: { readonly file: WholeFile; readonly size: number }[] = [];
  try {
    for (const { path, bytes } of files) {
      const file = await WholeFile.create(path, force);
      made.push({ file, size: bytes.length });
      await writeFully(file.fd, bytes, 0, path);
    }
    for (const { file, size } of made) await file.publish({ size });
  } catch (error) {
    await Promise.all(made.map(({ file }) => file.withdraw()));
    throw error;
  }
}
