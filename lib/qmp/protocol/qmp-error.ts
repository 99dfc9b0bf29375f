/** What a command is refused with: QEMU's error classes, and its texts. */

import { VmcoreError } from '../../model/errors.js';

/** QEMU's `QapiErrorClass`: the two that we use, and what QEMU itself may answer. */
export type QmpErrorClass = 'GenericError' | 'CommandNotFound' | (string & {});

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
