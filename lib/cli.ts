#!/usr/bin/env node
/** The command line: parses, calls lib/dump.ts and its peers, reports. Exit codes: 0, 1 failed, 2 usage, 130 Ctrl-C. */

import yargs from 'yargs';
import { hideBin } from 'yargs/helpers';
import * as dumpCommand from './cli/dump-command.js';
import * as inspectCommand from './cli/inspect-command.js';
import * as qmpCommand from './cli/qmp-command.js';
import { errnoOf, ioError, messageOf, VmcoreError } from './errors.js';

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

const parser = yargs(hideBin(process.argv))
  .scriptName('vmcore')
  .parserConfiguration({ 'duplicate-arguments-array': false })
  .usage('$0 <command>\n\nTurns the memory of a virtual machine into a vmcore.')
  .command(dumpCommand as never)
  .command(inspectCommand as never)
  .command(qmpCommand as never)
  .demandCommand(1, 'say what to do: dump, inspect or qmp')
  .strict()
  .example('$0 dump guest.json -o vmcore', 'dump the guest that a JSON file describes')
  .example('$0 dump - -o vmcore < fifo', 'keep what QEMU dumps into a FIFO')
  .example('$0 inspect vmcore', 'what is in it')
  .epilogue('vmcore dump --help, vmcore inspect --help and vmcore qmp --help say more.')
  .help()
  .alias('help', 'h')
  .version()
  .wrap(Math.min(100, process.stdout.columns ?? 100))
  .exitProcess(false)
  .fail((message, error) => {
    if (error && error.name !== 'YError') throw error;
    throw new VmcoreError('USAGE', `${message}; see vmcore --help`);
  });

try {
  await parser.parseAsync();
} catch (error) {
  failure(error);
}
