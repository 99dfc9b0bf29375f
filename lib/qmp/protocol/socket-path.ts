/** Paths of UNIX sockets, which have to fit into a `struct sockaddr_un`: what is too long, libuv would cut. */

import { VmcoreError } from '../../model/errors.js';

/** Bytes of `sun_path` without the one that ends it: Linux has 108, the BSDs and macOS have 104. */
const SUN_PATH_MAX = process.platform === 'linux' ? 107 : 103;

/** Whether the path of a socket fits. */
export function fitsSocket(path: string): boolean {
  return Buffer.byteLength(path) <= SUN_PATH_MAX;
}

/** @throws VmcoreError USAGE when it does not fit */
export function checkSocketPath(path: string): void {
  if (fitsSocket(path)) return;
  throw new VmcoreError(
    'USAGE',
    `${path} is too long for the path of a socket: ${Buffer.byteLength(path)} bytes, and the system takes ` +
      `${SUN_PATH_MAX}; go to a folder on the way, and give the rest of the path`,
  );
}
