/** The command line: parses, calls lib/dump.ts and its peers, reports. Exit codes: 0, 1 failed, 2 usage, 130 Ctrl-C. */

import type { Worker } from 'node:worker_threads';
import yargs, { type Argv } from 'yargs';
import { hideBin } from 'yargs/helpers';
import { getoptWords } from './cli/words.js';
import { useStartedWorkers } from './codecs/wasm-workers.js';
import { errnoOf, ioError, messageOf, VmcoreError } from './model/errors.js';
import { packageVersion } from './version.js';

const EXIT_FAILED = 1;
const EXIT_USAGE = 2;

/** One line, no stack: what, where, what to do. */
function fail(message: string, exitCode: number): void {
  process.stderr.write(`vmcore: ${message}\n`);
  process.exitCode = exitCode;
}

/** What is no VmcoreError is a defect of ours: then the stack helps, if asked for. */
function failure(error: unknown): void {
  if (!(error instanceof VmcoreError) && process.env['VMCORE_DEBUG']) console.error(error);
  fail(
    messageOf(error).replace(/\s*\n\s*/g, ' '),
    error instanceof VmcoreError && error.code === 'USAGE' ? EXIT_USAGE : EXIT_FAILED,
  );
}

// A reader of our summary that goes away is no failure; a disk that is full is one. Nobody can be told that stderr
// cannot be written, and it is no reason to leave a dump half-done.
process.stdout.on('error', (error) => {
  if (errnoOf(error) !== 'EPIPE') failure(ioError('WRITE', 'write stdout', error));
});
process.stderr.on('error', () => {});

/** What a file of lib/cli/ exports: one subcommand. */
interface Command {
  /** its name and its positionals, as yargs writes them */
  readonly command: string;
  readonly describe: string;
  builder(yargs: Argv): Argv;
  handler(args: never): Promise<void>;
}

/** The subcommands; only the one that is asked for is loaded, for a dump should not wait for what it does not use. */
const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  dump: () => import('./cli/dump-command.js'),
  inspect: () => import('./cli/inspect-command.js'),
  capture: () => import('./cli/capture-command.js'),
  qmp: () => import('./cli/qmp-command.js'),
};

/** Of an option that is repeated the last value counts; and a file may be called 0x10. */
const PARSER = { 'duplicate-arguments-array': false, 'parse-positional-numbers': false };

/** What all parsers have in common. */
function configure(parser: Argv, name: string): Argv {
  return parser
    .scriptName('vmcore')
    .parserConfiguration(PARSER)
    .strict()
    .help()
    .alias('help', 'h')
    .version(packageVersion())
    .wrap(Math.min(100, process.stdout.columns ?? 100))
    .exitProcess(false)
    .fail((message, error) => {
      if (error && error.name !== 'YError') throw error;
      throw new VmcoreError('USAGE', `${message}; see ${name} --help`);
    });
}

/** Of a lone subcommand yargs makes no help text unless it is asked for; of one among several it always does. */
function commandParser(args: readonly string[], name: string, { command, describe, builder, handler }: Command): Argv {
  const positionals = command.slice(name.length);
  return configure(yargs(getoptWords(args)), `vmcore ${name}`)
    .usage(`$0 ${command}\n\n${describe}`)
    .command(`$0${positionals}`, false, builder, handler as never);
}

/** Without a subcommand: help and version, or a word about what there is to do. */
async function generalParser(args: readonly string[]): Promise<Argv> {
  const parser = configure(yargs(args), 'vmcore')
    .usage('$0 <command>\n\nTurns the memory of a virtual machine into a vmcore.')
    .demandCommand(1, `say what to do: ${Object.keys(COMMANDS).join(', ')}`)
    .example('$0 dump guest.json -o vmcore', 'dump the guest that a JSON file describes')
    .example('$0 dump qmp:/run/guest.qmp -f kdump-raw-lzo -o vmcore', 'dump a live QEMU')
    .example('$0 dump - -o vmcore < fifo', 'keep what QEMU dumps into a FIFO')
    .example('$0 inspect vmcore', 'what is in it')
    .epilogue('vmcore <command> --help says more.');
  for (const load of Object.values(COMMANDS)) {
    const { command, describe } = await load();
    parser.command(command, describe);
  }
  return parser;
}

async function parse(args: readonly string[]): Promise<void> {
  const [name = '', ...rest] = args;
  const load = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  const parser = load ? commandParser(rest, name, await load()) : await generalParser(args);
  await parser.parseAsync();
}

/**
 * Runs the command line of the process.
 * @param workers compressor threads that were started ahead
 */
export async function main(workers: readonly Worker[] = []): Promise<void> {
  useStartedWorkers(workers);
  try {
    await parse(hideBin(process.argv));
  } catch (error) {
    failure(error);
  }
}
