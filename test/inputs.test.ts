/** Files that people really bring, and what is right for each. */

import { createReadStream, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { inspectionText } from '../lib/cli/inspect-command.js';
import { dump } from '../lib/dump.js';
import { inspect } from '../lib/inspect.js';
import { VmcoreError } from '../lib/model/errors.js';
import type { MemoryBlock } from '../lib/model/physical-memory.js';
import { openGuest, openStream } from '../lib/open-guest.js';
import type { DumpRequest } from '../lib/request.js';
import { CONTAINERS, firecrackerOldMemory, MARKER, vmm3gMemory } from './inputs-fixture.js';
import { SyntheticKernel } from './linux/synthetic-kernel.js';
import { needsLoopDevice, withLoopDevice } from './loop-device.js';
import { makeCore } from './sources/elf-fixtures.js';

const FOLDER = t.testdir({});
let files = 0;

/** The path of a file that lies in test/inputs. */
function input(name: string): string {
  return fileURLToPath(new URL(`../../test/inputs/${name}`, import.meta.url));
}

async function convert(source: string, request: DumpRequest): Promise<string> {
  const file = join(FOLDER, `${++files}`);
  const guest = await openGuest(source);
  try {
    await dump(guest, request, { file }).finished;
    return file;
  } finally {
    guest.close();
  }
}

for (const [name, pages, leftOut, blocks] of [
  [
    'gap.elf',
    262,
    258,
    [
      { base: '0x0', length: 0x104000 },
      { base: '0x200000', length: 0x2000 },
    ],
  ],
  ['leading-gap.elf', 260, 256, [{ base: '0x100000', length: 0x104000 }]],
] as const)
  t.test(`${name}: what has p_memsz and no bytes is memory that was left out`, async (t) => {
    t.match(await inspect(input(name)), { memory: { blocks, leftOut } });
    const kdump = await convert(input(name), { format: 'kdump-raw-zlib' });
    t.match((await inspect(kdump)).kdump?.pages, { memory: pages, excluded: leftOut });
    const guest = await openStream(createReadStream(input(name)), name);
    t.equal(guest.missing?.count, leftOut, 'from a stream, too');
    guest.close();
  });

t.test('conflict.elf: refused, whatever the order of its PT_LOADs', async (t) => {
  const refused = { code: 'BAD_INPUT', message: /program headers contradict each other/ };
  await t.rejects(openGuest(input('conflict.elf')), refused);
  const bytes = readFileSync(input('conflict.elf'));
  const [one, two] = [bytes.subarray(64, 120), bytes.subarray(120, 176)];
  const swapped = Buffer.concat([bytes.subarray(0, 64), two, one, bytes.subarray(176)]);
  const path = join(t.testdir({ 'swapped.elf': swapped }), 'swapped.elf');
  await t.rejects(openGuest(path), refused);
  await t.rejects(openStream(createReadStream(path), 'a stream'), refused);
});

t.test('flat-placeholder-page.kdump: the later record wins, from a file as from a pipe', async (t) => {
  const path = input('flat-placeholder-page.kdump');
  const file = await openGuest(path);
  const stream = await openStream(createReadStream(path), 'a pipe');
  t.strictSame(file.blocks.map(plain), stream.blocks.map(plain));
  for (const { base, length } of file.blocks) {
    const [one, two] = [Buffer.alloc(length), Buffer.alloc(length)];
    file.memory!.read(base, one);
    stream.memory!.read(base, two);
    t.ok(one.equals(two));
  }
  for (const guest of [file, stream]) guest.close();
});

function plain({ base, length }: MemoryBlock): MemoryBlock {
  return { base, length };
}

for (const [name, { content, named }] of Object.entries(CONTAINERS))
  t.test(`${name}: one line that says what it is and what to do`, async (t) => {
    const path = join(t.testdir({ [name]: content }), name);
    const ways = [
      () => openGuest(path),
      () => openGuest(`raw:${path}`),
      () => openStream(createReadStream(path), name),
      () => inspect(path),
      () => inspect(`raw:${path}`),
    ];
    for (const open of ways) {
      const error: unknown = await open().catch((error: unknown) => error);
      t.type(error, VmcoreError);
      const { message } = error as VmcoreError;
      t.match(message, named);
      t.notMatch(message, /\n|for raw memory say raw:/);
    }
  });

t.test('a LiME image can be read by its ranges, as the message says', async (t) => {
  const block = { base: '0x1000', length: '0x1000', file: 'one.lime', offset: 32 };
  const description = JSON.stringify({ version: 1, arch: 'x86_64', memory: [block] });
  const folder = t.testdir({ 'one.lime': CONTAINERS['one-page.lime']!.content, 'guest.json': description });
  const guest = await openGuest(join(folder, 'guest.json'));
  const page = Buffer.alloc(4096);
  guest.memory!.read(0x1000, page);
  t.ok(page.equals(Buffer.alloc(4096, 'A')));
  guest.close();
});

t.test('raw: of a vmcore is refused, unless it is meant', async (t) => {
  const kdump = await convert('demo:64M', { format: 'kdump-raw-lzo' });
  await t.rejects(openGuest(`raw:${kdump}`), { code: 'BAD_INPUT', message: /is a kdump-compressed vmcore; say / });
  const elf = `raw:${input('gap.elf')}`;
  await t.rejects(openGuest(elf), { code: 'BAD_INPUT', message: /is an ELF file; say .* without raw:.*--force-raw/ });
  const inspection = await inspect(elf, { forceRaw: true });
  t.match(inspection, { format: 'raw memory', mappings: [], memory: { bytes: 0x5000 } });
  await t.rejects(openGuest(input('gap.elf'), { forceRaw: true }), { code: 'USAGE' });
});

t.test('raw memory whose layout has to be asked for: no machine is assumed in silence', async (t) => {
  const folder = t.testdir({});
  const cases = [
    [firecrackerOldMemory(folder), 3328, /machine pc, .*for an older Firecracker say --below-4g 3328M/],
    [vmm3gMemory(folder), 3072, /machine pc, .*for microvm, Cloud Hypervisor and VMware say --below-4g 3G/],
  ] as const;
  for (const [path, below, told] of cases) {
    const guess = await openGuest(`raw:${path}`);
    t.match(guess.assumption, told);
    t.match((await inspect(`raw:${path}`)).assumption, told);
    guess.close();
    const guest = await openGuest(`raw:${path}`, { below4g: below * 2 ** 20 });
    t.equal(guest.assumption, undefined);
    const marker = Buffer.alloc(MARKER.length);
    guest.memory!.read(2 ** 32, marker);
    t.equal(marker.toString('latin1'), MARKER);
    guest.close();
  }
});

t.test('a VMCOREINFO note that is wrong can be replaced, in whatever the guest came', async (t) => {
  const right = 'OSRELEASE=9.9.9-right\nPAGESIZE=4096\n';
  const file = join(t.testdir({ right }), 'right');
  const elf = await convert('demo:64M', {});
  const kdump = await convert('demo:64M', { format: 'kdump-raw-lzo' });
  for (const source of ['demo:64M', elf, kdump]) {
    const guest = await openGuest(source, { vmcoreinfo: file });
    const notes = guest.notes.filter(({ name }) => name === 'VMCOREINFO');
    t.strictSame(
      notes.map(({ desc }) => Buffer.from(desc).toString()),
      [right],
      source,
    );
    guest.close();
    const inspection = await inspect(source, { vmcoreinfo: file });
    t.equal(inspection.vmcoreinfo?.['osRelease'], '9.9.9-right');
    t.equal(inspection.kdump !== null, source === kdump, 'it is still known for what it is');
  }
});

t.test('--find-vmcoreinfo takes the one in memory, whatever note the guest came with', async (t) => {
  const { bytes, note } = new SyntheticKernel();
  bytes.set(note.raw, 7 << 20);
  const folder = t.testdir({ ram: Buffer.from(bytes), wrong: 'OSRELEASE=1.1.1-wrong\n' });
  const guest = await openGuest(`raw:${join(folder, 'ram')}`, { vmcoreinfo: join(folder, 'wrong') });
  const found = join(folder, 'found');
  const summary = await dump(guest, { findVmcoreinfo: true }, { file: found }).finished;
  t.match(summary.vmcoreinfoAt, /^0x/);
  t.equal((await inspect(found)).vmcoreinfo?.['osRelease'], '6.1.0-synthetic');
  const kept = join(folder, 'kept');
  await dump(guest, {}, { file: kept }).finished;
  t.equal((await inspect(kept)).vmcoreinfo?.['osRelease'], '1.1.1-wrong');
  guest.close();

  const demo = await openGuest('demo:64M');
  const { warnings } = await dump(demo, { findVmcoreinfo: true }, { file: join(folder, 'demo') }).finished;
  demo.close();
  t.match(warnings, [/no VMCOREINFO was found .* it keeps the one that it came with/]);
});

t.test('a block device has a size, and is read as a file is', { skip: needsLoopDevice() }, async (t) => {
  const folder = t.testdir({ ram: Buffer.alloc(3 << 20, 'r') });
  await withLoopDevice(join(folder, 'ram'), async (device) => {
    const { memory } = await inspect(`raw:${device}`);
    t.equal(memory.bytes, 3 << 20);
    await convert(`raw:${device}`, { format: 'kdump-raw-lzo' });
  });
  const elf = await convert('demo:64M', {});
  await withLoopDevice(elf, async (device) => {
    const inspection = await inspect(device);
    t.strictSame({ ...inspection, source: elf }, await inspect(elf));
  });
});

t.test('a segment without a physical address, as /proc/kcore has, is shown as what it is', async (t) => {
  const segments = [
    { paddr: -1n, vaddr: 0xffffc90000000000n, offset: 0x1000, filesz: 0x1000 },
    { paddr: 0, vaddr: 0xffff888000000000n, offset: 0x2000, filesz: 0x1000 },
  ];
  const core = makeCore({ segments, parts: [[0x1000, Buffer.alloc(0x2000, 'k')]] });
  const path = join(t.testdir({ core: Buffer.from(core) }), 'core');
  const inspection = await inspect(path);
  t.match(inspection.mappings, [{ paddr: null }, { paddr: '0x0' }]);
  t.match(inspectionText(inspection), /0xffffc90000000000 -> no physical address {2}4 KiB/);
});
