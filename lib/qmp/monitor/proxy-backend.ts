/**
 * What the proxy makes of a command: those of dumps are carried out here, those that would spoil a dump are refused
 * while one is under way, in QEMU's words, and all others are QEMU's.
 */

import { type DumpContext, executeSessionCommand, isSessionCommand } from './commands.js';
import { dumpInProcess } from './dump-control.js';
import type { JsonObject } from '../protocol/json-parser.js';
import type { Reply } from '../protocol/json-text.js';
import type { Backend, Monitor } from './monitor.js';
import type { SharedDescriptors } from './proxy-descriptors.js';
import type { ForwardedCommand, SharedQemu } from './proxy-link.js';
import { withAllFormats } from './proxy-schema.js';
import { QmpError } from '../protocol/qmp-error.js';

/** What commands work on. */
export interface ProxyContext extends DumpContext {
  readonly qemu: SharedQemu;
  readonly descriptors: SharedDescriptors;
}

const busy = dumpInProcess;

/**
 * What would have the machine run, or put another one, other memory or other registers in its place, while it is read.
 * QEMU refuses the first three while it dumps by itself. It does not refuse the others: of a snapshot that is loaded it
 * tells nobody, and a reset ends QEMU 7.2 altogether.
 */
const REFUSED_DURING_DUMPS: ReadonlyMap<string, () => QmpError> = new Map([
  ['stop', busy],
  ['cont', busy],
  ['migrate', () => new QmpError('Live migration disabled: dump-guest-memory in progress')],
  ['system_reset', busy],
  ['system_wakeup', busy],
  ['snapshot-load', busy],
  ['migrate-incoming', busy],
  ['migrate-recover', busy],
  ['migrate-start-postcopy', busy],
  ['x-colo-lost-heartbeat', busy],
  ['x-exit-preconfig', busy],
  ['xen-load-devices-state', busy],
  ['replay-seek', busy],
  ['inject-nmi', busy],
]);

/**
 * The same commands of the human monitor, with their short names, and what only it has: to load a snapshot, to write to
 * a port, to let a debugger in, and to dump past us.
 */
const REFUSED_LINES: ReadonlySet<string> = new Set([
  ...['stop', 's', 'cont', 'c', 'migrate', 'system_reset', 'system_wakeup', 'loadvm', 'migrate_incoming'],
  ...['migrate_recover', 'migrate_start_postcopy', 'x_colo_lost_heartbeat', 'replay_seek', 'nmi', 'mce', 'o'],
  ...['gdbserver', 'dump-guest-memory'],
]);

/** The command of a line, as the human monitor finds it: a name ends with a blank, or with the slash of a format. */
function commandOf(line: string): string {
  return /^\s*([^\s/]*)/.exec(line)![1]!;
}

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
      if (command === 'human-monitor-command' && REFUSED_LINES.has(commandOf(String(args.get('command-line')))))
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
