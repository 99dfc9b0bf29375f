/** What is wrong with a Windows guest, in QEMU's words where it has any. */

import { VmcoreError } from '../model/errors.js';

export function winDumpError(message: string): VmcoreError {
  return new VmcoreError('BAD_INPUT', `win-dump: ${message}`);
}
