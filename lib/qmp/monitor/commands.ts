/** What the commands do. Arguments have been checked when they get here. */

import type { Descriptors } from './descriptors.js';
import type { DumpControl } from './dump-control.js';
import type { JsonObject } from '../protocol/json-parser.js';
import type { Reply } from '../protocol/json-text.js';
import type { Backend, Monitor } from './monitor.js';
import { QmpError } from '../protocol/qmp-error.js';
import { type Arguments, CAPABILITY, type CommandName, checkArguments, commandNames, introspect } from './schema.js';

/** What the commands of dumps work on. */
export interface DumpContext {
  readonly extensions: boolean;
  readonly dumps: DumpControl;
}

/** What commands work on. */
export interface CommandContext extends DumpContext {
  readonly version: Reply;
  readonly descriptors: Descriptors;
  /** the client asked for the end */
  quit(): void;
}

type Command<Context> = (args: Arguments, context: Context, monitor: Monitor) => Reply | Promise<Reply>;

const NOTHING: Reply = {};

/** What a client's session and its dumps take, whoever carries out the rest. */
const SESSION_COMMANDS = {
  qmp_capabilities(args, _context, monitor) {
    monitor.negotiate(args.get<readonly string[]>('enable') ?? []);
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
} satisfies Readonly<Record<string, Command<DumpContext>>>;

/** A command of a client's session and its dumps. */
export type SessionCommand = keyof typeof SESSION_COMMANDS;

/** Whether a command is one of the session and its dumps; `dump-cancel` is one with extensions only. */
export function isSessionCommand(name: string, extensions: boolean): name is SessionCommand {
  return Object.hasOwn(SESSION_COMMANDS, name) && commandNames(extensions).some((served) => served === name);
}

/** Carries out a command of the session and its dumps. @throws QmpError */
export function executeSessionCommand(
  name: SessionCommand,
  args: JsonObject,
  context: DumpContext,
  monitor: Monitor,
): Reply | Promise<Reply> {
  return SESSION_COMMANDS[name](checkArguments(name, args, context.extensions), context, monitor);
}

const COMMANDS: Readonly<Record<CommandName, Command<CommandContext>>> = {
  ...SESSION_COMMANDS,
  'query-version': (_args, { version }) => version,
  'query-commands': (_args, { extensions }) => commandNames(extensions).map((name) => ({ name })),
  'query-qmp-schema': (_args, { extensions }) => introspect(extensions),
  // A guest is one machine at one instant.
  'query-status': () => ({ status: 'paused', running: false }),
  quit(_args, context) {
    context.quit();
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
  readonly capabilities: readonly string[] = ['oob'];
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

  execute(command: string, args: JsonObject, monitor: Monitor, oob: boolean): Promise<Reply> | Reply {
    if (oob) throw new QmpError(`The command ${command} does not support OOB`);
    const name = command as CommandName;
    return COMMANDS[name](checkArguments(name, args, this.context.extensions), this.context, monitor);
  }
}
