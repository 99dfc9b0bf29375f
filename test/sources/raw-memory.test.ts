import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { findVmcoreinfo } from '../../lib/formats/vmcoreinfo.js';
import { openRawMemory, pcMemorySplit, type RawMemoryOptions } from '../../lib/sources/raw/raw-memory.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;

/** A sparse file of this size. */
function ramOf(t: Test, size: number): string {
  const path = join(t.testdir(), 'ram');
  writeFileSync(path, '');
  truncateSync(path, size);
  return path;
}

/** `[base, length, offset]` of each block. */
async function layout(t: Test, size: number, options?: RawMemoryOptions): Promise<number[][]> {
  const guest = await openRawMemory(ramOf(t, size), options);
  try {
    return guest.memory!.regions.map(({ base, length, offset }) => [base, length, offset]);
  } finally {
    guest.close();
  }
}

t.test('memory splits as QEMU splits it', async (t) => {
  t.equal(pcMemorySplit(3584 * MIB - 4096), 3584 * MIB - 4096);
  t.equal(pcMemorySplit(3584 * MIB), 3 * GIB);
  t.equal(pcMemorySplit(2816 * MIB - 4096, 'q35'), 2816 * MIB - 4096);
  t.equal(pcMemorySplit(2816 * MIB, 'q35'), 2 * GIB);

  t.same(await layout(t, 16 * MIB), [[0, 16 * MIB, 0]]);
  t.same(await layout(t, 3584 * MIB - 4096), [[0, 3584 * MIB - 4096, 0]]);
  t.same(await layout(t, 5 * GIB), [
    [0, 3 * GIB, 0],
    [4 * GIB, 2 * GIB, 3 * GIB],
  ]);
});

t.test('what is assumed is told where machines differ, unless the user says', async (t) => {
  const assumption = async (size: number, options?: RawMemoryOptions) => {
    const guest = await openRawMemory(ramOf(t, size), options);
    guest.close();
    return guest.assumption;
  };
  t.equal(await assumption(2816 * MIB - 4096), undefined);
  t.match(
    await assumption(2816 * MIB),
    /machine pc, which has 2\.75 GiB of it below 4 GiB; for a q35 say --below-4g 2G$/,
  );
  t.match(await assumption(5 * GIB), /machine pc, which has 3 GiB of it below 4 GiB; for a q35 say --below-4g 2G/);
  t.equal(await assumption(5 * GIB, { below4g: 3 * GIB }), undefined);
});

t.test('or where the user says', async (t) => {
  t.same(await layout(t, 34 * MIB, { below4g: 17 * MIB }), [
    [0, 17 * MIB, 0],
    [4 * GIB, 17 * MIB, 17 * MIB],
  ]);
  t.same(await layout(t, 34 * MIB, { below4g: 34 * MIB }), [[0, 34 * MIB, 0]]);
  t.same(await layout(t, 34 * MIB, { below4g: 3 * GIB }), [[0, 34 * MIB, 0]]);
  t.same((await layout(t, 5 * GIB, { below4g: 4 * GIB }))[1], [4 * GIB, GIB, 4 * GIB]);
});

t.test('the bytes are where they belong, and there need be no CPUs', async (t) => {
  const path = ramOf(t, 2 * 4096);
  writeFileSync(path, Buffer.concat([Buffer.alloc(4096, 1), Buffer.alloc(4096, 2)]));
  const guest = await openRawMemory(path, { below4g: 4096, arch: 'i386' });
  t.teardown(() => guest.close());
  t.match(guest, { name: path, arch: 'i386', cpus: [], notes: [] });
  const byte = new Uint8Array(1);
  t.ok(guest.memory!.read(4 * GIB, byte) && byte[0] === 2);
  t.notOk(guest.memory!.has(4096));
});

t.test('VMCOREINFO and registers come from files', async (t) => {
  const path = ramOf(t, 4096);
  const info = join(path, '..', 'info');
  writeFileSync(info, 'OSRELEASE=6.1\n');
  const guest = await openRawMemory(path, { vmcoreinfo: info });
  t.equal(findVmcoreinfo(guest.notes)?.get('OSRELEASE'), '6.1');
  guest.close();
  await t.rejects(openRawMemory(path, { vmcoreinfo: path }), {
    code: 'BAD_INPUT',
    message: /no VMCOREINFO in .*ram; /,
  });
  await t.rejects(openRawMemory(path, { registers: info }), {
    code: 'BAD_INPUT',
    message: /info: no CPU registers found/,
  });
  await t.rejects(openRawMemory(path, { registers: '/nowhere' }), { code: 'READ', message: /\/nowhere: no such file/ });
});

t.test('what cannot be the RAM of a PC', async (t) => {
  await t.rejects(openRawMemory('/nowhere'), { code: 'READ', message: /\/nowhere: no such file/ });
  await t.rejects(layout(t, 0), { code: 'BAD_INPUT', message: /ram is empty/ });
  await t.rejects(openRawMemory('/dev/zero'), { code: 'BAD_INPUT', message: /not a regular file/ });
  await t.rejects(layout(t, 4097), {
    code: 'BAD_INPUT',
    message: /has 4097 bytes, which is not a whole number of pages/,
  });
  for (const below4g of [0, -4096, 4095, 4096.5, 5 * GIB, Number.NaN])
    await t.rejects(layout(t, 16 * MIB, { below4g }), { code: 'USAGE', message: /memory below 4 GiB/ }, `${below4g}`);
});
