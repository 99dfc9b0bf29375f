/** Programs of Debian 13 (trixie), whatever Debian this machine runs. */
import { type DebianPrograms, debianPrograms, needsDebianPrograms } from './debian-programs.js';
import { debianPython, pythonFolders } from './debian-python.js';

/** QEMU's firmware is in two packages. */
const FIRMWARE = ['usr/share/qemu', 'usr/share/seabios'];

const PYTHON = 'python3.13';

const TRIXIE = {
  debian: { release: 'trixie', architecture: 'amd64' },
  packages: ['qemu-system-x86', 'makedumpfile', 'python3-drgn', 'python3-libkdumpfile'],
  programs: {
    'qemu-system-x86_64': {
      file: 'usr/bin/qemu-system-x86_64',
      args: FIRMWARE.map((folder) => `-L "$root/${folder}"`).join(' '),
    },
    makedumpfile: { file: 'usr/bin/makedumpfile' },
    python3: debianPython(PYTHON),
  },
  folders: [...FIRMWARE, ...pythonFolders(PYTHON)],
} as const satisfies DebianPrograms<string>;

/** Paths of programs that start like any other. */
export interface Trixie {
  /** QEMU 10, for `binary` of QemuOptions. */
  readonly qemu: string;
  /** 1.7.6. Of Linux 6.12 it takes no page for free: see forky.ts. */
  readonly makedumpfile: string;
  /** With `drgn` 0.0.31 and `kdumpfile` 0.5.4, which reads flattened files. */
  readonly python: string;
}

/** The programs, downloaded when nobody has done so before. */
export async function trixie(): Promise<Trixie> {
  const path = await debianPrograms(TRIXIE);
  return { qemu: path('qemu-system-x86_64'), makedumpfile: path('makedumpfile'), python: path('python3') };
}

/** The skip of a test that needs them: downloads them, and where that fails it says why. */
export function needsTrixie(): Promise<string | false> {
  return needsDebianPrograms(TRIXIE);
}
