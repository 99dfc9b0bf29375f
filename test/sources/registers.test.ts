import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { VmcoreError } from '../../lib/model/errors.js';
import { decodeQemuCpuState } from '../../lib/formats/notes.js';
import {
  type CpuState,
  GENERAL_REGISTERS,
  SEGMENT_REGISTERS,
  type Segment,
  SYSTEM_SEGMENTS,
  type SystemState,
} from '../../lib/model/guest.js';
import { parseRegisters } from '../../lib/sources/raw/registers.js';
import { readElf } from '../guests/elf-oracle.js';
import { cacheFolder } from '../guests/places.js';

const segment = (selector: number, base: bigint, limit: number, flags: number): Segment => ({
  selector,
  limit,
  flags,
  base,
});

/** QEMU 7.2, TCG, Linux 6.1 idle. */
const LINUX = `
CPU#0
RAX=000000000001ad40 RBX=0000000000000000 RCX=0000000000000000 RDX=4000000000000000
RSI=0000000000000000 RDI=0000000000000084 RBP=ffffffff8e21aa40 RSP=ffffffff8e203e98
R8 =0000000000000004 R9 =00000000314e1b70 R10=00000000fffffffb R11=0000000000000000
R12=0000000000000000 R13=0000000000000000 R14=0000000000000000 R15=0000000000014790
RIP=ffffffff8d217a0b RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
ES =0000 0000000000000000 00000000 00000000
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
DS =0000 0000000000000000 00000000 00000000
FS =0000 0000000000000000 00000000 00000000
GS =0000 ff2d1bc0df200000 00000000 00000000
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT
TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=00000000005794a9 CR3=0000000002586000 CR4=00751eb0
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000 
DR6=00000000ffff0ff0 DR7=0000000000000400
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
FPR0=0000000000000000 0000 FPR1=0000000000000000 0000
XMM00=0000000000000000 0000000000000000 XMM01=0000000000000000 0000000000000000
Code=00 0f 00 <c3> ?? ??
`;

/** QEMU 7.2, TCG: a boot sector of ours in protected mode; GS was loaded in real mode and left alone. */
const PROTECTED = `
CPU#0
EAX=00000000 EBX=00000000 ECX=00000000 EDX=00000080
ESI=00000000 EDI=00000000 EBP=00000000 ESP=000007ff
EIP=00007c4d EFL=00000057 [---ZAPC] CPL=0 II=0 A20=1 SMM=0 HLT=1
ES =0018 12345678 000abcde 004a9300 DPL=0 DS   [-WA]
CS =0008 00000000 ffffffff 00cf9a00 DPL=0 CS32 [-R-]
SS =0010 00000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
DS =0010 00000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
FS =0020 7b9a5678 00ffffff 00c0f300 DPL=3 DS   [-WA]
GS =1234 00012340 0000ffff 00009300 DPL=0 DS16 [-WA]
LDT=0030 78569000 000000ff 00008200 DPL=0 LDT
TR =0028 34128000 00000067 00008900 DPL=0 TSS32-avl
GDT=     00007c50 0000004f
IDT=     00000000 000003ff
CR0=00000011 CR2=00000000 CR3=00000000 CR4=00000000
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000 
DR6=00000000ffff0ff0 DR7=0000000000000400
EFER=0000000000000000
`;

/** The same in real mode after reset, by qemu-system-i386. */
const RESET = `
CPU#0
EAX=00000000 EBX=00000000 ECX=00000000 EDX=00000663
ESI=00000000 EDI=00000000 EBP=00000000 ESP=00000000
EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
ES =0000 00000000 0000ffff 00009300
CS =f000 ffff0000 0000ffff 00009b00
SS =0000 00000000 0000ffff 00009300
DS =0000 00000000 0000ffff 00009300
FS =0000 00000000 0000ffff 00009300
GS =0000 00000000 0000ffff 00009300
LDT=0000 00000000 0000ffff 00008200
TR =0000 00000000 0000ffff 00008b00
GDT=     00000000 0000ffff
IDT=     00000000 0000ffff
CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000
DR0=00000000 DR1=00000000 DR2=00000000 DR3=00000000 
DR6=ffff0ff0 DR7=00000400
EFER=0000000000000000
`;

