import { mkdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { dump } from '../../lib/dump.js';
import { VmcoreError } from '../../lib/model/errors.js';
import { encodeNote } from '../../lib/formats/notes.js';
import { findVmcoreinfo } from '../../lib/formats/vmcoreinfo.js';
import type { MemoryRegion } from '../../lib/model/physical-memory.js';
import { demoGuest } from '../../lib/sources/demo/demo.js';
import {
  describeCpu,
  type GuestDescription,
  guestDescriptionJsonSchema,
  guestOfDescription,
  openGuestDescription,
  parseGuestDescription,
  writeGuestDescription,
} from '../../lib/sources/description/guest-description.js';
import { openGuest } from '../../lib/open-guest.js';
import { REPOSITORY } from '../guests/places.js';

const PAGE = 4096;
/** Two CPUs as the monitor prints them, all zeros but RIP. */
const REGISTERS = [0x1000, 0x2000].map(cpuText).join('');

function cpuText(rip: number, index: number): string {
  const segments = ['ES', 'CS', 'SS', 'DS', 'FS', 'GS', 'LDT', 'TR'].map(
    (name) => `${name.padEnd(3)}=0010 00000000 0000ffff 00009300`,
  );
  return [
    `CPU#${index}`,
    'EAX=00000001 EBX=00000002 ECX=00000003 EDX=00000004',
    'ESI=00000005 EDI=00000006 EBP=00000007 ESP=00000008',
    `EIP=${rip.toString(16).padStart(8, '0')} EFL=00000002`,
    ...segments,
    'GDT=     00000000 00000037',
    'IDT=     00000000 000003ff',
    'CR0=00000011 CR2=00000000 CR3=00000000 CR4=00000000',
    'EFER=0000000000000000',
    '',
  ].join('\n');
}

/** A folder with guest.json, and what else the test wants in it. */
function folderWith(t: Test, description: unknown, files: Record<string, string | Uint8Array> = {}): string {
  const folder = t.testdir();
  for (const [name, content] of Object.entries(files)) writeFileSync(join(folder, name), content);
  const path = join(folder, 'guest.json');
  writeFileSync(path, typeof description === 'string' ? description : JSON.stringify(description));
  return path;
}

const block = (base: number, length = PAGE) => ({ base, length });
const plain = (more: object) => ({ version: 1, arch: 'x86_64', memory: [block(0)], ...more });

t.test('memory from files and zeros, in any order', async (t) => {
  const ram = Buffer.alloc(2 * PAGE);
  ram[0] = 1;
  ram[PAGE] = 2;
  const path = folderWith(
    t,
    plain({
      memory: [
        { base: '0x100000000', length: '0x1000', file: 'ram', offset: '0x1000' },
        { base: '0', length: 4096, file: './ram' },
        { base: 1048576, length: '8192' },
      ],
    }),
    { ram },
  );
  const guest = await openGuestDescription(path);
  t.teardown(() => guest.close());
  t.equal(guest.name, path);
  t.equal(guest.arch, 'x86_64');
  t.match(guest.blocks, [block(0), block(0x10_0000, 8192), block(2 ** 32)]);
  const backings = (guest.blocks as MemoryRegion[]).map(({ backing }) => backing);
  t.equal(backings[0], backings[2], 'one file is opened once');
  t.equal(backings[1], null);
  const byte = new Uint8Array(1);
  t.ok(guest.memory!.read(0, byte) && byte[0] === 1);
  t.ok(guest.memory!.read(2 ** 32, byte) && byte[0] === 2);
  t.ok(guest.memory!.read(0x10_0000, byte) && byte[0] === 0);
  t.same([guest.cpus, guest.notes], [[], []]);
});

t.test('paths are relative to the description, not to where we are', async (t) => {
  const path = folderWith(t, '');
  const folder = join(path, '..', 'sub');
  mkdirSync(folder);
  writeFileSync(join(folder, 'ram'), Buffer.alloc(PAGE));
  symlinkSync('ram', join(folder, 'link'));
  writeFileSync(join(folder, 'guest.json'), JSON.stringify(plain({ memory: [{ ...block(0), file: 'link' }] })));
  (await openGuestDescription(join(folder, 'guest.json'))).close();
});

t.test('registers from a text, overridden CPU by CPU', async (t) => {
  const cpus = [
    {},
    { rip: '0xffffffff81000000', kernelGsBase: '18446612682070000000', gs: { flags: 0xc09300 }, efer: '0xd01' },
    { rax: 7 },
  ];
  const guest = await openGuestDescription(folderWith(t, plain({ registers: 'regs', cpus }), { regs: REGISTERS }));
  t.match(guest.cpus, [
    { rip: 0x1000n, rax: 1n, longMode: false, system: { cr0: 0x11n, kernelGsBase: 0n, gdt: { limit: 0x37 } } },
    {
      rip: 0xffff_ffff_8100_0000n,
      rax: 1n,
      longMode: true,
      gs: { selector: 0x10, limit: 0xffff, flags: 0xc0_9300 },
      system: { cr0: 0x11n, kernelGsBase: 18_446_612_682_070_000_000n },
    },
    { rip: 0n, rax: 7n, longMode: false, system: null },
  ]);
});

t.test('without EFER, CS says whether a CPU is in long mode', async (t) => {
  const cpus = [{ cs: { flags: '0xaf9b00' } }, { cs: { flags: '0xcf9b00' } }, { cr3: '0x1000' }];
  const guest = await openGuestDescription(folderWith(t, plain({ cpus })));
  t.same(
    guest.cpus.map(({ longMode, system }) => [longMode, system?.cr3]),
    [
      [true, undefined],
      [false, undefined],
      [false, 0x1000n],
    ],
  );
});

t.test('VMCOREINFO as text and as a whole note', async (t) => {
  for (const file of [
    Buffer.from('OSRELEASE=6.1\n'),
    encodeNote('VMCOREINFO', 0, Buffer.from('OSRELEASE=6.1\n')).raw,
  ]) {
    const guest = await openGuestDescription(folderWith(t, plain({ vmcoreinfo: 'info' }), { info: file }));
    t.equal(findVmcoreinfo(guest.notes)?.get('OSRELEASE'), '6.1');
  }
  const other = folderWith(t, plain({ vmcoreinfo: 'info' }), { info: Buffer.from('CPU#0\n') });
  await t.rejects(openGuestDescription(other), {
    code: 'BAD_INPUT',
    message: /no VMCOREINFO in .*info; give the text/,
  });
});

t.test('a byte order mark and $schema do no harm', async (t) => {
  const text = `\ufeff${JSON.stringify(plain({ $schema: './guest-description.schema.json' }))}`;
  (await openGuestDescription(folderWith(t, text))).close();
});

t.test('what is wrong is said in one line, with the member', async (t) => {
  const memory = (more: object) => plain({ memory: [block(0), { ...block(PAGE), ...more }] });
  const huge = '0x20000000000000';
  const wrong: [name: string, description: unknown, message: RegExp][] = [
    ['empty', '', /guest\.json is not JSON: /],
    ['cut', '{"version":\n1,\n', /guest\.json is not JSON: /],
    ['a list', [], /guest\.json: must be an object, not \[\]$/],
    ['null', 'null', /guest\.json: must be an object, not null$/],
    ['version', { ...plain({}), version: 2 }, /guest\.json: version: must be 1, the version of the format, not 2$/],
    ['no version', { ...plain({}), version: undefined }, /: version: is missing$/],
    ['arch', plain({ arch: 'arm64' }), /: arch: must be "x86_64" or "i386", not "arm64"$/],
    ['no memory', plain({ memory: undefined }), /: memory: is missing$/],
    ['memory is empty', plain({ memory: [] }), /: memory: must have a block$/],
    ['memory is no list', plain({ memory: {} }), /: memory: must be a list, not \{\}$/],
    ['a block is no object', plain({ memory: [7] }), /: memory\[0\]: must be an object, not 7$/],
    [
      'unknown member',
      plain({ Memory: 1 }),
      /guest\.json: unknown member "Memory"; there are: .*version, arch, memory/,
    ],
    [
      'unknown members',
      memory({ size: 1, b: 2 }),
      /: memory\[1\]: unknown member "size", "b"; there are: base, length/,
    ],
    ['unknown in a CPU', plain({ cpus: [{ eax: 1 }] }), /: cpus\[0\]: unknown member "eax"; there are: rax, /],
    ['unknown in a segment', plain({ cpus: [{ cs: { sel: 1 } }] }), /: cpus\[0\]\.cs: unknown member "sel"; /],
    ['no length', memory({ length: undefined }), /: memory\[1\]\.length: is missing$/],
    ['zero length', memory({ length: 0 }), /: memory\[1\]\.length: must be above 0$/],
    ['negative', memory({ length: -4096 }), /: memory\[1\]\.length: must be a number of bytes .*, not -4096$/],
    ['negative text', memory({ base: '-0x1000' }), /: memory\[1\]\.base: must be .*, not "-0x1000"$/],
    ['fraction', memory({ length: 4096.5 }), /: memory\[1\]\.length: must be .*, not 4096\.5$/],
    ['huge number', JSON.stringify(memory({ length: 'H' })).replace('"H"', '1e400'), /: memory\[1\]\.length: must be /],
    ['huge text', memory({ length: huge }), /: memory\[1\]\.length: must be .*, not "0x20000000000000"$/],
    ['units', memory({ length: '64K' }), /: memory\[1\]\.length: must be .*, not "64K"$/],
    ['a long value', memory({ length: 'x'.repeat(5000) }), /: memory\[1\]\.length: must be .{1,300}…$/],
    ['no path', memory({ file: '' }), /: memory\[1\]\.file: must be a path, not an empty string$/],
    ['65 bits', plain({ cpus: [{ rax: '0x1ffffffffffffffff' }] }), /: cpus\[0\]\.rax: must be a 64-bit register/],
    ['64 bits', plain({ cpus: [{ rax: '18446744073709551616' }] }), /: cpus\[0\]\.rax: .* has more than 64 bits$/],
    ['32 bits', plain({ cpus: [{ cs: { limit: '0x100000000' } }] }), /: cpus\[0\]\.cs\.limit: .* more than 32 bits$/],
    [
      'overlap',
      plain({ memory: [block(0, 2 * PAGE), block(PAGE)] }),
      /guest\.json: memory blocks 0x0\+0x2000 and .* overlap/,
    ],
    ['52 bits', plain({ memory: [block(2 ** 52 - PAGE, 2 * PAGE)] }), /guest\.json: memory block .* above the 52 bits/],
    ['bad registers', plain({ registers: '/dev/null' }), /guest\.json: \/dev\/null: no CPU registers found/],
  ];
  for (const [name, description, message] of wrong) {
    const path = folderWith(t, description);
    await t.rejects(openGuestDescription(path), { code: 'BAD_INPUT', message }, name);
    try {
      await openGuestDescription(path);
    } catch (error) {
      t.notMatch((error as Error).message, /\n/, `${name}: one line`);
    }
  }
});

t.test('files that are missing, short or no files', async (t) => {
  const file = (more: object) => plain({ memory: [{ ...block(0), file: 'ram', ...more }] });
  const opens = (description: unknown, files?: Record<string, string | Uint8Array>) =>
    openGuestDescription(folderWith(t, description, files)).then((guest) => guest.close());

  await t.rejects(opens(file({})), { code: 'READ', message: /open .*ram: no such file/ });
  await t.rejects(opens(plain({ registers: 'regs' })), { code: 'READ', message: /read .*regs: no such file/ });
  await t.rejects(opens(plain({ vmcoreinfo: 'info' })), { code: 'READ', message: /read .*info: no such file/ });
  await t.rejects(openGuestDescription('/nowhere/guest.json'), { code: 'READ', message: /no such file/ });
  await t.rejects(openGuestDescription('/dev/zero'), {
    code: 'BAD_INPUT',
    message: /^\/dev\/zero: a guest description is at most/,
  });
  await t.rejects(opens(file({ offset: 1 }), { ram: Buffer.alloc(PAGE) }), {
    code: 'TRUNCATED',
    message: /guest\.json: memory\[0\]: block 0x0\+0x1000 ends at byte 4097 of .*ram, which has only 4096 bytes$/,
  });
});

t.test('blocks that are no whole pages, as device memory may be', async (t) => {
  const ram = Buffer.from(Array.from({ length: 8 * PAGE }, (_, i) => i % 251));
  const blocks = [block(0, 0x1080), block(0x1100, 0x10), block(0x1200, 0x2e00), block(0x5080, 0xf80)];
  const memory = blocks.map((one) => ({ ...one, file: 'ram', offset: one.base }));
  const path = folderWith(t, plain({ memory, cpus: [{ rip: 1 }] }), { ram });
  for (const format of ['elf', 'kdump-raw-lzo'] as const) {
    const guest = await openGuestDescription(path);
    const file = `${path}.${format}`;
    await dump(guest, { format }, { file }).finished;
    guest.close();
    const vmcore = await openGuest(file);
    if (format === 'elf') t.match(vmcore.blocks, blocks);
    for (const { base, length } of blocks) {
      const bytes = Buffer.alloc(length);
      vmcore.memory!.read(base, bytes);
      t.ok(bytes.equals(ram.subarray(base, base + length)), `${format}: 0x${base.toString(16)}`);
    }
    vmcore.close();
  }
});

t.test('a file that shrinks while it is read', async (t) => {
  const path = folderWith(t, plain({ memory: [{ ...block(0), file: 'ram' }] }), { ram: Buffer.alloc(PAGE) });
  const guest = await openGuestDescription(path);
  t.teardown(() => guest.close());
  truncateSync(join(path, '..', 'ram'), 100);
  t.throws(() => guest.memory!.read(0, new Uint8Array(PAGE)), { code: 'TRUNCATED' });
});

// ---------------------------------------------------------------------------------------------------------------------

t.test('a description of the demo guest has its CPUs', async (t) => {
  const demo = demoGuest();
  const description: GuestDescription = {
    version: 1,
    arch: 'x86_64',
    memory: demo.blocks.map(({ base, length }) => ({ base, length })),
    cpus: demo.cpus.map(describeCpu),
  };
  const text = writeGuestDescription(description);
  t.match(text, /^\{\n {2}"version": 1,/);
  t.match(text, /"cr3": "0x[0-9a-f]+"/);
  const guest = await guestOfDescription(parseGuestDescription(text, 'it'), 'it');
  t.strictSame(guest.cpus, demo.cpus);
  t.match(guest.blocks, description.memory);
});

const address = fc.nat(2 ** 30).map((number) => number * 1234);
const u = (bits: bigint) => fc.bigInt({ min: 0n, max: 2n ** bits - 1n });
const segment = fc.record(
  { selector: u(16n).map(Number), limit: u(32n).map(Number), flags: u(32n).map(Number), base: u(64n) },
  { requiredKeys: [], noNullPrototype: true },
);
const cpu = fc.record(
  {
    rax: u(64n),
    rip: u(64n),
    rflags: u(64n),
    cs: segment,
    tr: segment,
    cr3: u(64n),
    efer: u(64n),
    kernelGsBase: u(64n),
  },
  { requiredKeys: [], noNullPrototype: true },
);
const path = fc.string({ minLength: 1 });
const anyDescription = fc.record(
  {
    version: fc.constant(1 as const),
    arch: fc.constantFrom('x86_64' as const, 'i386' as const),
    memory: fc.array(
      fc.record(
        { base: address, length: address, file: path, offset: fc.maxSafeNat() },
        { requiredKeys: ['base', 'length'], noNullPrototype: true },
      ),
      { minLength: 1, maxLength: 5 },
    ),
    registers: path,
    cpus: fc.array(cpu, { maxLength: 3 }),
    vmcoreinfo: path,
  },
  { requiredKeys: ['version', 'arch', 'memory'], noNullPrototype: true },
);

t.test('what is written is read back', async (t) => {
  fc.assert(
    fc.property(anyDescription, (description) => {
      const read = parseGuestDescription(writeGuestDescription(description as GuestDescription), 'it');
      return t.strictSame(read, description);
    }),
    { numRuns: 50 },
  );
});

t.test('no text throws anything but a VmcoreError', async () => {
  const near = fc.object({ key: fc.constantFrom('version', 'memory', 'base', 'cpus', 'cs', '__proto__'), maxDepth: 3 });
  const json = fc.oneof(
    fc.json(),
    near.map((value) => JSON.stringify({ ...plain({}), ...value })),
  );
  fc.assert(
    fc.property(fc.oneof(fc.string(), json), (text) => {
      try {
        return parseGuestDescription(text, 'it').version === 1;
      } catch (error) {
        return error instanceof VmcoreError && !error.message.includes('\n') && error.message.length < 1000;
      }
    }),
    { numRuns: 500 },
  );
});

t.test('the published JSON Schema is that of the code', async (t) => {
  const published = readFileSync(join(REPOSITORY, 'guest-description.schema.json'), 'utf8');
  t.equal(published, guestDescriptionJsonSchema(), 'run `node dist/scripts/schema.js` and commit what it writes');
});
