/**
 * Folders for sockets, and for whatever a shell line names without quotes: the path of a socket may have 107 bytes, and
 * both the project and the temporary folder can be anywhere.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Bytes of a temporary folder's path that leave enough for two folders and a name below it. */
const LONGEST = 32;

/** The temporary folder, or the one that every system has where that one's path is long or no plain word. */
export function shortTemporary(): string {
  const folder = tmpdir();
  return folder.length <= LONGEST && /^[\w./-]+$/.test(folder) ? folder : '/tmp';
}

/** A new folder with a short path; whoever makes it removes it. */
export function makeShortFolder(): string {
  return mkdtempSync(join(shortTemporary(), 'vmcore-'));
}

/** A new folder with a short path, which goes with the test. */
export function shortFolder(t: { teardown(work: () => void): void }): string {
  const folder = makeShortFolder();
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}
