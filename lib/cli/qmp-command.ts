/** `vmcore qmp`: serves a guest to programs that talk to QEMU's monitor. */

import { fstatSync } from 'node:fs';
import type { Argv } from 'yargs';
import { ioError, VmcoreError } from '../errors.js';
import type { QmpServer } from '../qmp/server.js';
import { Interrupt } from './interrupt.js';
import { checkBounds, openSource, type SourceArguments, sourceOptions } from './source-options.js';

/** Names of the options, as yargs gives them. */
interface QmpArguments extends SourceArguments {
  listen: string;
  addFd: string[];
  directory?: string;
  extensions: boolean;
}

export const command = 'qmp <source>';
export const describe = "serve a guest over QEMU's monitor protocol (dump-guest-memory, getfd, query-dump)";

/** Declares the options. */
export function builder(yargs: Argv): Argv {
  return sourceOptions(yargs)
    .option('listen', {
      type: 'string',
      demandOption: true,
      describe: 'unix:PATH, stdio, fd:N (a socket of the parent), or fd:NAME (of systemd)',
    })
    .option('add-fd', { type: 'string', array: true, default: [], describe: 'NAME=N: descriptor N becomes fd:NAME' })
    .option('directory', { type: 'string', describe: 'confine file: paths to this directory' })
    .option('extensions', {
      type: 'boolean',
      default: false,
      describe: 'more than QEMU: ranges with kdump formats, threads, dump-cancel',
    })
    .requiresArg(['listen', 'add-fd', 'directory'])
    .example('$0 qmp guest.json --listen unix:/run/guest.qmp', 'virsh and its like ask for the dump')
    .example('$0 qmp guest.json --listen stdio --add-fd dump=3 3> vmcore', 'the parent opens the target: fd:dump');
}

/** Runs the command: until a client says quit, the only client there can be is gone, or a signal comes. */
export async function handler(args: QmpArguments): Promise<void> {
  checkBounds(args);
  const descriptors = args.addFd.map(parseDescriptor);
  checkSources(args);
  const { QmpServer } = await import('../qmp/server.js');
  const interrupt = new Interrupt();
  try {
    const guest = await interrupt.race(openSource(args));
    const { maxMappings, maxPageTables, threads } = args;
    const server = new QmpServer(guest, { ...args, defaults: { maxMappings, maxPageTables, threads } });
    server.on('warning', (text) => process.stderr.write(`vmcore: warning: ${text}\n`));
    try {
      await serve(server, descriptors, args.listen, interrupt);
    } finally {
      await server.close();
      guest.close();
    }
  } catch (error) {
    if (interrupt.exitCode === null) throw error;
    await interrupt.exit();
  } finally {
    interrupt.stop();
  }
}

async function serve(
  server: QmpServer,
  descriptors: readonly { name: string; fd: number }[],
  address: string,
  interrupt: Interrupt,
): Promise<void> {
  for (const { name, fd } of descriptors) server.addDescriptor(name, fd);
  await server.listen(address);
  await interrupt.race(server.finished);
}

/** What stdin says cannot be both a guest and commands. */
function checkSources({ source, listen }: QmpArguments): void {
  if (source === '-' && listen === 'stdio')
    throw new VmcoreError('USAGE', 'stdin cannot be the guest and the monitor; say --listen unix:PATH');
}

function parseDescriptor(text: string): { name: string; fd: number } {
  const [, name, number] = /^([^=\d][^=]*)=(\d+)$/.exec(text) ?? [];
  if (name === undefined || number === undefined)
    throw new VmcoreError('USAGE', `--add-fd takes NAME=N, a name that begins with no digit and a number, not ${text}`);
  const fd = Number(number);
  try {
    fstatSync(fd);
  } catch (error) {
    throw ioError('WRITE', `use fd ${fd} as ${name}`, error);
  }
  return { name, fd };
}
