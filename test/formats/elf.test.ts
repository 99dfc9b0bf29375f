import { execFileSync, spawnSync } from 'node:child_process';
import fc from 'fast-check';
import t from 'tap';
import {
  decodeElfHeader,
  decodeProgramHeader,
  decodeSectionHeader,
  ELF_SIZES,
  ELFCLASS32,
  ELFCLASS64,
  type ElfClass,
  EM_386,
  EM_X86_64,
  encodeElfHeader,
  encodePhnumSection,
  encodeProgramHeaders,
  NOT_STORED,
  PN_XNUM,
  type ProgramHeader,
  PT_LOAD,
  PT_NOTE,
} from '../../lib/formats/elf.js';
import { makeCore, Scratch } from '../sources/elf-fixtures.js';

const classes: readonly ElfClass[] = [ELFCLASS32, ELFCLASS64];
const hasReadelf = spawnSync('readelf', ['--version']).status === 0;
const scratch = new Scratch();

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function addresses(cls: ElfClass): fc.Arbitrary<number> {
  return fc.integer({ min: 0, max: cls === ELFCLASS64 ? Number.MAX_SAFE_INTEGER : 0xffff_fffe });
}

function programHeaders(cls: ElfClass): fc.Arbitrary<ProgramHeader> {
  const address = addresses(cls);
  return fc.record({
    type: fc.constantFrom(PT_LOAD, PT_NOTE),
    flags: fc.integer({ min: 0, max: 7 }),
    offset: fc.oneof(fc.constant(NOT_STORED), address),
    vaddr: fc.bigInt({ min: 0n, max: cls === ELFCLASS64 ? 2n ** 64n - 1n : 2n ** 32n - 1n }),
    paddr: address,
    filesz: address,
    memsz: address,
    align: address,
  });
}

t.test('decodes a header that was written by hand', (t) => {
  const bytes = makeCore({ machine: 62, phoff: 0x80, shoff: 0x40, shnum: 1, phnum: 7, shstrndx: 3 });
  t.same(decodeElfHeader(bytes), {
    class: ELFCLASS64,
    type: 4,
    machine: EM_X86_64,
    phoff: 0x80,
    phnum: 7,
    phentsize: 56,
    shoff: 0x40,
    shnum: 1,
    shentsize: 64,
    shstrndx: 3,
  });
  t.match(decodeElfHeader(makeCore({ class: 1, machine: 3, phnum: 2, shoff: 0x99 })), {
    class: ELFCLASS32,
    machine: EM_386,
    phoff: 52,
    phnum: 2,
    phentsize: 32,
    shoff: 0x99,
  });
  t.end();
});

t.test('decodes program headers that were written by hand', (t) => {
  const segment = { type: 4, offset: 0x11, vaddr: 0xffff_8880n, paddr: 0x33, filesz: 0x44, memsz: 0x55 };
  for (const cls of classes) {
    const bytes = makeCore({ class: cls, segments: [{}, segment, { offset: -1n, filesz: 1 }] });
    const at = (i: number): number => ELF_SIZES[cls].ehdr + i * ELF_SIZES[cls].phdr;
    t.match(decodeProgramHeader(viewOf(bytes), at(1), cls), segment);
    t.match(decodeProgramHeader(viewOf(bytes), at(2), cls), { type: PT_LOAD, offset: NOT_STORED, filesz: 1, memsz: 1 });
  }
  t.end();
});

t.test('what is no ELF header is null', (t) => {
  const good = makeCore({});
  t.equal(decodeElfHeader(new Uint8Array(0)), null);
  t.equal(decodeElfHeader(good.subarray(0, 63)), null, 'too short for its class');
  t.ok(decodeElfHeader(good.subarray(0, 64)));
  t.equal(decodeElfHeader(makeCore({ data: 2 })), null, 'big-endian');
  for (const at of [0, 1, 2, 3, 4]) {
    const bytes = good.slice();
    bytes[at] = 0xee;
    t.equal(decodeElfHeader(bytes), null, `byte ${at}`);
  }
  t.end();
});

