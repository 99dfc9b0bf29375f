import fc from 'fast-check';
import t from 'tap';
import { encodeNote } from '../../lib/formats/notes.js';
import { findVmcoreinfo, parseVmcoreinfo, vmcoreinfoFacts, vmcoreinfoNote } from '../../lib/formats/vmcoreinfo.js';

/** From Linux 6.1 of Debian under QEMU, shortened; NUMBER(VMALLOC_START) from a 6.12. */
const SAMPLE = `OSRELEASE=6.1.0-56-cloud-amd64
BUILD-ID=3b43fad5034874490492495d552c0af6a5fab235
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff8c3f9b60
OFFSET(uts_namespace.name)=0
SYMBOL(_stext)=ffffffff8a800000
LENGTH(mem_section)=2048
SIZE(page)=64
OFFSET(page.lru)=8
NUMBER(VMALLOC_START)=0xffffc90000000000
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129
NUMBER(phys_base)=289406976
SYMBOL(init_top_pgt)=ffffffff8c210000
NUMBER(pgtable_l5_enabled)=1
KERNELOFFSET=9800000
NUMBER(KERNEL_IMAGE_SIZE)=1073741824
`;
const bytes = (text: string) => Buffer.from(text, 'latin1');

t.test('numbers have the base that Linux writes them in', async (t) => {
  const info = parseVmcoreinfo(bytes(SAMPLE));
  t.equal(info.get('OSRELEASE'), '6.1.0-56-cloud-amd64');
  t.equal(info.symbol('init_uts_ns'), 0xffff_ffff_8c3f_9b60n);
  t.equal(info.number('phys_base'), 289_406_976n);
  t.equal(info.number('PAGE_BUDDY_MAPCOUNT_VALUE'), -129n);
  t.equal(info.number('VMALLOC_START'), 0xffff_c900_0000_0000n);
  t.equal(info.offset('page.lru'), 8n);
  t.equal(info.size('page'), 64n);
  t.equal(info.length('mem_section'), 2048n);
  t.same(vmcoreinfoFacts(info), {
    osRelease: '6.1.0-56-cloud-amd64',
    buildId: '3b43fad5034874490492495d552c0af6a5fab235',
    pageSize: 4096,
    kernelOffset: 0x980_0000n,
    physBase: 289_406_976n,
    fiveLevels: true,
    crashTime: null,
  });
});

t.test('what is not there or not a number is null', async (t) => {
  const info = parseVmcoreinfo(
    bytes('SYMBOL(a)=zz\nSYMBOL(b)=\nSYMBOL(c)=11112222333344445\nNUMBER(a)=1f\nNUMBER(b)=--1\nSYMBOL(d)=0XaB\n'),
  );
  for (const name of ['a', 'b', 'c', 'none']) t.equal(info.symbol(name), null, name);
  for (const name of ['a', 'b', 'none']) t.equal(info.number(name), null, name);
  t.equal(info.symbol('d'), 0xabn);
  t.ok(Object.values(vmcoreinfoFacts(parseVmcoreinfo(bytes('')))).every((fact) => fact === null));
});

t.test('garbage between the lines is left out', async (t) => {
  const info = parseVmcoreinfo(bytes('\n=x\nnonsense\r\nA=1=2\r\nA=3\n\xff\x01=\xfe\nlast=line\0B=4\n'));
  t.same(
    [...info.entries],
    [
      ['A', '1=2'],
      ['\xff\x01', '\xfe'],
      ['last', 'line'],
    ],
  );
});

t.test('a huge text is read to its bound', async (t) => {
  const info = parseVmcoreinfo(bytes(`${'x=y\n'.repeat(1 << 20)}late=1\n`));
  t.equal(info.get('late'), null);
  t.equal(info.get('x'), 'y');
});

t.test('a text becomes a note, a whole note stays what it is', async (t) => {
  const made = vmcoreinfoNote(bytes(SAMPLE));
  t.match(made, { name: 'VMCOREINFO', type: 0 });
  t.same(Buffer.from(made.desc), bytes(SAMPLE));
  t.equal(findVmcoreinfo([encodeNote('CORE', 1, bytes('x')), made])?.number('phys_base'), 289_406_976n);
  t.equal(findVmcoreinfo([]), null);

  for (const name of ['VMCOREINFO', 'WINDUMP'])
    for (const text of ['A=1', 'A=12', 'A=123\n']) {
      const note = encodeNote(name, 7, bytes(text));
      const unpadded = note.raw.subarray(0, note.raw.length - ((4 - (text.length % 4)) % 4));
      const ended = Buffer.concat([note.raw, Buffer.alloc(12)]);
      for (const file of [note.raw, unpadded, ended]) {
        const found = vmcoreinfoNote(file);
        t.match(found, { name, type: 7 });
        t.same(Buffer.from(found.desc), bytes(text));
        t.same(Buffer.from(found.raw), Buffer.from(note.raw), 'padded, whatever the file was');
      }
    }
});

t.test('any bytes are taken', async () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), (any) => {
      vmcoreinfoFacts(parseVmcoreinfo(any));
      return vmcoreinfoNote(any).raw.length % 4 === 0;
    }),
  );
  const line = fc.tuple(fc.string({ unit: 'grapheme-ascii' }), fc.string({ unit: 'grapheme-ascii' }));
  fc.assert(
    fc.property(fc.uniqueArray(line, { selector: ([key]) => key }), (lines) => {
      const usable = lines.filter(([key]) => key !== '' && !key.includes('='));
      const info = parseVmcoreinfo(bytes(usable.map(([key, value]) => `${key}=${value}\n`).join('')));
      return usable.every(([key, value]) => info.get(key) === value);
    }),
  );
});
