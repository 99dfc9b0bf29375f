import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { dump } from '../lib/dump.js';
import { openVmcore } from '../lib/vmcore-reader.js';
import { addressPattern, patternGuest } from './guest-fixture.js';
import { kdumpBytes } from './kdump-fixture.js';

const folder = mkdtempSync(join(tmpdir(), 'vmcore-reader-'));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));

const GUEST = patternGuest([
  { base: 0, length: 0x8000 },
  { base: 0x8000, length: 0x1000 },
  { base: 0x20000, length: 0x3000 },
]);

const elf = join(folder, 'elf');
await dump(GUEST, { format: 'elf' }, { file: elf }).finished;
const kdump = join(folder, 'kdump');
writeFileSync(kdump, await kdumpBytes(GUEST, { codec: 'lzo' }));
const flattened = join(folder, 'flattened');
writeFileSync(flattened, await kdumpBytes(GUEST, { codec: 'snappy', flattened: true }));

for (const path of [elf, kdump, flattened])
  t.test(`reads anywhere in ${path.split('/').at(-1)}`, async (t) => {
    const vmcore = await openVmcore(path);
    for (const [paddr, length] of [
      [0, 8],
      [0x7ff8, 16],
      [0x8ff0, 0x10],
      [0x20008, 0x2ff8],
      [0, 0x9000],
      [8, 0],
    ] as const)
      t.equal(Buffer.compare(vmcore.read(paddr, length), addressPattern(length, paddr)), 0);
    t.equal(vmcore.guest.arch, 'x86_64');
    t.equal(
      vmcore.blocks.reduce((sum, { length }) => sum + length, 0),
      0xc000,
    );
    vmcore.close();
  });

t.test('what is no memory is an error, not zeros', async (t) => {
  const vmcore = await openVmcore(kdump);
  for (const [paddr, length] of [
    [0x8fff, 2],
    [0x1ffff, 2],
    [0x8000, 0x19000],
    [2 ** 60, 1],
    [0x23000, 1],
  ] as const)
    t.throws(() => vmcore.read(paddr, length), { code: paddr > 2 ** 53 ? 'USAGE' : 'NO_MEMORY' });
  for (const [paddr, length] of [
    [-1, 1],
    [0.5, 1],
    [0, -1],
    [0, Number.NaN],
  ] as const)
    t.throws(() => vmcore.read(paddr, length), { code: 'USAGE' });
  vmcore.close();
});

t.test('what is no vmcore is refused', async (t) => {
  const other = join(folder, 'other');
  writeFileSync(other, 'hello');
  await t.rejects(openVmcore(other), { code: 'BAD_INPUT' });
  await t.rejects(openVmcore(join(folder, 'nothing')), { code: 'READ' });
  await t.rejects(openVmcore(folder), { code: 'READ' });
});
