/** `vmcore qmp`: serves a guest, or sits before a live QEMU, for programs that talk to QEMU's monitor. */

import type { Argv } from 'yargs';
import { VmcoreError } from '../model/errors.js';
import type { QmpProxy } from '../qmp/monitor/proxy.js';
import type { QmpServer } from '../qmp/monitor/server.js';
import { Interrupt } from './interrupt.js';
import { isLive, liveOpenOptions, liveOptions } from './live-source.js';
import { checkPassed } from './passed-descriptor.js';
import { openSource, type SourceArguments, sourceOptions, warn } from './source-options.js';

/** Names of the options, as yargs gives them. */
interface QmpArguments extends SourceArguments {
  listen: string;
  addFd: string[];
  directory?: string;
  extensions: boolean;
}

export const command = 'qmp <source>';
export const describe =
  "serve a guest over QEMU's monitor protocol (dump-guest-memory, getfd, query-dump), or sit before a live QEMU";

/** Declares the options. */
export function builder(yargs: Argv): Argv {
  return liveOptions(sourceOptions(yargs))
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
    .example('$0 qmp qmp:/run/vm.qmp --listen unix:/run/vm-dump.qmp', 'between clients and a live QEMU: all formats')
    .example('$0 qmp guest.json --listen stdio --add-fd dump=3 3> vmcore', 'the parent opens the target: fd:dump');
}

/** Runs the command: until a client says quit, the only client there can be is gone, or a signal comes. */
export async function handler(args: QmpArguments): Promise<void> {
  const descriptors = args.addFd.map(parseDescriptor);
  checkSources(args);
  const interrupt = new Interrupt();
  try {
    const open = isLive(args) ? openProxy : openServer;
    const { server, close } = await open(args, interrupt);
    try {
      await serve(server, descriptors, args.listen, interrupt);
    } finally {
      await close();
    }
  } catch (error) {
    if (interrupt.exitCode === null) throw error;
    await interrupt.exit();
  } finally {
    interrupt.stop();
  }
}

/** What serves clients, and how it ends. */
interface Opened {
  readonly server: Pick<QmpServer & QmpProxy, 'addDescriptor' | 'listen' | 'finished'>;
  close(): Promise<void>;
}

async function openServer(args: QmpArguments, interrupt: Interrupt): Promise<Opened> {
  const { QmpServer } = await import('../qmp/monitor/server.js');
  const guest = await openSource(args, interrupt);
  const server = new QmpServer(guest, serverOptions(args)).on('warning', warn);
  return { server, close: () => server.close().then(() => guest.close()) };
}

async function openProxy(args: QmpArguments, { signal }: Interrupt): Promise<Opened> {
  const { QmpProxy } = await import('../qmp/monitor/proxy.js');
  const options = { ...serverOptions(args), ...liveOpenOptions(args) };
  const server = (await QmpProxy.connect(args.source.slice('qmp:'.length), options, signal)).on('warning', warn);
  return { server, close: () => server.close() };
}

function serverOptions({ directory, extensions, maxMappings, maxPageTables, threads }: QmpArguments) {
  return { directory, extensions, defaults: { maxMappings, maxPageTables, threads } };
}

async function serve(
  server: Opened['server'],
  descriptors: readonly { name: string; fd: number }[],
  address: string,
  interrupt: Interrupt,
): Promise<void> {
  for (const { name, fd } of descriptors) server.addDescriptor(name, fd);
  await server.listen(address);
  await interrupt.race(server.finished);
}

/** What stdin says cannot be both a guest and commands; and a live machine describes itself. */
function checkSources(args: QmpArguments): void {
  const { source, listen, below4g, registers, vmcoreinfo } = args;
  if (source === '-' && listen === 'stdio')
    throw new VmcoreError('USAGE', 'stdin cannot be the guest and the monitor; say --listen unix:PATH');
  if (isLive(args) && (below4g ?? registers ?? vmcoreinfo) !== undefined)
    throw new VmcoreError('USAGE', '--below-4g, --registers and --vmcoreinfo are for raw memory: raw:FILE');
}

function parseDescriptor(text: string): { name: string; fd: number } {
  const [, name, number] = /^([^=\d][^=]*)=(\d+)$/.exec(text) ?? [];
  if (name === undefined || number === undefined)
    throw new VmcoreError('USAGE', `--add-fd takes NAME=N, a name that begins with no digit and a number, not ${text}`);
  const fd = Number(number);
  checkPassed(fd);
  return { name, fd };
}
