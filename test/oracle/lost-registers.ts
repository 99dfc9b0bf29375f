/**
 * What `info registers` does not show, taken out of a note before it is compared: the manifest of a guest lists it by
 * name (`cpu0.gs.flags`), found by comparing the text with QEMU's own note. Everything else must be equal.
 */

import type { OracleManifest } from '../guests/oracle.js';

/** Offsets in `struct QEMUCPUState` (target/i386/arch_dump.c). */
const GENERAL = 'rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags'.split(' ');
const SEGMENTS = 'cs ds es fs gs ss ldt tr gdt idt'.split(' ');
const SEGMENT_FIELDS: Readonly<Record<string, readonly [number, number]>> = {
  selector: [0, 4],
  limit: [4, 8],
  flags: [8, 12],
  base: [16, 24],
  all: [0, 24],
};
const SEGMENTS_AT = 8 + 8 * GENERAL.length;
const CR_AT = SEGMENTS_AT + 24 * SEGMENTS.length;
/** Never in the text. */
const KERNEL_GS_BASE_AT = CR_AT + 8 * 5;

/** Where in NT_PRSTATUS a general register stands, by the descriptor's size. */
const PRSTATUS: Readonly<Record<number, Readonly<Record<string, readonly [number, number]>>>> = {
  336: Object.fromEntries(
    'r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs rflags rsp ss fs_base gs_base'
      .split(' ')
      .map((name, i) => [name, [112 + 8 * i, 120 + 8 * i]] as const),
  ),
  144: Object.fromEntries(
    'rbx rcx rdx rsi rdi rbp rax ds es fs gs orig_rax rip cs rflags rsp ss'
      .split(' ')
      .map((name, i) => [name, [72 + 4 * i, 76 + 4 * i]] as const),
  ),
};

function qemuRange(field: string): readonly [number, number] {
  const [register = '', part] = field.split('.');
  if (part) {
    const at = SEGMENTS_AT + 24 * SEGMENTS.indexOf(register);
    const [from, to] = SEGMENT_FIELDS[part]!;
    return [at + from, at + to];
  }
  const general = GENERAL.indexOf(register);
  const at = general >= 0 ? 8 + 8 * general : CR_AT + 8 * Number(register.slice(2));
  return [at, at + 8];
}

/** A mask for compareElf: zeros where the guest's registers.txt has lost something. */
export function maskLostRegisters({
  registersLost,
}: Pick<OracleManifest, 'registersLost'>): (name: string, desc: Buffer, index: number) => Buffer {
  return (name, desc, index) => {
    const lost = registersLost
      .filter((entry) => entry.startsWith(`cpu${index}.`))
      .map((entry) => entry.slice(entry.indexOf('.') + 1));
    const masked = Buffer.from(desc);
    const zero = (range: readonly [number, number] | undefined) => range && masked.fill(0, ...range);
    if (name === 'QEMU') {
      zero([KERNEL_GS_BASE_AT, KERNEL_GS_BASE_AT + 8]);
      for (const field of lost) zero(qemuRange(field));
    }
    if (name === 'CORE') for (const field of lost) zero(PRSTATUS[desc.length]?.[field]);
    return masked;
  };
}
