/** What a command is refused with: QEMU's two error classes, and its texts. */

import { VmcoreError } from '../errors.js';

/** QEMU's `QapiErrorClass`, as far as it is used by what we serve. */
export type QmpErrorClass = 'GenericError' | 'CommandNotFound';

/** An error that is answered to the client. */
export class QmpError extends VmcoreError {
  /**
   * @param desc       the text, in QEMU's words where QEMU has some
   * @param errorClass what clients tell errors apart by
   */
  constructor(
    readonly desc: string,
    readonly errorClass: QmpErrorClass = 'GenericError',
  ) {
    super('USAGE', desc);
  }
}
