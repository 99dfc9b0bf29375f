/**
 * What the proxy makes of a command: those of dumps are carried out here, those that would spoil a dump are refused
 * while one is under way, in QEMU's words, and all others are QEMU's.
 */

import { type DumpContext, executeSessionCommand, isSessionCommand } from './commands.js';
import { dumpInProcess } from './dump-control.js';
import type { JsonObject } from './json-parser.js';
import type { Reply } from './json-text.js';
import type { Backend, Monitor } from './monitor.js';
import type { SharedDescriptors } from './proxy-descriptors.js';
import type { ForwardedCommand, SharedQemu } from './proxy-link.js';
import { withAllFormats } from './proxy-schema.js';
import { QmpError } from './qmp-error.js';

/** What commands work on. */
export interface ProxyContext extends DumpContext {
  readonly qemu: SharedQemu;
  readonly descriptors: SharedDescriptors;
}

/**
 * What QEMU refuses while it dumps, and with which words. And `system_reset`, which it does not: it would reset what is
 * being dumped, and ends QEMU 7.2 altogether.
 */
const REFUSED_DURING_DUMPS: ReadonlyMap<string, () => QmpError> = new Map([
  ['stop', dumpInProcess],
  ['cont', dumpInProcess],
  ['system_reset', dumpInProcess],
  ['migrate', () => new QmpError('Live migration disabled: dump-guest-memory in progress')],
]);

/** The same commands of the human monitor, with their short names. */
const REFUSED_LINES = /^\s*(?:stop|s|cont|c|system_reset|migrate)(?:\s|$)/;

/** Commands as a monitor wants them. */
export class ProxyBackend implements Backend {
  constructor(private readonly context: ProxyContext) {}

  get version(): Reply {
    return this.context.qemu.version;
  }

  get capabilities(): readonly string[] {
    return this.context.qemu.capabilities;
  }

  /** QEMU says so itself when there is none. */
  has(): boolean {
    return true;
  }

  execute(command: string, args: JsonObject, monitor: Monitor, oob: boolean): Promise<Reply> | Reply {
    // Out of band QEMU refuses them, in its own words.
    if (!oob && isSessionCommand(command, this.context.extensions))
      return executeSessionCommand(command, args, this.context, monitor);
    if (!oob && this.context.dumps.active) {
      const refusal = REFUSED_DURING_DUMPS.get(command);
      if (refusal) throw refusal();
      if (command === 'human-monitor-command' && REFUSED_LINES.test(String(args.get('command-line'))))
        return `Error: ${dumpInProcess().desc}\r\n`;
    }
    return this.#forward({ command, args, oob }, monitor);
  }

  async #forward(forwarded: ForwardedCommand, monitor: Monitor): Promise<Reply> {
    const { qemu, descriptors } = this.context;
    switch (forwarded.command) {
      case 'getfd':
        return descriptors.get(forwarded, monitor);
      case 'closefd':
        return descriptors.closefd(forwarded);
      case 'add-fd':
        return descriptors.addToSet(forwarded, monitor);
      case 'remove-fd':
        return descriptors.removeFromSet(forwarded);
      case 'query-qmp-schema':
        return withAllFormats(await qemu.forward(forwarded));
      default:
        return qemu.forward(forwarded).finally(() => descriptors.reconcile(forwarded));
    }
  }
}
