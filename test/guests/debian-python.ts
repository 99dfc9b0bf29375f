/** The Python of a Debian release, with the modules of the release's packages and no others. */
import type { DebianProgram } from './debian-programs.js';

/** @param name the release's own, as `python3.13` */
export function debianPython(name: string): DebianProgram {
  return { file: `usr/bin/${name}`, environment: 'PYTHONHOME="$root/usr" PYTHONPATH= PYTHONDONTWRITEBYTECODE=1' };
}

/** What it needs beside its libraries. */
export function pythonFolders(name: string): string[] {
  return ['usr/lib/python3', `usr/lib/${name}`];
}
