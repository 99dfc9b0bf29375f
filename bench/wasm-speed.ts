/**
 * The encoder module alone, beside the native libraries.
 *
 *   node dist/bench/wasm-speed.js [MEMORY [PAGES]]
 *
 * MEMORY is a file of raw guest memory, the first Linux guest in .guests by default. Of its non-zero pages, PAGES (20,480
 * by default) are taken, evenly spread.
 */

import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { printWasmSpeed } from './wasm-alone.js';

/** Memory of the first Linux guest that the tests have built. */
function firstGuest(): string {
  const paths = readdirSync('.guests').map((name) => join('.guests', name, 'guest.ram'));
  const path = paths.find((path) => path.includes('linux') && existsSync(path));
  if (!path) throw new Error('no guest memory: name a file');
  return path;
}

const [, , path = firstGuest(), pages] = process.argv;
console.log(path);
await printWasmSpeed(path, pages === undefined ? undefined : Number(pages));
