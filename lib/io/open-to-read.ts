/** Opens what is read, in a way that never waits. */

import { constants, fstatSync, openSync } from 'node:fs';
import { errnoOf } from '../model/errors.js';
import { ownDescriptor } from './own-descriptor.js';
import type { DescriptorSource } from './byte-input.js';

/** Without it, open(2) of a FIFO would wait for a writer, and the process with it: no signal would end it. */
const WITHOUT_WAITING = constants.O_RDONLY | constants.O_NONBLOCK;

/**
 * Opens a path. One that stands for a descriptor of ours, and may not be opened again, is that descriptor: it is not owned.
 * @throws an error of the system
 */
export function openToRead(path: string): DescriptorSource & { readonly owned: boolean } {
  try {
    return { fd: openSync(path, WITHOUT_WAITING), owned: true };
  } catch (error) {
    const fd = ownDescriptor(path);
    if (fd === null || errnoOf(error) !== 'EACCES') throw error;
    fstatSync(fd);
    return { fd, owned: false };
  }
}
