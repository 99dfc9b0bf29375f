/** What a dump refuses to be asked for, before it reads or makes anything. */

import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { type DumpRequest, dump } from '../lib/index.js';
import { checkRequest } from '../lib/request.js';
import { patternGuest } from './guest-fixture.js';

/** Requests as a program without types makes them. */
const WRONG: readonly (readonly [request: object, message: string | RegExp])[] = [
  ...['kdump-raw-zstd', 'foo', 'ELF', '', null, 5, 'constructor'].map(
    (format) => [{ format }, /^format must be one of elf, kdump-zlib, .*, kdump-raw-snappy, win-dmp, not /] as const,
  ),
  [{ threads: Number.NaN }, 'threads must be a whole number from 1 on, not NaN'],
  [{ threads: 0 }, 'threads must be a whole number from 1 on, not 0'],
  [{ threads: -1 }, 'threads must be a whole number from 1 on, not -1'],
  [{ threads: '4' }, "threads must be a whole number from 1 on, not '4'"],
  [{ level: 1.5 }, 'level must be a whole number from 1 on, not 1.5'],
  [{ codec: 'x' }, "codec must be one of fast, portable, not 'x'"],
  [{ maxMappings: Number.NaN }, 'maxMappings must be a whole number from 1 on, not NaN'],
  [{ maxPageTables: Number.POSITIVE_INFINITY }, 'maxPageTables must be a whole number from 1 on, not Infinity'],
  [{ dumpLevel: 32 }, 'dumpLevel must be a whole number from 0 to 31, not 32'],
  [{ dumpLevel: '31' }, "dumpLevel must be a whole number from 0 to 31, not '31'"],
  [{ excludeFallback: true }, 'excludeFallback must be one of refuse, keep, not true'],
  [{ paging: 'no' }, "paging must be true or false, not 'no'"],
  [{ keepLayout: 1 }, 'keepLayout must be true or false, not 1'],
  [{ findKdbg: null }, 'findKdbg must be true or false, not null'],
  [{ findVmcoreinfo: 'a\nb' }, "findVmcoreinfo must be true or false, not 'a\\nb'"],
  ...[
    { base: -1, length: 10 },
    { base: 0.5, length: 10 },
    { base: 0 },
    { base: 0n, length: 10n },
    { base: '0', length: '10' },
    null,
    '0-10',
    [0, 10],
  ].map((range) => [{ range }, /^range must be \{ base, length \} in bytes, whole numbers from 0 on, not /] as const),
];

t.test('what is wrong is named before anything is made', async (t) => {
  const folder = t.testdir({});
  const guest = patternGuest([{ base: 0x1000, length: 0x3000 }]);
  for (const format of ['elf', 'kdump-raw-lzo', 'win-dmp'] as const)
    for (const [wrong, message] of WRONG) {
      const request = { format, ...wrong } as DumpRequest;
      await t.rejects(dump(guest, request, { file: join(folder, 'x') }).finished, { code: 'USAGE', message });
    }
  t.same(readdirSync(folder), []);
});

t.test('what is right passes, and so does what is absent', async () => {
  checkRequest({});
  checkRequest({ format: undefined, threads: undefined, range: undefined });
  checkRequest({ range: { base: 0, length: 2 ** 53 - 1 }, dumpLevel: 0, threads: 1, level: 9, maxMappings: 1 });
  checkRequest({ format: 'elf', codec: 'portable', excludeFallback: 'keep', paging: true, findKdbg: false });
});

t.test('a huge value makes no huge message', async (t) => {
  const format = 'x'.repeat(1e6) as 'elf';
  t.throws(() => checkRequest({ format }), /^format must be one of .{1,400}$/);
});
