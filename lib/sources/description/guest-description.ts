/**
 * A guest description: a JSON file that says where a guest's memory and registers are.
 *
 *   { "version": 1, "arch": "x86_64",
 *     "memory": [{ "base": "0x0", "length": "0xc0000", "file": "guest.ram", "offset": "0x0" }, …],
 *     "registers": "regs.txt", "cpus": [{ "kernelGsBase": "0xffff888003800000" }], "vmcoreinfo": "vmcoreinfo.txt" }
 *
 * The schema below is the one place that knows the format; `guest-description.schema.json`, which editors can check
 * against, is generated from it.
 */

import { dirname, resolve } from 'node:path';
import * as z from 'zod';
import { messageOf, VmcoreError } from '../../model/errors.js';
import {
  type CpuState,
  GENERAL_REGISTERS,
  type Guest,
  NULL_SEGMENT,
  SEGMENT_REGISTERS,
  type Segment,
  SYSTEM_SEGMENTS,
  type SystemState,
} from '../../model/guest.js';
import { describeBlock, type MemoryRegion } from '../../model/physical-memory.js';
import { FileBacking } from '../../io/file-backing.js';
import { MemoryGuest } from '../memory-guest.js';
import { EFER_LMA, readRegisters } from '../raw/registers.js';
import { readSmallFile } from '../../io/small-file.js';
import { readVmcoreinfo } from '../raw/vmcoreinfo-file.js';
import type { ElfNote } from '../../model/note.js';

// ---------------------------------------------------------------------------------------------------------------------
// The schema
// ---------------------------------------------------------------------------------------------------------------------

/** What a number is written as, where it is not a JSON number. */
const NUMBER_TEXT = /^(0x[0-9a-fA-F]{1,16}|[0-9]{1,20})$/;

/** `must be …, not …`, or `is missing`; what zod says of a union names neither. */
function mustBe(what: string) {
  return (issue: { readonly input?: unknown }) =>
    issue.input === undefined ? 'is missing' : `must be ${what}, not ${excerpt(issue.input)}`;
}

/** A value in a message: short whatever it is. */
function excerpt(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length <= 40 ? text : `${text.slice(0, 40)}…`;
}

/** A number as it is written. `what` it is goes into messages and, as definition `id`, into the JSON Schema. */
function writtenNumber(id: string, what: string) {
  const rule = `${what}, as an integer or as a string of decimal or 0x-hexadecimal digits`;
  const error = mustBe(rule);
  return z
    .union([z.int({ error }).min(0, { error }), z.string({ error }).regex(NUMBER_TEXT, { error })], { error })
    .meta({ id, description: rule });
}

/** A number that a JavaScript number holds exactly. */
function exactNumber(id: string, what: string) {
  return writtenNumber(id, what).transform((value, context) => {
    const number = Number(value);
    if (Number.isSafeInteger(number)) return number;
    context.addIssue({ code: 'custom', message: mustBe(what)({ input: value }) });
    return z.NEVER;
  });
}

/** A register of `bits` bits. */
function register(id: string, bits: number) {
  return writtenNumber(id, `a ${bits}-bit register`).transform((value, context) => {
    const number = BigInt(value);
    if (BigInt.asUintN(bits, number) === number) return number;
    context.addIssue({ code: 'custom', message: `${excerpt(value)} has more than ${bits} bits` });
    return z.NEVER;
  });
}

const offset = exactNumber('Offset', 'a byte offset from 0 to 2^53 - 1');
const address = exactNumber('Address', 'a physical address from 0 to 2^53 - 1');
const size = exactNumber('Size', 'a number of bytes from 0 to 2^53 - 1');
const register64 = register('Register64', 64);
const number32 = register('Register32', 32).transform(Number);
const number16 = register('Register16', 16).transform(Number);
const path = z.string({ error: mustBe('a path') }).min(1, 'must be a path, not an empty string');

