/**
 * Programs of a Debian release that this machine need not run. They come with their own C library and start through
 * their own dynamic loader: there is no chroot, and they see the machine's files.
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { skipUnless } from '../tools.js';
import { type Debian, DebianApt, missingForDebian } from './debian.js';
import { makeOnce } from './make-once.js';
import { cacheFolder, GUESTS_SOURCE } from './places.js';

/** Where libraries are, in releases with `/lib` apart from `/usr/lib` and in later ones, and what starts programs. */
const RUNTIMES = {
  amd64: { libraries: ['lib/x86_64-linux-gnu', 'usr/lib/x86_64-linux-gnu'], loader: 'ld-linux-x86-64.so.2' },
  i386: { libraries: ['lib/i386-linux-gnu', 'usr/lib/i386-linux-gnu'], loader: 'ld-linux.so.2' },
} as const;

export interface DebianProgram {
  /** Path in its package. */
  readonly file: string;
  /** Arguments that come first, for a shell; `$root` is the folder. */
  readonly args?: string;
  /** Assignments, for a shell. */
  readonly environment?: string;
}

/** Some programs of one release. */
export interface DebianPrograms<Name extends string> {
  readonly debian: Debian;
  readonly packages: readonly string[];
  readonly programs: Readonly<Record<Name, DebianProgram>>;
  /** Folders of the packages that the programs need beside their libraries. */
  readonly folders: readonly string[];
}

/** Where the programs are, or will be: named by all that it is made from, but for the versions of the packages. */
function folderOf(wanted: DebianPrograms<string>): string {
  const hash = createHash('sha256').update(JSON.stringify(wanted));
  for (const source of ['debian', 'debian-programs']) hash.update(readFileSync(join(GUESTS_SOURCE, `${source}.ts`)));
  const { release, architecture } = wanted.debian;
  return join(cacheFolder(), `${release}-${architecture}-${hash.digest('hex').slice(0, 12)}`);
}

/** Paths of the programs by name, which start like any other; downloaded when nobody has done so before. */
export async function debianPrograms<Name extends string>(
  wanted: DebianPrograms<Name>,
): Promise<(name: Name) => string> {
  const folder = folderOf(wanted);
  await makeOnce(folder, (into) => make(wanted, into));
  return (name) => join(folder, 'bin', name);
}

/** The skip of a test that needs the programs: downloads them, and where that fails it says why. */
export async function needsDebianPrograms(wanted: DebianPrograms<string>): Promise<string | false> {
  if (existsSync(folderOf(wanted))) return false;
  const missing = missingForDebian();
  if (missing.length > 0) return skipUnless(missing);
  try {
    await debianPrograms(wanted);
    return false;
  } catch (error) {
    return skipUnless([
      `packages of Debian ${wanted.debian.release} (${error instanceof Error ? error.message : error})`,
    ]);
  }
}

function make({ debian, packages, programs, folders }: DebianPrograms<string>, into: string): void {
  const tree = join(into, 'tree');
  const apt = join(into, 'apt');
  mkdirSync(apt);
  DebianApt.open(debian, apt).unpack(packages, tree, { closure: true });
  const { libraries, loader } = RUNTIMES[debian.architecture];
  const kept = libraries.filter((path) => existsSync(join(tree, path)));
  for (const path of [...Object.values(programs).map(({ file }) => file), ...kept, ...folders]) {
    mkdirSync(dirname(join(into, path)), { recursive: true });
    renameSync(join(tree, path), join(into, path));
  }
  for (const folder of [tree, apt]) rmSync(folder, { recursive: true });
  const start = kept.map((path) => `${path}/${loader}`).find((path) => existsSync(join(into, path)));
  if (start === undefined) throw new Error(`no ${loader} in the packages of Debian ${debian.release}`);
  const through = `"$root/${start}" --library-path "${kept.map((path) => `$root/${path}`).join(':')}"`;
  mkdirSync(join(into, 'bin'));
  for (const [name, program] of Object.entries(programs))
    writeFileSync(join(into, 'bin', name), launcher(through, program), { mode: 0o755 });
}

/** Where the folder is, it finds out when it runs: it is made under another name than it gets. */
function launcher(through: string, { file, args = '', environment = '' }: DebianProgram): string {
  return ['#!/bin/sh', 'root="${0%/*}/.."', `${environment} exec ${through} "$root/${file}" ${args} "$@"`, ''].join(
    '\n',
  );
}
