/** A file of known size to be read anywhere: a plain one, or one that is put together from a flattened one. */

import type { Backing } from '../model/physical-memory.js';

export interface RandomFile extends Backing {
  /** size in bytes */
  readonly size: number;
}