/** An object that takes nothing but its members. */
function strictObject<Shape extends z.core.$ZodLooseShape>(shape: Shape) {
  const members = Object.keys(shape).join(', ');
  return z.strictObject(shape, {
    error: (issue) =>
      issue.code === 'unrecognized_keys'
        ? `unknown member ${issue.keys.map(excerpt).join(', ')}; there are: ${members}`
        : mustBe('an object')(issue),
  });
}

/** An object with the same schema for each of `names`. */
function each<Name extends string, Schema>(names: readonly Name[], schema: Schema): Record<Name, Schema> {
  return Object.fromEntries(names.map((name) => [name, schema])) as Record<Name, Schema>;
}

function list<Item extends z.ZodType>(item: Item) {
  return z.array(item, { error: mustBe('a list') });
}

const memorySchema = strictObject({
  base: address.describe('guest physical address of the first byte'),
  length: size.describe('whole pages, but for device memory that QEMU dumps, such as that of a TPM'),
  file: path.optional().describe('where the bytes are, relative to this description; zeros when absent'),
  offset: offset.optional().describe('where the first byte is in the file; 0 when absent'),
});

const segmentSchema = strictObject({
  selector: number16.optional(),
  limit: number32.optional().describe('bytes - 1'),
  flags: number32.optional().describe("the second dword of the descriptor, as QEMU's SegmentCache has it"),
  base: register64.optional(),
}).meta({ id: 'Segment', description: 'a segment register or descriptor table register' });

/** Control registers of a description. CR1 is none in hardware, but QEMU's note has a place for it. */
const CONTROL_REGISTERS = ['cr0', 'cr1', 'cr2', 'cr3', 'cr4', 'kernelGsBase'] as const;

const cpuSchema = strictObject({
  ...each(GENERAL_REGISTERS, register64.optional()),
  ...each(SEGMENT_REGISTERS, segmentSchema.optional()),
  ...each(SYSTEM_SEGMENTS, segmentSchema.optional()),
  ...each(CONTROL_REGISTERS, register64.optional()),
  efer: register64.optional().describe('bit 10 (LMA) says whether the CPU is in long mode; by CS.L when absent'),
  a20Masked: z
    .boolean({ error: mustBe('true or false') })
    .optional()
    .describe('the A20 gate is closed'),
}).meta({ id: 'Cpu', description: 'registers of one CPU; those that are absent are as in "registers", or zero' });

/** The format of guest descriptions, version 1. */
export const guestDescriptionSchema = strictObject({
  $schema: z.string().optional().describe('for editors; not looked at'),
  version: z.literal(1, { error: mustBe('1, the version of the format') }),
  arch: z
    .enum(['x86_64', 'i386'], { error: mustBe('"x86_64" or "i386"') })
    .describe('what the machine can run, not the mode that it is in'),
  memory: list(memorySchema).min(1, 'must have a block').describe('blocks of memory, in any order, none overlapping'),
  registers: path.optional().describe('file with what HMP `info registers -a` prints'),
  cpus: list(cpuSchema).optional().describe('registers, CPU by CPU; they override those of "registers"'),
  vmcoreinfo: path.optional().describe('file with the text of VMCOREINFO, or its whole ELF note'),
}).meta({ title: 'Guest description of vmcore', description: 'Where the memory and the registers of a guest are.' });

/** A guest description with its numbers read: addresses as numbers, 64-bit registers as bigints. */
export type GuestDescription = z.output<typeof guestDescriptionSchema>;
/** One CPU of a guest description; what is absent is as in its `registers`, or zero. */
export type CpuDescription = z.output<typeof cpuSchema>;
type SegmentDescription = z.output<typeof segmentSchema>;

/** The JSON Schema of guest descriptions: the text of the published `guest-description.schema.json`. */
export function guestDescriptionJsonSchema(): string {
  return `${JSON.stringify(z.toJSONSchema(guestDescriptionSchema, { io: 'input' }), null, 2)}\n`;
}

