/** crash and drgn, asked what they find in the kernel of a vmcore. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Debuggers } from '../guests/debuggers.js';
import { REPOSITORY } from '../guests/places.js';

const TIMEOUT_MS = 600_000;
const WALK_KERNEL = join(REPOSITORY, 'test/oracle/walk-kernel.py');

/** Those that look at kernel memory. */
const CRASH_COMMANDS = [
  ...['sys', 'ps', 'foreach bt', 'foreach files', 'foreach vm', 'runq', 'timer', 'ipcs', 'log', 'mount', 'swap'],
  ...['kmem -i', 'kmem -s', 'kmem -f', 'kmem -z', 'kmem -V', 'mod', 'dev', 'net', 'irq'],
];

/** The text of each command of crash, or of each part of walk-kernel.py. */
export type Answers = ReadonlyMap<string, string>;

export interface Debugger {
  /** With its version. */
  readonly name: string;
  /** @throws Error with one line, when it does not know its way in the kernel */
  ask(vmcore: string): Answers;
  /** "PID ADDRESS" of each task but the idle ones, sorted. */
  tasks(answers: Answers): string[];
}

/** crash @param vmlinux of the kernel in the vmcores */
export function crashOf({ crash }: Debuggers, vmlinux: string): Debugger {
  return {
    name: `crash ${versionOf(crash, ['-v'], /^crash (\S+)/m)}`,
    ask: (vmcore) => {
      // Where it finds no task, some of its commands do not end.
      if (crashTasks(runCrash(crash, vmlinux, vmcore, ['ps'])).length === 0)
        throw new Error('ps finds no task but the idle ones');
      const answers = new Map(runCrash(crash, vmlinux, vmcore, CRASH_COMMANDS));
      answers.set('sys', answers.get('sys')!.replace(/^ *DUMPFILE:.*$/m, ''));
      return answers;
    },
    tasks: crashTasks,
  };
}

function crashTasks(answers: Answers): string[] {
  return [...answers.get('ps')!.matchAll(/^>? *(\d+) +\d+ +\d+ +([0-9a-f]{16}) /gm)]
    .filter(([, pid]) => pid !== '0')
    .map(([, pid, address]) => `${pid} ${address}`)
    .sort();
}

function runCrash(crash: string, vmlinux: string, vmcore: string, commands: readonly string[]): Answers {
  const folder = mkdtempSync(join(tmpdir(), 'vmcore-crash-'));
  try {
    const script = join(folder, 'commands');
    writeFileSync(script, [...commands, 'exit', ''].join('\n'));
    const options = ['--no_crashrc', '--no_scroll', '-i', script];
    const { stdout, stderr, status, signal } = run(crash, [...options, vmlinux, vmcore]);
    const complaint = (stdout + stderr).match(/^crash: .*$/gm)?.at(-1) ?? lastLine(stdout);
    if (status !== 0) throw new Error(`it ends with ${signal ?? `exit code ${status}`}: ${complaint}`);
    return partsOf(stdout.replace(/^crash> exit$/m, ''), /^crash> (.*)$/m);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** drgn @param vmlinux of the kernel in the vmcores */
export function drgnOf({ python }: Debuggers, vmlinux: string): Debugger {
  return {
    name: `drgn ${versionOf(python, ['-c', 'import drgn; print(drgn.__version__)'], /^(\S+)/)}`,
    ask: (vmcore) => {
      const { stdout, stderr, status } = run(python, [WALK_KERNEL, vmcore, vmlinux]);
      if (status !== 0) throw new Error(lastLine(stderr));
      const answers = partsOf(stdout, /^# (\w+)$/m);
      const tasks = answers.get('tasks')!;
      if (tasks.startsWith('!')) throw new Error(tasks.slice(2));
      return answers;
    },
    tasks: (answers) => [...answers.get('tasks')!.matchAll(/^\d+ [0-9a-f]{16}/gm)].map(String).sort(),
  };
}

function run(program: string, args: readonly string[]) {
  return spawnSync(program, args, {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
    timeout: TIMEOUT_MS,
    killSignal: 'SIGKILL',
    stdio: ['ignore', 'pipe', 'pipe'],
  });
}

/** Parts of an output by the lines that begin them. */
function partsOf(output: string, begin: RegExp): Answers {
  const pieces = output.split(begin).slice(1);
  return new Map(pieces.flatMap((name, i) => (i % 2 === 0 ? [[name, pieces[i + 1]!.trim()] as const] : [])));
}

function versionOf(program: string, args: readonly string[], version: RegExp): string {
  return version.exec(execFileSync(program, args, { encoding: 'utf8' }))![1]!;
}

function lastLine(text: string): string {
  return text.trim().split('\n').at(-1)!;
}
