/** Compares what `info registers -a` prints with the `QEMU` notes of the same pause: what does the text not tell? */
import type { ElfOracle } from './elf-oracle.js';

const GENERAL = ['rax', 'rbx', 'rcx', 'rdx', 'rsi', 'rdi', 'rsp', 'rbp'];
const NUMBERED = ['r8', 'r9', 'r10', 'r11', 'r12', 'r13', 'r14', 'r15'];
const SEGMENTS = ['cs', 'ds', 'es', 'fs', 'gs', 'ss', 'ldt', 'tr', 'gdt', 'idt'];
const CONTROL = ['cr0', 'cr1', 'cr2', 'cr3', 'cr4'];
const SEGMENT_SIZE = 24;

/** Names such as "cpu1.gs.flags". KERNEL_GS_BASE, never in the text, is not listed. */
export function registersLost(text: string, elf: ElfOracle): string[] {
  const cpus = text.split(/^CPU#\d+$/m).slice(1);
  const notes = elf.notes.filter(({ name }) => name === 'QEMU');
  if (cpus.length !== notes.length) throw new Error(`registers of ${cpus.length} CPUs, notes of ${notes.length}`);
  return notes.flatMap(({ desc }, i) => lostOf(cpus[i]!, desc).map((name) => `cpu${i}.${name}`));
}

function lostOf(text: string, note: Buffer): string[] {
  const lost: string[] = [];
  const registers = new Map<string, bigint>();
  for (const [, name, value] of text.matchAll(/\b([A-Z][A-Z0-9]{1,2}) ?=([0-9a-f]{8,16})\b/g)) {
    const wide = name!
      .toLowerCase()
      .replace(/^e(..)$/, 'r$1')
      .replace(/^rfl$/, 'rflags');
    registers.set(wide, BigInt(`0x${value}`));
  }
  const fields = [...GENERAL, ...NUMBERED, 'rip', 'rflags'];
  for (const [i, name] of fields.entries()) {
    if ((registers.get(name) ?? 0n) !== note.readBigUInt64LE(8 + 8 * i)) lost.push(name);
  }
  const segments = 8 + 8 * fields.length;
  const protectedMode = ((registers.get('cr0') ?? 0n) & 1n) !== 0n;
  for (const [i, name] of SEGMENTS.entries()) {
    const at = segments + SEGMENT_SIZE * i;
    lost.push(...lostOfSegment(text, name, protectedMode, note.subarray(at)).map((field) => `${name}.${field}`));
  }
  const control = segments + SEGMENT_SIZE * SEGMENTS.length;
  for (const [i, name] of CONTROL.entries()) {
    if ((registers.get(name) ?? 0n) !== note.readBigUInt64LE(control + 8 * i)) lost.push(name);
  }
  return lost;
}

function lostOfSegment(text: string, name: string, protectedMode: boolean, note: Buffer): string[] {
  const table = name === 'gdt' || name === 'idt';
  const pattern = table
    ? `^${name.toUpperCase()}= +()([0-9a-f]+) ([0-9a-f]{8})()`
    : `^${name.toUpperCase()} ?=([0-9a-f]{4}) ([0-9a-f]+) ([0-9a-f]{8}) ([0-9a-f]{8})`;
  const match = new RegExp(pattern, 'm').exec(text);
  if (match === null) return ['all'];
  const [selector, base, limit, flags] = match.slice(1).map((field) => BigInt(`0x${field || 0}`));
  // The cached flags are the descriptor's upper half, of which the text leaves out what is base. None in a null segment.
  const system = name === 'ldt' || name === 'tr';
  const hasBase = !table && (protectedMode || system) && flags !== 0n;
  const ofBase = !hasBase ? 0n : ((base! >> 16n) & 0xffn) | (base! & 0xff000000n);
  const found = {
    selector: selector === BigInt(note.readUInt32LE(0)),
    limit: limit === BigInt(note.readUInt32LE(4)),
    flags: (flags! | ofBase) === BigInt(note.readUInt32LE(8)),
    base: base === note.readBigUInt64LE(16),
  };
  return Object.entries(found).flatMap(([field, same]) => (same ? [] : [field]));
}