// ---------------------------------------------------------------------------------------------------------------------
// Text to description and back
// ---------------------------------------------------------------------------------------------------------------------

/**
 * Reads the text of a guest description.
 * @param where what to call it in messages: a path
 * @throws VmcoreError BAD_INPUT that names the member which is wrong
 */
export function parseGuestDescription(text: string, where: string): GuestDescription {
  const result = guestDescriptionSchema.safeParse(parseJson(text, where));
  if (result.success) return result.data;
  const issue = result.error.issues[0]!;
  throw new VmcoreError('BAD_INPUT', `${[where, memberPath(issue.path)].filter(Boolean).join(': ')}: ${issue.message}`);
}

function parseJson(text: string, where: string): unknown {
  try {
    return JSON.parse(text.replace(/^\ufeff/, ''));
  } catch (error) {
    // V8 quotes the text, line ends and all.
    const reason = messageOf(error).replace(/\s+/g, ' ');
    throw new VmcoreError('BAD_INPUT', `${where} is not JSON: ${reason}`, { cause: error });
  }
}

/** `memory[1].length` */
function memberPath(path: readonly PropertyKey[]): string {
  return path
    .map((key) => (typeof key === 'number' ? `[${key}]` : `.${String(key)}`))
    .join('')
    .replace(/^\./, '');
}

/** The text of a guest description, as `openGuestDescription` reads it; numbers as 0x strings. */
export function writeGuestDescription(description: GuestDescription): string {
  const { version, ...rest } = description;
  const replacer = (_key: string, value: unknown): unknown =>
    typeof value === 'number' || typeof value === 'bigint' ? `0x${value.toString(16)}` : value;
  const numbersAsText = JSON.parse(JSON.stringify(rest, replacer)) as object;
  return `${JSON.stringify({ version, ...numbersAsText }, null, 2)}\n`;
}

/**
 * A CPU state as a description has it. What NT_PRSTATUS holds besides the registers is not kept, and of EFER only
 * whether long mode is active, which is all that a CPU state knows of it.
 */
export function describeCpu(cpu: CpuState): CpuDescription {
  const { longMode, system, prstatus: _, ...registers } = cpu;
  return { ...registers, ...system, efer: longMode ? EFER_LMA : 0n };
}

// ---------------------------------------------------------------------------------------------------------------------
// Description to guest
// ---------------------------------------------------------------------------------------------------------------------

/**
 * Opens the guest that a JSON file describes.
 * @throws VmcoreError BAD_INPUT (with the member that is wrong), READ, TRUNCATED (a file that ends before its block)
 */
export async function openGuestDescription(file: string): Promise<Guest> {
  const text = await readSmallFile(file, 'a guest description');
  return guestOfDescription(parseGuestDescription(text.toString('utf8'), file), file);
}

/**
 * The guest of a description that is at hand.
 * @param where path that the paths in it are relative to (as its neighbours), and what to call it in messages
 * @throws VmcoreError BAD_INPUT, READ, TRUNCATED
 */
export async function guestOfDescription(description: GuestDescription, where: string): Promise<Guest> {
  const folder = dirname(where);
  const files = new Map<string, FileBacking>();
  try {
    return new MemoryGuest({
      name: where,
      arch: description.arch,
      regions: description.memory.map((block, i) => regionOf(block, files, folder, `${where}: memory[${i}]`)),
      cpus: await cpusOf(description, folder),
      notes: await notesOf(description, folder),
    });
  } catch (error) {
    for (const backing of files.values()) backing.close();
    throw located(error, where);
  }
}

/** Names the description in an error that names only blocks (of PhysicalMemory). */
function located(error: unknown, where: string): unknown {
  if (!(error instanceof VmcoreError) || error.message.includes(where)) return error;
  return new VmcoreError(error.code, `${where}: ${error.message}`, { cause: error });
}

type BlockDescription = GuestDescription['memory'][number];

