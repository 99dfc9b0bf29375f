/** The version of the package that this is part of, as its package.json has it. */

import { readFileSync } from 'node:fs';

/** For example `0.1.0`. */
export function packageVersion(): string {
  // From dist/lib/ and, in the bundle, from dist/cli/.
  const file = new URL('../../package.json', import.meta.url);
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
}
