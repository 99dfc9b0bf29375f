/**
 * makedumpfile 1.7.2 of Debian 12 for i386: the one for amd64 takes every dump for one of x86_64. It finds its way in a
 * dump of a 32-bit Linux by the virtual addresses of PT_LOADs only: of our ELF, it takes the one with `--paging`.
 */
import { spawnSync } from 'node:child_process';
import { skipUnless } from '../tools.js';
import { type DebianPrograms, debianPrograms, needsDebianPrograms } from './debian-programs.js';

const BOOKWORM_I386 = {
  debian: { release: 'bookworm', architecture: 'i386' },
  packages: ['makedumpfile'],
  programs: { makedumpfile: { file: 'usr/bin/makedumpfile' } },
  folders: [],
} as const satisfies DebianPrograms<string>;

/** The path of makedumpfile, which is downloaded when nobody has done so before. */
export async function i386Makedumpfile(): Promise<string> {
  return (await debianPrograms(BOOKWORM_I386))('makedumpfile');
}

/** The skip of a test that needs it: downloads it, and where that fails or it does not start it says why. */
export async function needsI386Makedumpfile(): Promise<string | false> {
  const skip = await needsDebianPrograms(BOOKWORM_I386);
  if (skip) return skip;
  const starts = spawnSync(await i386Makedumpfile(), ['-v']).status === 0;
  return skipUnless(starts ? [] : ['a kernel that runs programs for i386']);
}
