/** What a dump left out stays left out, whatever it is made into: ELF, kdump, and ELF again. */

import { createHash } from 'node:crypto';
import { spawnSync } from 'node:child_process';
import { createReadStream, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { dump } from '../lib/dump.js';
import { encodeNote } from '../lib/formats/notes.js';
import { inspect } from '../lib/inspect.js';
import type { Guest } from '../lib/model/guest.js';
import { type MissingPages, PageExclusion } from '../lib/model/page-exclusion.js';
import type { PfnRun } from '../lib/model/page-set.js';
import { PAGE_SIZE } from '../lib/model/page-size.js';
import { nonZeroRuns } from '../lib/model/zeros.js';
import { openGuest, openStream } from '../lib/open-guest.js';
import type { DumpRequest } from '../lib/request.js';
import { demoGuest } from '../lib/sources/demo/demo.js';
import { patternGuest } from './guest-fixture.js';
import { needsPython, PYTHON } from './tools.js';

/** A guest that came from a dump which left pages out: a run at the start of its memory, one in it, short ones. */
const GONE: readonly PfnRun[] = [
  { start: 0, end: 0x90 },
  { start: 0x400, end: 0x900 },
  { start: 0x1234, end: 0x1238 },
  { start: 0x2000, end: 0x3000 },
];

function lacking(guest: Guest, runs: readonly PfnRun[] = GONE): Guest {
  const { name, arch, blocks, cpus, notes, memory } = guest;
  const missing: MissingPages = {
    level: 31,
    count: runs.reduce((sum, { start, end }) => sum + end - start, 0),
    runs: () => runs,
  };
  return {
    name,
    arch,
    blocks,
    cpus,
    notes,
    memory,
    missing,
    chunks: (o) => guest.chunks(o),
    close: () => guest.close(),
  };
}

const FOLDER = t.testdir({});
let files = 0;

async function write(guest: Guest, request: DumpRequest): Promise<string> {
  const file = join(FOLDER, `${++files}`);
  await dump(guest, request, { file }).finished;
  return file;
}

async function convert(path: string, request: DumpRequest): Promise<string> {
  const guest = await openGuest(path);
  try {
    return await write(guest, request);
  } finally {
    guest.close();
  }
}

/** What the pages of a vmcore are: left out, zero, or data. */
interface Pages {
  /** runs of one kind: `90-400 data` */
  readonly runs: readonly string[];
  /** of all data */
  readonly digest: string;
  readonly leftOut: number;
}

async function pagesOf(path: string): Promise<Pages> {
  const guest = await openGuest(path);
  const gone = new PageExclusion(0);
  if (guest.missing) gone.addMissing(guest.missing);
  const runs: { start: number; end: number; kind: string }[] = [];
  const hash = createHash('md5');
  for (const { base, length } of guest.blocks) {
    const bytes = Buffer.alloc(length);
    guest.memory!.read(base, bytes);
    for (let at = 0; at < length; at += PAGE_SIZE) {
      const page = bytes.subarray(at, at + PAGE_SIZE);
      const pfn = (base + at) / PAGE_SIZE;
      const kind = gone.has(pfn) ? 'left out' : nonZeroRuns(page, 0).length > 0 ? 'data' : 'zero';
      if (kind === 'data') hash.update(page);
      const last = runs.at(-1);
      if (last?.kind === kind && last.end === pfn) last.end++;
      else runs.push({ start: pfn, end: pfn + 1, kind });
    }
  }
  guest.close();
  return {
    runs: runs.map(({ start, end, kind }) => `${start.toString(16)}-${end.toString(16)} ${kind}`),
    digest: hash.digest('hex'),
    leftOut: gone.total,
  };
}

const REQUESTS: Readonly<Record<string, { request: DumpRequest; leftOut: number }>> = {
  'no options': { request: {}, leftOut: 0x500 + 0x1000 },
  paging: { request: { paging: true }, leftOut: 0x500 + 0x1000 },
  'a range that begins and ends in what was left out': {
    request: { range: { base: 0x600_000, length: 0x2_300_000 } },
    leftOut: 0x300 + 0x900,
  },
  'the layout kept': { request: { keepLayout: true }, leftOut: 0 },
};

for (const [title, { request, leftOut }] of Object.entries(REQUESTS))
  t.test(`ELF to kdump and back: ${title}`, async (t) => {
    const source = lacking(demoGuest({ memory: 64 << 20 }));
    const elf = await write(source, request);
    source.close();
    const kdump = await convert(elf, { format: 'kdump-raw-lzo' });
    const back = await convert(kdump, {});
    const pages = await pagesOf(elf);
    t.equal(pages.leftOut, leftOut);
    t.strictSame(await pagesOf(kdump), pages, 'the kdump');
    t.strictSame(await pagesOf(back), pages, 'the ELF core made of it');
    if (!request.paging) t.ok(readFileSync(back).equals(readFileSync(elf)), 'byte for byte');
    t.equal((await inspect(elf)).memory.leftOut, leftOut, 'inspect counts it');

    const stream = await openStream(createReadStream(elf), 'a stream');
    const streamed = await write(stream, { format: 'kdump-raw-lzo' });
    stream.close();
    t.strictSame(await pagesOf(streamed), pages, 'the kdump made of a stream');
  });

t.test('a vmcore of which nothing is left is one', async (t) => {
  const guest = lacking(patternGuest([{ base: 0, length: 4 << 20 }]), [{ start: 0, end: 1024 }]);
  const elf = await write(guest, {});
  t.ok(statSync(elf).size <= PAGE_SIZE);
  const pages = await pagesOf(elf);
  t.equal(pages.leftOut, 1024);
  t.strictSame(await pagesOf(await convert(await convert(elf, { format: 'kdump-raw-lzo' }), {})), pages);
});

t.test(
  'a core that VirtualBox wrote has devices where others have what was left out; ours of it has not',
  async (t) => {
    const notes = [encodeNote('VBCORE', 0xb00, new Uint8Array(24))];
    const written = await write(lacking(patternGuest([{ base: 0, length: 4 << 20 }], { notes }), []), {});
    t.equal((await inspect(written)).memory.leftOut, 0);
    const { cpus } = demoGuest({ memory: 64 << 20 });
    const guest = patternGuest([{ base: 0, length: 4 << 20 }], { notes, cpus: [...cpus] });
    const ours = await write(lacking(guest, [{ start: 0x100, end: 0x300 }]), {});
    t.equal((await inspect(ours)).memory.leftOut, 0x200);
    const without = await write(lacking(patternGuest(guest.blocks, { notes }), [{ start: 0x100, end: 0x300 }]), {});
    t.equal((await inspect(without)).memory.leftOut, 0, 'as VirtualBox writes it');
    t.equal((await inspect(without)).memory.bytes, 2 << 20);
  },
);

const READ_WITH_DRGN = `
import sys, drgn
program = drgn.Program()
program.set_core_dump(sys.argv[1])
for pfn in sys.argv[2:]:
    try:
        program.read(int(pfn, 16) << 12, 4096, True)
        print('read')
    except drgn.FaultError:
        print('not there')
`;

t.test('drgn raises on a left-out page', { skip: needsPython('drgn') }, async (t) => {
  const source = lacking(demoGuest({ memory: 64 << 20 }));
  for (const request of [{}, { paging: true }]) {
    const kdump = await convert(await write(source, request), { format: 'kdump-raw-lzo' });
    const { stdout } = spawnSync(PYTHON, ['-c', READ_WITH_DRGN, kdump, '3ff', '400', '8ff', '900', '2fff', '100000'], {
      encoding: 'utf8',
    });
    t.equal(stdout, 'read\nnot there\nnot there\nread\nnot there\nread\n');
  }
  source.close();
});
