/**
 * What spoils a dump: a machine that was to stand still did not, or its memory was made anew, as somebody asked for over
 * another monitor.
 */

import type { QmpEvent } from '../../qmp/protocol/client.js';

/**
 * Events that tell of it. `WAKEUP` comes of its own where QEMU does not stop a machine that sleeps (before QEMU 9); a
 * reset loads ROMs and clears devices of a machine that is stopped as well.
 *
 * Of the others, `SUSPEND`, `SUSPEND_DISK`, `SHUTDOWN`, `GUEST_PANICKED` and `BALLOON_CHANGE` are doings of a guest that
 * runs, and so come after one of these or after QEMU's end; `POWERDOWN` only asks the guest. Of a snapshot that is loaded
 * QEMU tells nothing.
 */
const DISTURBANCES: ReadonlyMap<string, string> = new Map([
  ['RESUME', 'was resumed by somebody else'],
  ['WAKEUP', 'was woken up'],
  ['RESET', 'was reset'],
]);

/** What an event says has happened to the guest while it was read, as a sentence; null where that does not matter. */
export function disturbanceOf({ event }: Pick<QmpEvent, 'event'>): string | null {
  const what = DISTURBANCES.get(event);
  return what === undefined ? null : `the guest ${what} while it was read`;
}
