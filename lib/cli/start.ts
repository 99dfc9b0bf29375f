#!/usr/bin/env node
/**
 * Starts the bundled command line (dist/cli/).
 *
 * Node would take longer to compile it than a gigabyte of guest memory takes to be read. So command.js runs from the code
 * that V8 has kept of it in command.cache. V8 refuses what another version of Node has kept, or one with other flags;
 * then it compiles. Compressor threads, where the command line asks for them, start at the same time.
 *
 * With VMCORE_KEEP_CODE in the environment the process keeps, at its end, what it has compiled: the bundler asks for that.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire, wrap } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Script } from 'node:vm';
import type { Worker } from 'node:worker_threads';
import type { main } from '../cli.js';
import { defaultThreads, startWasmWorker } from '../codecs/wasm-workers.js';

/** What Node calls a module's code with; see https://nodejs.org/api/modules.html#the-module-wrapper */
type ModuleFunction = (
  exports: object,
  require: NodeJS.Require,
  module: { exports: object },
  filename: string,
  dirname: string,
) => void;

const folder = dirname(fileURLToPath(import.meta.url));
const filename = join(folder, 'command.js');
const cache = join(folder, 'command.cache');

/** Whether the command line asks for a kdump, with the threads that there are by default. */
function asksForThreads([command, ...args]: readonly string[]): boolean {
  const isKdump = args.some((arg) => /kdump-(raw-)?(zlib|lzo|snappy)$/.test(arg));
  return command === 'dump' && isKdump && !args.some((arg) => /^--(threads|codec)\b/.test(arg));
}

function startThreads(): Worker[] {
  if (!asksForThreads(process.argv.slice(2))) return [];
  return Array.from({ length: defaultThreads() }, startWasmWorker);
}

function keptCode(): Buffer | undefined {
  try {
    return readFileSync(cache);
  } catch {
    return undefined;
  }
}

/** Runs command.js as Node would. */
function loadCommand(): { readonly main: typeof main } {
  // The bundle is ASCII, and reads as Latin-1 faster than as UTF-8.
  const source = wrap(readFileSync(filename, 'latin1'));
  const script = new Script(source, { filename, cachedData: keptCode() });
  if (process.env['VMCORE_KEEP_CODE']) process.on('exit', () => writeFileSync(cache, script.createCachedData()));
  const module = { exports: {} as { readonly main: typeof main } };
  const run = script.runInThisContext() as ModuleFunction;
  run(module.exports, createRequire(filename), module, filename, folder);
  return module.exports;
}

const workers = startThreads();
void loadCommand().main(workers);