t.test('a CPU in 64-bit code', async (t) => {
  const [cpu, ...others] = parseRegisters(LINUX, 'regs.txt');
  t.same(others, []);
  t.match(cpu, {
    longMode: true,
    rax: 0x1ad40n,
    rbp: 0xffff_ffff_8e21_aa40n,
    r8: 4n,
    r15: 0x14790n,
    rip: 0xffff_ffff_8d21_7a0bn,
    rflags: 0x246n,
    cs: segment(0x10, 0n, 0xffff_ffff, 0xaf_9b00),
    es: segment(0, 0n, 0, 0),
    gs: segment(0, 0xff2d_1bc0_df20_0000n, 0, 0),
    system: {
      ldt: segment(0, 0n, 0, 0x8200),
      tr: segment(0x40, 0xffff_fe00_0000_3000n, 0x4087, 0x8900),
      gdt: segment(0, 0xffff_fe00_0000_1000n, 0x7f, 0),
      idt: segment(0, 0xffff_fe00_0000_0000n, 0xfff, 0),
      cr0: 0x8005_0033n,
      cr1: 0n,
      cr2: 0x5794a9n,
      cr3: 0x258_6000n,
      cr4: 0x75_1eb0n,
      kernelGsBase: 0n,
    },
  });
});

t.test('flags get the bits of the base that TCG keeps of a descriptor, as the QEMU note has them', async (t) => {
  const [cpu] = parseRegisters(PROTECTED, 'regs.txt');
  t.match(cpu, {
    longMode: false,
    rip: 0x7c4dn,
    rflags: 0x57n,
    es: segment(0x18, 0x1234_5678n, 0xabcde, 0x124a_9334),
    cs: { flags: 0xcf_9a00 },
    fs: segment(0x20, 0x7b9a_5678n, 0xff_ffff, 0x7bc0_f39a),
    gs: { flags: 0x9300 },
    system: { ldt: { flags: 0x7800_8256 }, tr: { flags: 0x3400_8912 } },
  });
});

t.test('flags stay as printed where the base is not from a descriptor', async (t) => {
  const [reset] = parseRegisters(RESET, 'regs.txt');
  t.match(reset, { cs: { flags: 0x9b00, base: 0xffff_0000n }, longMode: false });

  const kvm = PROTECTED.replace('004a9300', '00409300').replaceAll('00cf9', '00c09').replace('00008900', '00008b00');
  const [plain] = parseRegisters(kvm, 'regs.txt');
  t.match(plain, {
    es: { flags: 0x40_9300 },
    fs: { flags: 0xc0_f300 },
    system: { tr: { flags: 0x8b00 }, ldt: { flags: 0x8200 } },
  });

  const byMsr = LINUX.replace(
    'FS =0000 0000000000000000 00000000 00000000',
    'FS =0063 00007f0012345678 ffffffff 00cff300',
  );
  t.equal(parseRegisters(byMsr, 'regs.txt')[0]!.fs.flags, 0xcf_f300);
});

t.test('compatibility mode: long, though the names are those of 32 bits', async (t) => {
  const text = PROTECTED.replace('EFER=0000000000000000', 'EFER=0000000000000d01').replace(
    'GDT=     00007c50',
    'GDT=     0000000000007c50',
  );
  t.match(parseRegisters(text, 'regs.txt'), [{ longMode: true, r8: 0n, system: { gdt: { base: 0x7c50n } } }]);
  const old = text.replace(/EFER.*\n/, '');
  t.match(parseRegisters(old, 'regs.txt'), [{ longMode: true }], 'without EFER, by the width of GDT');
  t.match(parseRegisters(PROTECTED.replace(/EFER.*\n/, ''), 'regs.txt'), [{ longMode: false }]);
});

