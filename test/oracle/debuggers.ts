/**
 * The debuggers on dumps at level 31: crash and drgn of three Debian releases, with the kernel's debug package, walk tasks,
 * stacks, slab caches, mounts, modules, the log and struct pages, and have to say what they say of the whole dump.
 *
 *   npm run check:debuggers [-- GUEST…]
 *
 * It is not one of the tests, as it downloads 0.5 GiB of debug packages into `.guests`. docs/debuggers.md has what it said.
 * What a debugger cannot do with the whole dump either is printed, and is no difference; but each guest needs a crash and
 * a drgn that know their way, and all that do have to find the same tasks.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { type BusyName, busyGuest } from '../guests/busy.js';
import type { KernelName } from '../guests/debian-kernel.js';
import { DEBUGGER_RELEASES, debuggers } from '../guests/debuggers.js';
import { withLiveLinux } from '../guests/live-linux.js';
import { roomyFolder } from '../guests/qemu.js';
import { vmlinux } from '../guests/vmlinux.js';
import { CLI } from '../tools.js';
import { type Answers, crashOf, type Debugger, drgnOf } from './ask-debugger.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;

/** Options of `vmcore dump`. */
const KDUMP = ['-f', 'kdump-raw-lzo'];
const FORMATS = [KDUMP, ['-f', 'elf'], ['-f', 'elf', '--paging']];
const LEVEL = ['-d', '31'];

interface CheckedGuest {
  readonly kernel: KernelName;
  /** Calls `use` with arguments for `vmcore dump`, while they are good. */
  run(use: (source: readonly string[]) => void): Promise<void>;
}

function busy(kernel: KernelName, name: BusyName): CheckedGuest {
  return { kernel, run: async (use) => use((await busyGuest(name)).source) };
}

function live(kernel: KernelName): CheckedGuest {
  return { kernel, run: (use) => withLiveLinux(kernel, (source) => use([source])) };
}

const GUESTS: Readonly<Record<string, CheckedGuest>> = {
  'busy-6.1': busy('6.1', 'busy-6.1'),
  'busy-6.12': busy('6.12', 'busy-6.12'),
  'live-6.1': live('6.1'),
  'live-6.12': live('6.12'),
  'busy-6.1-5g': busy('6.1', 'busy-6.1-5g'),
  'busy-6.12-5g': busy('6.12', 'busy-6.12-5g'),
};

/** Those of 5 GiB take ten minutes each. */
const BY_DEFAULT = ['busy-6.1', 'busy-6.12', 'live-6.1', 'live-6.12'];

const folder = mkdtempSync(join(roomyFolder(2 * GIB), 'vmcore-debuggers-'));
let failures = 0;

function fail(text: string): void {
  failures++;
  console.log(`  DIFFERENCE: ${text}`);
}

/** Dumps once for each set of options. */
class Dumps {
  readonly #source: readonly string[];
  readonly #paths = new Map<string, string>();

  constructor(source: readonly string[]) {
    this.#source = source;
  }

  path(options: readonly string[]): string {
    const name = options.join(' ');
    let path = this.#paths.get(name);
    if (path === undefined) {
      path = join(folder, `${this.#paths.size}`);
      execFileSync(process.execPath, [CLI, 'dump', ...this.#source, ...options, '-o', path], { stdio: 'pipe' });
      this.#paths.set(name, path);
      const { size, blocks } = statSync(path);
      console.log(`  ${name}: ${(size / MIB).toFixed(1)} MiB, ${((blocks * 512) / MIB).toFixed(1)} MiB on disk`);
    }
    return path;
  }

  remove(): void {
    for (const path of this.#paths.values()) rmSync(path);
  }
}

async function check(name: string, { kernel, run }: CheckedGuest): Promise<void> {
  const namelist = await vmlinux(kernel);
  const releases = await Promise.all(DEBUGGER_RELEASES.map(debuggers));
  console.log(`${name}:`);
  await run((source) => {
    const dumps = new Dumps(source);
    for (const options of [KDUMP, ...FORMATS.map((format) => [...format, ...LEVEL])]) dumps.path(options);
    const tasks: string[][] = [];
    for (const [tool, debuggerOf] of Object.entries({ crash: crashOf, drgn: drgnOf })) {
      const found = releases
        .map((programs) => checkDebugger(debuggerOf(programs, namelist), dumps))
        .filter((tasks) => tasks !== undefined);
      if (found.length === 0) fail(`no version of ${tool} knows its way`);
      tasks.push(...found);
    }
    if (tasks.some((found) => !isDeepStrictEqual(found, tasks[0]))) fail('the debuggers find different tasks');
    dumps.remove();
  });
}

/** Compares what a debugger says of each dump; returns the tasks that it finds, or undefined where it cannot be used. */
function checkDebugger(program: Debugger, dumps: Dumps): string[] | undefined {
  let whole: Answers;
  try {
    whole = program.ask(dumps.path(KDUMP));
  } catch (error) {
    console.log(`  ${program.name}: not even the whole dump: ${(error as Error).message}`);
    return undefined;
  }
  console.log(`  ${program.name}: ${[...whole].map(([part, text]) => `${part} ${summary(text)}`).join(', ')}`);
  for (const format of FORMATS) checkFormat(program, dumps, format, whole);
  return program.tasks(whole);
}

function checkFormat(program: Debugger, dumps: Dumps, format: readonly string[], whole: Answers): void {
  const name = `${program.name}, ${[...format, ...LEVEL].join(' ')}`;
  const partial = tryAsk(program, dumps.path([...format, ...LEVEL]));
  if (typeof partial === 'string') {
    const same = tryAsk(program, dumps.path(format)) === partial;
    if (same) console.log(`  ${name}: as without the level: ${partial}`);
    else fail(`${name}: ${partial}`);
    return;
  }
  const different = [...whole.keys()].filter((part) => partial.get(part) !== whole.get(part));
  for (const part of different) fail(`${name}: ${part}: ${firstDifference(whole.get(part)!, partial.get(part) ?? '')}`);
  if (different.length === 0) console.log(`  ${name}: the same`);
}

function tryAsk(program: Debugger, vmcore: string): Answers | string {
  try {
    return program.ask(vmcore);
  } catch (error) {
    return (error as Error).message;
  }
}

/** How many lines, or what the debugger cannot do. */
function summary(text: string): string {
  const error = /^(?:! |\w+: (?=invalid|cannot|seek error|page excluded)).*$/m.exec(text)?.[0];
  return error ? `(${error})` : `${text.split('\n').length}`;
}

function firstDifference(whole: string, partial: string): string {
  const [expected, found] = [whole, partial].map((text) => text.split('\n')) as [string[], string[]];
  const at = expected.findIndex((line, i) => line !== found[i]);
  return `line ${at + 1} is "${found[at]}" instead of "${expected[at]}"`;
}

try {
  const names = process.argv.slice(2);
  for (const name of names.length > 0 ? names : BY_DEFAULT) {
    const guest = GUESTS[name];
    if (guest === undefined) throw new Error(`no guest ${name}: there are ${Object.keys(GUESTS).join(', ')}`);
    await check(name, guest);
  }
  console.log(failures === 0 ? 'no difference' : `${failures} differences`);
  process.exitCode = failures === 0 ? 0 : 1;
} finally {
  rmSync(folder, { recursive: true, force: true });
}
