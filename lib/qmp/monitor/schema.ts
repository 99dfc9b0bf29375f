/**
 * What we serve, as data in the manner of QEMU's QAPI schema: from this one table arguments are checked, and
 * `query-qmp-schema` is answered.
 *
 * Notation as in QAPI: `'*name'` is an optional member, `['type']` a list.
 */

import { FORMATS } from '../../request.js';
import type { Json, JsonObject } from '../protocol/json-parser.js';
import type { Reply } from '../protocol/json-text.js';
import { QmpError } from '../protocol/qmp-error.js';

type TypeName = string;
type TypeRef = TypeName | readonly [TypeName];
type Members = Readonly<Record<string, TypeRef>>;

/** A command: its arguments and its result; `{}` is none. */
export interface CommandSchema {
  readonly data: Members;
  readonly returns?: TypeRef;
  /** only with --extensions */
  readonly extension?: boolean;
}

/** The formats in the order of `query-dump-guest-memory-capability`, which is not that of the schema. */
export const CAPABILITY = [
  'elf',
  'kdump-zlib',
  'kdump-raw-zlib',
  'kdump-lzo',
  'kdump-raw-lzo',
  'kdump-snappy',
  'kdump-raw-snappy',
  'win-dmp',
] as const satisfies readonly (typeof FORMATS)[number][];

const ENUMS: Readonly<Record<TypeName, readonly string[]>> = {
  DumpGuestMemoryFormat: FORMATS,
  DumpStatus: ['none', 'active', 'completed', 'failed'],
  QMPCapability: ['oob'],
  // A guest of ours stands still; a client that looks up the values finds what QEMU has.
  RunState: [
    ...['debug', 'inmigrate', 'internal-error', 'io-error', 'paused', 'postmigrate', 'prelaunch', 'finish-migrate'],
    ...['restore-vm', 'running', 'save-vm', 'shutdown', 'suspended', 'watchdog', 'guest-panicked', 'colo'],
  ],
  ShutdownCause: [
    ...['none', 'host-error', 'host-qmp-quit', 'host-qmp-system-reset', 'host-signal', 'host-ui', 'guest-shutdown'],
    ...['guest-reset', 'guest-panic', 'subsystem-reset', 'snapshot-load'],
  ],
};

const OBJECTS: Readonly<Record<TypeName, Members>> = {
  AddfdInfo: { 'fdset-id': 'int', fd: 'int' },
  CommandInfo: { name: 'str' },
  DumpGuestMemoryCapability: { formats: ['DumpGuestMemoryFormat'] },
  DumpQueryResult: { status: 'DumpStatus', completed: 'int', total: 'int' },
  FdsetFdInfo: { fd: 'int', '*opaque': 'str' },
  FdsetInfo: { 'fdset-id': 'int', fds: ['FdsetFdInfo'] },
  StatusInfo: { running: 'bool', status: 'RunState' },
  VersionInfo: { qemu: 'VersionTriple', package: 'str' },
  VersionTriple: { major: 'int', minor: 'int', micro: 'int' },
};

/** The commands. Arguments are checked in their order here, which is QAPI's. */
export const COMMANDS = {
  qmp_capabilities: { data: { '*enable': ['QMPCapability'] } },
  'query-version': { data: {}, returns: 'VersionInfo' },
  'query-commands': { data: {}, returns: ['CommandInfo'] },
  'query-qmp-schema': { data: {}, returns: ['SchemaInfo'] },
  'query-status': { data: {}, returns: 'StatusInfo' },
  quit: { data: {} },
  'dump-guest-memory': {
    data: {
      paging: 'bool',
      protocol: 'str',
      '*detach': 'bool',
      '*begin': 'int',
      '*length': 'int',
      '*format': 'DumpGuestMemoryFormat',
    },
  },
  'query-dump': { data: {}, returns: 'DumpQueryResult' },
  'query-dump-guest-memory-capability': { data: {}, returns: 'DumpGuestMemoryCapability' },
  getfd: { data: { fdname: 'str' } },
  closefd: { data: { fdname: 'str' } },
  'add-fd': { data: { '*fdset-id': 'int', '*opaque': 'str' }, returns: 'AddfdInfo' },
  'remove-fd': { data: { 'fdset-id': 'int', '*fd': 'int' } },
  'query-fdsets': { data: {}, returns: ['FdsetInfo'] },
  'dump-cancel': { data: {}, extension: true },
} as const satisfies Readonly<Record<string, CommandSchema>>;

export type CommandName = keyof typeof COMMANDS;

/** What `dump-guest-memory` takes beyond QEMU's arguments, with --extensions. */
const EXTENSION_ARGUMENTS: Readonly<Record<string, Members>> = { 'dump-guest-memory': { '*threads': 'int' } };

const EVENTS: Readonly<Record<string, Members>> = {
  DUMP_COMPLETED: { result: 'DumpQueryResult', '*error': 'str' },
  SHUTDOWN: { guest: 'bool', reason: 'ShutdownCause' },
};

/** The commands that are served. */
export function commandNames(extensions: boolean): CommandName[] {
  const isServed = ([, { extension }]: [string, CommandSchema]) => extensions || !extension;
  return Object.entries<CommandSchema>(COMMANDS)
    .filter(isServed)
    .map(([name]) => name as CommandName);
}

type Member = readonly [name: string, type: TypeRef, optional: boolean];

function memberList(members: Members): Member[] {
  return Object.entries(members).map(([name, type]) => [name.replace(/^\*/, ''), type, name.startsWith('*')]);
}

