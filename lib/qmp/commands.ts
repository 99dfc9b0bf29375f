/** What the commands do. Arguments have been checked when they get here. */

import type { Descriptors } from './descriptors.js';
import type { DumpControl } from './dump-control.js';
import type { JsonObject } from './json-parser.js';
import type { Reply } from './json-text.js';
import type { Backend, Monitor } from './monitor.js';
import { type Arguments, CAPABILITY, type CommandName, checkArguments, commandNames, introspect } from './schema.js';

/** What commands work on. */
export interface CommandContext {
  readonly version: Reply;
  readonly extensions: boolean;
  readonly descriptors: Descriptors;
  readonly dumps: DumpControl;
  /** the client asked for the end */
  quit(): void;
}

type Command = (args: Arguments, context: CommandContext, monitor: Monitor) => Reply | Promise<Reply>;

const NOTHING: Reply = {};

const COMMANDS: Readonly<Record<CommandName, Command>> = {
  qmp_capabilities(args, _context, monitor) {
    monitor.negotiate(args.get<readonly string[]>('enable') ?? []);
    return NOTHING;
  },
  'query-version': (_args, { version }) => version,
  'query-commands': (_args, { extensions }) => commandNames(extensions).map((name) => ({ name })),
  'query-qmp-schema': (_args, { extensions }) => introspect(extensions),
  // A guest is one machine at one instant.
  'query-status': () => ({ status: 'paused', running: false }),
  quit(_args, context) {
    context.quit();
    return NOTHING;
  },
  async 'dump-guest-memory'(args, { dumps }) {
    await dumps.dump(args);
    return NOTHING;
  },
  'query-dump': (_args, { dumps }) => ({ ...dumps.status }),
  'query-dump-guest-memory-capability': () => ({ formats: CAPABILITY }),
  'dump-cancel'(_args, { dumps }) {
    dumps.cancel();
    return NOTHING;
  },
  getfd(args, { descriptors }, monitor) {
    descriptors.setNamed(args.get<string>('fdname')!, monitor.takeDescriptor());
    return NOTHING;
  },
  closefd(args, { descriptors }) {
    descriptors.closeNamed(args.get<string>('fdname')!);
    return NOTHING;
  },
  'add-fd'(args, { descriptors }, monitor) {
    const fd = monitor.takeDescriptor();
    return { fd, 'fdset-id': descriptors.add(fd, args.number('fdset-id'), args.get<string>('opaque')) };
  },
  'remove-fd'(args, { descriptors }) {
    descriptors.remove(args.number('fdset-id')!, args.number('fd'));
    return NOTHING;
  },
  'query-fdsets': (_args, { descriptors }) =>
    descriptors.query().map((set) => ({ ...set, fds: [...set.fds] }) as Reply),
};

/** Commands as a monitor wants them. */
export class CommandSet implements Backend {
  readonly #names: ReadonlySet<string>;

  constructor(private readonly context: CommandContext) {
    this.#names = new Set(commandNames(context.extensions));
  }

  get version(): Reply {
    return this.context.version;
  }

  has(command: string): boolean {
    return this.#names.has(command);
  }

  execute(command: string, args: JsonObject, monitor: Monitor): Promise<Reply> | Reply {
    const name = command as CommandName;
    return COMMANDS[name](checkArguments(name, args, this.context.extensions), this.context, monitor);
  }
}
