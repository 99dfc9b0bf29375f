/** Files that are given as VMCOREINFO: what is taken, and what is refused. */

import { join } from 'node:path';
import t from 'tap';
import { encodeNote } from '../../lib/formats/notes.js';
import { findVmcoreinfo } from '../../lib/formats/vmcoreinfo.js';
import { readVmcoreinfo } from '../../lib/sources/raw/vmcoreinfo-file.js';
import { windowsGuestFixture } from '../windows-fixture.js';

const TEXT =
  'OSRELEASE=6.1.0\nBUILD-ID=00ff\nPAGESIZE=4096\nSYMBOL(mem_section)=ffffffff82a00000\nNUMBER(phys_base)=-1\n';
const NOTE = encodeNote('VMCOREINFO', 0, Buffer.from(TEXT)).raw;

t.test('the text in all shapes, and whole notes', async (t) => {
  const texts: Record<string, string | Uint8Array> = {
    'as the kernel has it': TEXT,
    'without the last line end': TEXT.trimEnd(),
    'with zeros behind it': `${TEXT}${'\0'.repeat(100)}`,
    'with another line first': `CRASHTIME=1700000000\n${TEXT}`,
    'with an empty line': `${TEXT}\n`,
    'with line ends of DOS': TEXT.replaceAll('\n', '\r\n'),
    'a note': NOTE,
    'a note with zeros behind it': Buffer.concat([NOTE, Buffer.alloc(12)]),
  };
  for (const [title, file] of Object.entries(texts)) {
    const folder = t.testdir({ info: Buffer.from(file as string) });
    const note = await readVmcoreinfo(join(folder, 'info'));
    t.equal(findVmcoreinfo([note])?.get('OSRELEASE'), '6.1.0', title);
    t.equal(findVmcoreinfo([note])?.number('phys_base'), -1n, title);
  }
});

t.test('the note of a Windows driver, whatever its name', async (t) => {
  const { raw, desc } = windowsGuestFixture().guest.notes[0]!;
  const folder = t.testdir({ driver: Buffer.from(raw), named: Buffer.from(encodeNote('WINDUMP', 0, desc).raw) });
  t.same(Buffer.from((await readVmcoreinfo(join(folder, 'driver'))).raw), Buffer.from(raw));
  t.match(await readVmcoreinfo(join(folder, 'named')), { name: 'WINDUMP' });
});

t.test('another file is refused, and never read without a bound', async (t) => {
  const files: Record<string, string | Uint8Array> = {
    empty: '',
    zeros: Buffer.alloc(4096),
    'line-ends': '\n\n',
    'registers.txt': 'CPU#0\nRAX=0000000000000000 RBX=0000000000000000\n',
    'no-release': 'PAGESIZE=4096\nBUILD-ID=00ff\n',
    'empty-release': 'OSRELEASE=\nPAGESIZE=4096\n',
    'a-line-that-is-none': `${TEXT}hello\n`,
    'text-behind-zeros': `${TEXT}\0${TEXT}`,
    'cut.note': NOTE.subarray(0, -8),
    'newline.note': Buffer.concat([NOTE, Buffer.from('\n')]),
    'text-in-a-program': Buffer.concat([Buffer.from('\x7fELF\x02\x01\x01\n'), Buffer.from(TEXT)]),
  };
  const folder = t.testdir(
    Object.fromEntries(Object.entries(files).map(([name, file]) => [name, Buffer.from(file as string)])),
  );
  for (const path of ['/dev/null', '/bin/sh', ...Object.keys(files).map((name) => join(folder, name))])
    await t.rejects(
      readVmcoreinfo(path),
      {
        code: 'BAD_INPUT',
        message:
          /no VMCOREINFO in .*; give the text that begins with OSRELEASE=…, or the whole ELF note|VMCOREINFO is at most/,
      },
      path,
    );
  await t.rejects(readVmcoreinfo('/dev/zero'), {
    code: 'BAD_INPUT',
    message: '/dev/zero: VMCOREINFO is at most 1 MiB',
  });
  await t.rejects(readVmcoreinfo('/nowhere'), { code: 'READ', message: /\/nowhere: no such file/ });
});