t.test('headers survive a round trip', (t) => {
  for (const cls of classes) {
    const address = addresses(cls);
    const u16 = fc.integer({ min: 0, max: 0xffff });
    const headers = fc.record({ machine: u16, phoff: address, phnum: u16, shoff: address, shnum: u16 });
    fc.assert(
      fc.property(headers, (fields) => {
        const decoded = decodeElfHeader(encodeElfHeader({ class: cls, ...fields }));
        t.match(decoded, { class: cls, type: 4, phentsize: ELF_SIZES[cls].phdr, ...fields });
      }),
    );
  }
  t.end();
});

t.test('program headers survive a round trip', (t) => {
  for (const cls of classes)
    fc.assert(
      fc.property(fc.array(programHeaders(cls), { maxLength: 8 }), (phdrs) => {
        const view = viewOf(encodeProgramHeaders(cls, phdrs));
        const decoded = phdrs.map((_, i) => decodeProgramHeader(view, i * ELF_SIZES[cls].phdr, cls));
        t.same(decoded, phdrs);
      }),
    );
  t.end();
});

t.test('the section header of PN_XNUM', (t) => {
  for (const cls of classes) {
    const bytes = encodePhnumSection(cls, 70_000);
    t.equal(bytes.length, ELF_SIZES[cls].shdr);
    t.match(decodeSectionHeader(viewOf(bytes), 0, cls), { info: 70_000, offset: 0, size: 0 });
  }
  t.end();
});

t.test('readelf reads what the encoders write', { skip: hasReadelf ? false : 'no readelf' }, (t) => {
  for (const cls of classes) {
    const sizes = ELF_SIZES[cls];
    const machine = cls === ELFCLASS64 ? EM_X86_64 : EM_386;
    const header = encodeElfHeader({ class: cls, machine, phoff: sizes.ehdr, phnum: 2, shoff: 0, shnum: 0 });
    const phdrs = encodeProgramHeaders(cls, [
      { type: PT_NOTE, flags: 0, offset: 0x100, vaddr: 0n, paddr: 0, filesz: 0x10, memsz: 0x10, align: 0 },
      {
        type: PT_LOAD,
        flags: 7,
        offset: 0x123,
        vaddr: 0xc0101000n,
        paddr: 0x345000,
        filesz: 0x20,
        memsz: 0x67,
        align: 0,
      },
    ]);
    const path = scratch.write(Buffer.concat([header, phdrs, new Uint8Array(0x200)]));
    const said = execFileSync('readelf', ['-hlW', path], { encoding: 'utf8' });
    t.match(said, cls === ELFCLASS64 ? /ELF64/ : /ELF32/);
    t.match(said, /CORE \(Core file\)/);
    t.match(said, cls === ELFCLASS64 ? /X86-64/ : /Intel 80386/);
    t.match(said, /NOTE\s+0x0*100 0x0+ 0x0+ 0x0*10 0x0*10/);
    t.match(said, /LOAD\s+0x0*123 0x0*c0101000 0x0*345000 0x0*20 0x0*67 RWE/);
  }
  t.end();
});

t.test('readelf counts PN_XNUM program headers', { skip: hasReadelf ? false : 'no readelf' }, (t) => {
  const { ehdr, shdr } = ELF_SIZES[ELFCLASS64];
  const count = PN_XNUM + 2;
  const load = { type: PT_LOAD, flags: 0, offset: 0, vaddr: 0n, paddr: 0, filesz: 0, memsz: 0x1000, align: 0 };
  const phdrs = encodeProgramHeaders(
    ELFCLASS64,
    Array.from({ length: count }, () => load),
  );
  const path = scratch.write(
    Buffer.concat([
      encodeElfHeader({
        class: ELFCLASS64,
        machine: EM_X86_64,
        phoff: ehdr,
        phnum: PN_XNUM,
        shoff: ehdr + phdrs.length,
        shnum: 1,
      }),
      phdrs,
      encodePhnumSection(ELFCLASS64, count),
      new Uint8Array(shdr),
    ]),
  );
  t.match(execFileSync('readelf', ['-hW', path], { encoding: 'utf8' }), /program headers:\s+65535 \(65537\)/);
  t.end();
});