function membersOf(command: CommandName, extensions: boolean): Member[] {
  return memberList({ ...COMMANDS[command].data, ...(extensions ? EXTENSION_ARGUMENTS[command] : {}) });
}

/** Arguments that have been checked. */
export class Arguments {
  constructor(private readonly values: JsonObject) {}

  /** An argument by its name; the type is what the schema says. */
  get<T extends Json>(name: string): T | undefined {
    return this.values.get(name) as T | undefined;
  }

  /** An integer as a number; beyond 2^53 it is not exact. */
  number(name: string): number | undefined {
    const value = this.get<bigint>(name);
    return value === undefined ? undefined : Number(value);
  }
}

/** Checks arguments in QEMU's order. @throws QmpError with QEMU's text */
export function checkArguments(command: CommandName, values: JsonObject, extensions: boolean): Arguments {
  const members = membersOf(command, extensions);
  for (const [name, type, optional] of members) {
    const value = values.get(name);
    if (value !== undefined) checkType(name, value, type);
    else if (!optional) throw new QmpError(`Parameter '${name}' is missing`);
  }
  const unexpected = [...values.keys()].find((key) => !members.some(([name]) => name === key));
  if (unexpected !== undefined) throw new QmpError(`Parameter '${unexpected}' is unexpected`);
  return new Arguments(values);
}

/** What QEMU calls a type in its messages, and what is one. */
const BUILTIN: Readonly<Record<TypeName, readonly [string, (value: Json) => boolean]>> = {
  str: ['string', (value) => typeof value === 'string'],
  bool: ['boolean', (value) => typeof value === 'boolean'],
  int: ['integer', (value) => typeof value === 'bigint' && BigInt.asIntN(64, value) === value],
};

function checkType(name: string, value: Json, type: TypeRef): void {
  if (typeof type === 'string') checkScalar(name, value, type);
  else checkList(name, value, type[0]);
}

function checkScalar(name: string, value: Json, type: TypeName): void {
  const values = ENUMS[type];
  const [expected, isOne] = BUILTIN[values ? 'str' : type]!;
  if (!isOne(value)) throw new QmpError(`Invalid parameter type for '${name}', expected: ${expected}`);
  // An element of a list has no name there, and QEMU says so.
  const shown = name.endsWith(']') ? 'null' : name;
  if (values && !values.includes(value as string))
    throw new QmpError(`Parameter '${shown}' does not accept value '${value as string}'`);
}

function checkList(name: string, value: Json, type: TypeName): void {
  if (!Array.isArray(value)) throw new QmpError(`Invalid parameter type for '${name}', expected: array`);
  value.forEach((element: Json, i) => {
    checkType(`${name}[${i}]`, element, type);
  });
}

/** What `query-qmp-schema` answers: as QEMU, every type under a name that means nothing but is used consistently. */
export function introspect(extensions: boolean): Reply[] {
  return new Introspection(extensions).run();
}

/** What introspection says of the types that have names of their own. */
const JSON_TYPES: Readonly<Record<TypeName, string>> = { str: 'string', bool: 'boolean', int: 'int', any: 'value' };

class Introspection {
  readonly #entries: Reply[] = [];
  /** the name of each type under which it is known to clients */
  readonly #names = new Map<string, string>();

  constructor(private readonly extensions: boolean) {}

  run(): Reply[] {
    for (const name of commandNames(this.extensions)) {
      const members = membersOf(name, this.extensions);
      const { returns }: CommandSchema = COMMANDS[name];
      this.#entries.push({
        name,
        'meta-type': 'command',
        'arg-type': this.#object(`${name} arguments`, members),
        'ret-type': returns === undefined ? this.#object('nothing', []) : this.#type(returns),
      });
    }
    for (const [name, members] of Object.entries(EVENTS))
      this.#entries.push({ name, 'meta-type': 'event', 'arg-type': this.#object(`${name} data`, memberList(members)) });
    return this.#entries;
  }

  #type(type: TypeRef): string {
    if (typeof type !== 'string') return this.#list(type[0]);
    if (ENUMS[type]) return this.#enum(type, ENUMS[type]);
    if (OBJECTS[type]) return this.#object(type, memberList(OBJECTS[type]));
    // SchemaInfo describes itself in QEMU; what it would say is what the client just read.
    const builtin = type in JSON_TYPES ? type : 'any';
    return this.#define(builtin, builtin, () => ({ 'meta-type': 'builtin', 'json-type': JSON_TYPES[builtin]! }));
  }

  #list(element: TypeName): string {
    const elementType = this.#type(element);
    return this.#define(`[${element}]`, `[${elementType}]`, () => ({
      'meta-type': 'array',
      'element-type': elementType,
    }));
  }

  #enum(type: TypeName, values: readonly string[]): string {
    const members = values.map((name) => ({ name }));
    return this.#define(type, null, () => ({ 'meta-type': 'enum', members, values }));
  }

  #object(type: string, members: readonly Member[]): string {
    const key = members.length === 0 ? 'nothing' : type;
    return this.#define(key, null, () => ({
      'meta-type': 'object',
      members: members.map(([name, member, isOptional]) => ({
        name,
        type: this.#type(member),
        ...(isOptional ? { default: null } : {}),
      })),
    }));
  }

  #define(type: string, shown: string | null, describe: () => Record<string, Reply>): string {
    const known = this.#names.get(type);
    if (known !== undefined) return known;
    const name = shown ?? String(this.#names.size);
    this.#names.set(type, name);
    this.#entries.push({ name, ...describe() });
    return name;
  }
}

/** Whether a format of the schema can be made by this build. */
export function canMake(format: string): boolean {
  return (FORMATS as readonly string[]).includes(format);
}
