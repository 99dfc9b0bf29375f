/** Files that people really bring, and what is right for each. */

import { createReadStream, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { dump } from '../lib/dump.js';
import { inspect } from '../lib/inspect.js';
import type { MemoryBlock } from '../lib/physical-memory.js';
import type { DumpRequest } from '../lib/request.js';
import { openGuest, openStream } from '../lib/sources/open.js';

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