t.test('CPUs with headers, without, and in a transcript of the monitor', async (t) => {
  const rips = (text: string) => parseRegisters(text, 'regs.txt').map(({ rip }) => rip);
  const both = [0xffff_ffff_8d21_7a0bn, 0x7c4dn];
  t.same(rips(LINUX + PROTECTED.replace('CPU#0', 'CPU#1')), both);
  t.same(rips((LINUX + PROTECTED).replaceAll(/CPU#.\n/g, '')), both);
  t.same(rips(`(qemu) info registers -a\r\n${LINUX.replaceAll('\n', '\r\n')}(qemu) quit\r\n`), both.slice(0, 1));
});

t.test('a text that is not whole is refused in one line', async (t) => {
  t.throws(() => parseRegisters('', 'regs.txt'), { code: 'BAD_INPUT', message: /^regs.txt: no CPU registers found/ });
  const cut = { code: 'BAD_INPUT', message: /^regs.txt: CPU#1 has no CR3; / };
  t.throws(() => parseRegisters(LINUX + PROTECTED.replace(/CR3=\S+/, ''), 'regs.txt'), cut);
  t.throws(() => parseRegisters(LINUX.replace(/TR =.*\n/, ''), 'regs.txt'), { message: /CPU#0 has no TR; / });
  t.throws(() => parseRegisters('CPU#0\nCPU#1\n', 'regs.txt'), { message: /CPU#0 has no RAX; / });
});

// ---------------------------------------------------------------------------------------------------------------------

const hex = (value: bigint | number, digits: number) => value.toString(16).padStart(digits, '0');

/** As target/i386/cpu-dump.c prints a CPU in 64-bit code. */
function print(cpu: CpuState & { system: SystemState }): string {
  const { rip, rflags, system } = cpu;
  const general = GENERAL_REGISTERS.slice(0, -2).map((name) => `${name.toUpperCase().padEnd(3)}=${hex(cpu[name], 16)}`);
  const shown = { ...cpu, ldt: system.ldt, tr: system.tr };
  const segments = [...SEGMENT_REGISTERS, 'ldt' as const, 'tr' as const].map((name) => {
    const { selector, base, limit, flags } = shown[name];
    return `${name.toUpperCase().padEnd(3)}=${hex(selector, 4)} ${hex(base, 16)} ${hex(limit, 8)} ${hex(flags, 8)}`;
  });
  return [
    'CPU#0',
    ...general,
    `RIP=${hex(rip, 16)} RFL=${hex(rflags, 8)} [-------] CPL=0`,
    ...segments,
    `GDT=     ${hex(system.gdt.base, 16)} ${hex(system.gdt.limit, 8)}`,
    `IDT=     ${hex(system.idt.base, 16)} ${hex(system.idt.limit, 8)}`,
    `CR0=${hex(system.cr0, 8)} CR2=${hex(system.cr2, 16)} CR3=${hex(system.cr3, 16)} CR4=${hex(system.cr4, 8)}`,
    `EFER=${hex(cpu.longMode ? 0xd01 : 0x101, 16)}`,
    '',
  ].join('\n');
}

const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const u32 = fc.bigInt({ min: 0n, max: 2n ** 32n - 1n });
/** Without the present bit, so that nothing is put into the flags. */
const anySegment = fc.record({
  selector: fc.nat(0xffff),
  limit: u32.map(Number),
  flags: u32.map((bits) => Number(bits & 0x00ff_7f00n)),
  base: u64,
});
const anyTable = anySegment.map(({ limit, base }) => ({ selector: 0, limit, flags: 0, base }));
const each = <V>(names: readonly string[], value: fc.Arbitrary<V>) =>
  fc.record(Object.fromEntries(names.map((name) => [name, value])));

const anyCpu = fc
  .record({
    general: each(GENERAL_REGISTERS, u64),
    rflags: u32,
    segments: each(SEGMENT_REGISTERS, anySegment),
    longMode: fc.boolean(),
    system: fc.record({
      ldt: anySegment,
      tr: anySegment,
      gdt: anyTable,
      idt: anyTable,
      cr0: u32,
      cr2: u64,
      cr3: u64,
      cr4: u32,
    }),
  })
  .map(
    ({ general, rflags, segments, longMode, system }) =>
      ({
        ...general,
        rflags,
        ...segments,
        longMode,
        system: { ...system, cr1: 0n, kernelGsBase: 0n },
      }) as unknown as CpuState & {
        system: SystemState;
      },
  );

t.test('what is printed is read back', async () => {
  fc.assert(
    fc.property(anyCpu, (cpu) => {
      const [read] = parseRegisters(print(cpu), 'it');
      for (const name of GENERAL_REGISTERS) if (read![name] !== cpu[name]) return false;
      for (const name of SEGMENT_REGISTERS) if (!sameSegment(read![name], cpu[name])) return false;
      for (const name of SYSTEM_SEGMENTS) if (!sameSegment(read!.system![name], cpu.system[name])) return false;
      return (['cr0', 'cr2', 'cr3', 'cr4'] as const).every((name) => read!.system![name] === cpu.system[name]);
    }),
  );
});

function sameSegment(a: Segment, b: Segment): boolean {
  return a.selector === b.selector && a.limit === b.limit && a.flags === b.flags && a.base === b.base;
}

t.test('no text throws anything but a VmcoreError', async () => {
  const lines = LINUX.split('\n');
  const shuffled = fc.shuffledSubarray(lines).map((some) => some.join('\n'));
  const damaged = fc
    .tuple(fc.nat(LINUX.length), fc.string(), fc.nat(200))
    .map(([at, text, skip]) => LINUX.slice(0, at) + text + LINUX.slice(at + skip));
  fc.assert(
    fc.property(fc.oneof(fc.string(), shuffled, damaged), (text) => {
      try {
        return parseRegisters(text, 'it').length > 0;
      } catch (error) {
        return error instanceof VmcoreError && !error.message.includes('\n');
      }
    }),
    { numRuns: 500 },
  );
});

// ---------------------------------------------------------------------------------------------------------------------

/** Guests that QEMU was asked about and that it dumped, in one pause. */
function oracleFolders(): string[] {
  const cache = cacheFolder();
  if (!existsSync(cache)) return [];
  // What is being made at this moment has another name, with a dot.
  return readdirSync(cache).filter((name) => !name.includes('.') && existsSync(join(cache, name, 'manifest.json')));
}

for (const name of oracleFolders())
  t.test(`${name}: equals QEMU's note but for what its manifest says is lost`, async (t) => {
    const folder = join(cacheFolder(), name);
    const { registersLost } = JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8')) as {
      registersLost: string[];
    };
    const elf = readElf(join(folder, 'qemu.elf'));
    const notes = elf.notes.filter(({ name }) => name === 'QEMU').map(({ desc }) => decodeQemuCpuState(desc, false)!);
    const read = parseRegisters(readFileSync(join(folder, 'registers.txt'), 'latin1'), name);
    const different = notes.flatMap((note, i) => differences(note, read[i]!).map((field) => `cpu${i}.${field}`));
    t.equal(read.length, notes.length);
    t.equal(read[0]!.longMode, elf.machine === 62, 'the first CPU decides e_machine');
    t.same(
      different.filter((field) => !registersLost.includes(field)),
      [],
    );
  });

function differences(note: CpuState, read: CpuState): string[] {
  const controls = (['cr0', 'cr1', 'cr2', 'cr3', 'cr4'] as const).filter(
    (name) => note.system![name] !== read.system![name],
  );
  const segments = [...SEGMENT_REGISTERS, ...SYSTEM_SEGMENTS].flatMap((name) => {
    const [a, b] = [{ ...note, ...note.system! }[name], { ...read, ...read.system! }[name]];
    return (['selector', 'limit', 'flags', 'base'] as const).filter((f) => a[f] !== b[f]).map((f) => `${name}.${f}`);
  });
  return [...GENERAL_REGISTERS.filter((name) => note[name] !== read[name]), ...segments, ...controls];
}
