/**
 * makedumpfile of Debian 14 (forky), whatever Debian this machine runs: 1.7.8 or later. It is the first that knows the
 * page types of Linux 6.12: 1.7.2 overlooks huge pages there, and 1.7.6 every page that is free or offline.
 */
import { type DebianPrograms, debianPrograms, needsDebianPrograms } from './debian-programs.js';

const FORKY = {
  debian: { release: 'forky', architecture: 'amd64' },
  packages: ['makedumpfile'],
  programs: { makedumpfile: { file: 'usr/bin/makedumpfile' } },
  folders: [],
} as const satisfies DebianPrograms<string>;

/** The path of makedumpfile, which is downloaded when nobody has done so before. */
export async function forkyMakedumpfile(): Promise<string> {
  return (await debianPrograms(FORKY))('makedumpfile');
}

/** The skip of a test that needs it: downloads it, and where that fails it says why. */
export function needsForky(): Promise<string | false> {
  return needsDebianPrograms(FORKY);
}
