/** Where things are, from the compiled code's point of view. */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

function repositoryRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) {
    if (folder === dirname(folder)) throw new Error(`no package.json above ${fileURLToPath(import.meta.url)}`);
    folder = dirname(folder);
  }
  return folder;
}

export const REPOSITORY = repositoryRoot();
export const GUESTS_SOURCE = join(REPOSITORY, 'test', 'guests');

/** The folder that keeps what was made. */
export function cacheFolder(): string {
  return process.env['VMCORE_GUESTS'] ?? join(REPOSITORY, '.guests');
}
