/** crash and drgn of Debian's releases, whatever Debian this machine runs: debuggers of many years on one machine. */
import type { Debian } from './debian.js';
import { type DebianPrograms, debianPrograms } from './debian-programs.js';
import { debianPython, pythonFolders } from './debian-python.js';

/** The Python that each release's drgn is for. */
const PYTHONS = { bookworm: 'python3.11', trixie: 'python3.13', forky: 'python3.14' } as const;

export const DEBUGGER_RELEASES = ['bookworm', 'trixie', 'forky'] as const satisfies Debian['release'][];

export interface Debuggers {
  /** Path of crash. */
  readonly crash: string;
  /** Path of a Python with `drgn`. */
  readonly python: string;
}

function wanted(release: Debian['release']): DebianPrograms<'crash' | 'python3'> {
  const python = PYTHONS[release];
  return {
    debian: { release, architecture: 'amd64' },
    packages: ['crash', 'python3-drgn'],
    programs: {
      crash: { file: 'usr/bin/crash' },
      python3: debianPython(python),
    },
    folders: pythonFolders(python),
  };
}

/** The debuggers of a release, downloaded when nobody has done so before. */
export async function debuggers(release: Debian['release']): Promise<Debuggers> {
  const path = await debianPrograms(wanted(release));
  return { crash: path('crash'), python: path('python3') };
}