/** @param files what is open already, by absolute path */
function regionOf(
  { base, length, file, offset = 0 }: BlockDescription,
  files: Map<string, FileBacking>,
  folder: string,
  where: string,
): MemoryRegion {
  if (length === 0) throw new VmcoreError('BAD_INPUT', `${where}.length: must be above 0`);
  if (file === undefined) return { base, length, backing: null, offset: 0 };
  const path = resolve(folder, file);
  const backing = files.get(path) ?? FileBacking.open(path);
  files.set(path, backing);
  if (offset + length > backing.size)
    throw new VmcoreError(
      'TRUNCATED',
      `${where}: block ${describeBlock({ base, length })} ends at byte ${offset + length} of ${path}, which has only ${backing.size} bytes`,
    );
  return { base, length, backing, offset };
}

async function notesOf({ vmcoreinfo }: GuestDescription, folder: string): Promise<ElfNote[]> {
  return vmcoreinfo === undefined ? [] : [await readVmcoreinfo(resolve(folder, vmcoreinfo))];
}

/** The CPUs of the registers' text, each overridden by its entry of `cpus`; entries beyond them are CPUs of their own. */
async function cpusOf({ registers, cpus = [] }: GuestDescription, folder: string): Promise<CpuState[]> {
  const known = registers === undefined ? [] : await readRegisters(resolve(folder, registers));
  const count = Math.max(known.length, cpus.length);
  return Array.from({ length: count }, (_, i) => cpuOf(cpus[i] ?? {}, known[i]));
}

/** DESC_L: a code segment of 64-bit code. */
const DESC_L = 1 << 21;

const NULL_SYSTEM: SystemState = {
  ...each(SYSTEM_SEGMENTS, NULL_SEGMENT),
  ...each(CONTROL_REGISTERS, 0n),
};

/** @param known what is known of the CPU besides; zeros when absent */
function cpuOf(cpu: CpuDescription, known: CpuState | undefined): CpuState {
  const general = pick(GENERAL_REGISTERS, (name) => cpu[name] ?? known?.[name] ?? 0n);
  const segments = pick(SEGMENT_REGISTERS, (name) => segmentOf(cpu[name], known?.[name]));
  const a20Masked = cpu.a20Masked ?? known?.a20Masked ?? false;
  return {
    ...general,
    ...segments,
    longMode: longModeOf(cpu, known, segments.cs),
    ...(a20Masked ? { a20Masked } : {}),
    ...(known?.debug ? { debug: known.debug } : {}),
    ...(known?.mxcsr === undefined ? {} : { mxcsr: known.mxcsr }),
    system: systemOf(cpu, known),
  };
}

function longModeOf({ efer }: CpuDescription, known: CpuState | undefined, cs: Segment): boolean {
  if (efer !== undefined) return (efer & EFER_LMA) !== 0n;
  return known?.longMode ?? (cs.flags & DESC_L) !== 0;
}

/** Null when nothing is known of it: zeros would be a claim. */
function systemOf(cpu: CpuDescription, known: CpuState | undefined): SystemState | null {
  const told = [...SYSTEM_SEGMENTS, ...CONTROL_REGISTERS].some((name) => cpu[name] !== undefined);
  if (!told && !known?.system) return null;
  const base = known?.system ?? NULL_SYSTEM;
  return {
    ...pick(SYSTEM_SEGMENTS, (name) => segmentOf(cpu[name], base[name])),
    ...pick(CONTROL_REGISTERS, (name) => cpu[name] ?? base[name]),
  };
}

function segmentOf(segment: SegmentDescription = {}, known: Segment = NULL_SEGMENT): Segment {
  const { selector = known.selector, limit = known.limit, flags = known.flags, base = known.base } = segment;
  return { selector, limit, flags, base };
}

function pick<Name extends string, Value>(names: readonly Name[], value: (name: Name) => Value): Record<Name, Value> {
  return Object.fromEntries(names.map((name) => [name, value(name)])) as Record<Name, Value>;
}
