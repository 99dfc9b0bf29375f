/**
 * Tests that need a program which the machine may lack: skipped by name there, and failed where skipping is not
 * allowed (CI sets VMCORE_NO_SKIP).
 */

import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, rmdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { makeShortFolder } from './short-folder.js';

/** The command line, as it is built. */
export const CLI = fileURLToPath(new URL('../cli/cli.js', import.meta.url));

/** The system's python3, which has the modules of the system's packages; another one may come first in the path. */
export const PYTHON = existsSync('/usr/bin/python3') ? '/usr/bin/python3' : 'python3';

/** Whether a program can be started. */
export function hasTool(tool: string, versionFlag = '--version'): boolean {
  return spawnSync(tool, [versionFlag]).error === undefined;
}

/** Whether python3 can import a module. */
export function hasPython(module: string): boolean {
  return spawnSync(PYTHON, ['-c', `import ${module}`]).status === 0;
}

/**
 * The `skip` of a test: false when nothing is missing, else what is.
 * @param missing names of what the test needs and the machine lacks
 */
export function skipUnless(missing: readonly string[]): string | false {
  if (missing.length === 0) return false;
  const reason = `this machine lacks ${missing.join(', ')}`;
  if (process.env['VMCORE_NO_SKIP']) throw new Error(`${reason}, and VMCORE_NO_SKIP is set`);
  return reason;
}

/** The skip of a test that needs programs. */
export function needsTools(...tools: readonly string[]): string | false {
  return skipUnless(tools.filter((tool) => !hasTool(tool)));
}

/**
 * The skip of a test that needs root. It is no failure anywhere: CI runs the tests as an ordinary user, and then as root
 * the files that say this (.ci/run looks for these words).
 */
export function needsRoot(): string | false {
  return process.getuid?.() === 0 ? false : 'needs root';
}

/** The skip of a test in which one process reads the memory of another that it has not started (ptrace(2), Yama). */
export function needsTracing(): string | false {
  const scope = '/proc/sys/kernel/yama/ptrace_scope';
  const isFree = !existsSync(scope) || readFileSync(scope, 'latin1').trim() === '0';
  return !isFree && needsRoot();
}

/** The skip of a test that mounts something: root need not be allowed to, in a container. */
export function needsMount(): string | false {
  return needsRoot() || needsTools('mount', 'umount') || skipUnless(mayMount() ? [] : ['the right to mount']);
}

function mayMount(): boolean {
  const folder = makeShortFolder();
  const mounted = spawnSync('mount', ['-t', 'tmpfs', 'tmpfs', folder]).status === 0;
  if (mounted) execFileSync('umount', [folder]);
  rmdirSync(folder);
  return mounted;
}

/** The skip of a test that needs python modules. */
export function needsPython(...modules: readonly string[]): string | false {
  return skipUnless(modules.filter((module) => !hasPython(module)).map((module) => `python3 module ${module}`));
}

/** Options of a process that has dropped all privileges. */
export const NOBODY = { uid: 65534, gid: 65534 };

/** The skip of tests that drop privileges: only root can, and the command line has to be in reach for others, too. */
export const asNobody = needsRoot() || skipUnless(isInReach() ? [] : ['a folder that others can read']);

function isInReach(): boolean {
  return spawnSync('test', ['-r', CLI], NOBODY).status === 0;
}
