import t from 'tap';
import { encodeNote, NOTE_NAME_VMCOREINFO } from '../../lib/formats/notes.js';
import type { Guest, LiveReport } from '../../lib/model/guest.js';
import { findVmcoreinfoInMemory } from '../../lib/linux/find-vmcoreinfo.js';
import { withVmcoreinfo } from '../../lib/linux/with-vmcoreinfo.js';
import type { Backing } from '../../lib/model/physical-memory.js';
import { MemoryGuest } from '../../lib/sources/memory-guest.js';
import { PAGE_SIZE } from '../../lib/model/stage.js';
import { BufferBacking } from '../guest-fixture.js';
import { IMAGE, SyntheticKernel } from './synthetic-kernel.js';
import type { ElfNote } from '../../lib/model/note.js';

const MIB = 2 ** 20;
const TEXT_AT = 7 * MIB;
/** Where an earlier kernel was. */
const OLD_IMAGE = 16 * MIB;

const guestOf = (kernel: SyntheticKernel) => kernel.guestWith([]);

function putText(kernel: SyntheticKernel, note: ElfNote, at = TEXT_AT): void {
  kernel.bytes.fill(0, at, at + PAGE_SIZE);
  kernel.bytes.set(note.desc, at);
}

/** What another kernel has left in memory that was not cleared: its image and its text. */
function putOldKernel(kernel: SyntheticKernel): SyntheticKernel {
  const old = new SyntheticKernel({ image: OLD_IMAGE });
  kernel.bytes.set(old.bytes.subarray(OLD_IMAGE, OLD_IMAGE + 2 * MIB), OLD_IMAGE);
  putText(kernel, old.note, 1 * MIB);
  return old;
}

t.test('finds the text, and the note around it', async (t) => {
  for (const form of ['text', 'note'] as const) {
    const kernel = new SyntheticKernel();
    if (form === 'text') putText(kernel, kernel.note);
    else kernel.bytes.set(kernel.note.raw, TEXT_AT);
    const found = await findVmcoreinfoInMemory(guestOf(kernel));
    t.equal(found?.paddr, TEXT_AT, form);
    t.strictSame(Buffer.from(found!.note.raw), Buffer.from(kernel.note.raw), form);
  }
});

t.test('a guest with VMCOREINFO is what it was without', async (t) => {
  const kernel = new SyntheticKernel();
  putText(kernel, kernel.note);
  const live = { report: {} as LiveReport, release: async () => {} };
  const bare = guestOf(kernel);
  const given: Guest = Object.assign(bare, { live, missing: null });
  const { guest, paddr } = await withVmcoreinfo(given);
  t.equal(paddr, TEXT_AT);
  t.equal(guest.live, live, 'a machine that is alive can be released');
  t.strictSame(
    guest.notes.map(({ name }) => name),
    [NOTE_NAME_VMCOREINFO],
  );
});

t.test('what leads to no kernel is no VMCOREINFO', async (t) => {
  const kernel = new SyntheticKernel();
  const text = kernel.vmcoreinfo();
  const wrong = {
    'another release': text.replace('6.1.0-synthetic', '6.1.0-other'),
    'other page tables': text.replace(/NUMBER\(phys_base\)=-?\d+/, 'NUMBER(phys_base)=0'),
    'another page size': text.replace('PAGESIZE=4096', 'PAGESIZE=65536'),
    'no tables': text.replace(/SYMBOL\((init_top_pgt|swapper_pg_dir)\)=.*\n/g, ''),
    'a line of it': 'OSRELEASE=6.1.0-synthetic\n',
  };
  for (const [name, other] of Object.entries(wrong)) {
    putText(kernel, encodeNote(NOTE_NAME_VMCOREINFO, 0, Buffer.from(other)));
    t.equal(await findVmcoreinfoInMemory(guestOf(kernel)), null, name);
  }
  kernel.bytes.fill(0, TEXT_AT, TEXT_AT + PAGE_SIZE);
  kernel.bytes.set(kernel.note.desc, TEXT_AT + 16);
  t.equal(await findVmcoreinfoInMemory(guestOf(kernel)), null, 'a copy that is not at the start of a page');
  const claims = Buffer.from(kernel.note.raw);
  claims.writeUInt32LE(0xffff_fff0, 4);
  kernel.bytes.set(claims, TEXT_AT);
  t.equal(await findVmcoreinfoInMemory(guestOf(kernel)), null, 'a note that claims gigabytes');
});

t.test('takes the kernel that booted last for the one that runs', async (t) => {
  const kernel = new SyntheticKernel();
  putOldKernel(kernel);
  putText(kernel, kernel.note);
  kernel.start();
  const found = await findVmcoreinfoInMemory(guestOf(kernel));
  t.equal(found?.paddr, TEXT_AT);
});

t.test('refuses to choose when two kernels look alike', async (t) => {
  const kernel = new SyntheticKernel();
  putOldKernel(kernel);
  putText(kernel, kernel.note);
  await t.rejects(findVmcoreinfoInMemory(guestOf(kernel)), {
    code: 'BAD_INPUT',
    message: /2 kernels \(at 0x100000, 0x700000\).*--vmcoreinfo/,
  });
});

t.test('two copies of one text are one kernel', async (t) => {
  const kernel = new SyntheticKernel();
  putText(kernel, kernel.note);
  putText(kernel, kernel.note, 9 * MIB);
  t.equal((await findVmcoreinfoInMemory(guestOf(kernel)))?.paddr, TEXT_AT);
});

t.test('streams have none; it can be aborted', async (t) => {
  const kernel = new SyntheticKernel();
  putText(kernel, kernel.note);
  const guest = guestOf(kernel);
  const { name, arch, blocks, cpus, notes } = guest;
  const stream = { name, arch, blocks, cpus, notes, memory: null, chunks: () => guest.chunks(), close: () => {} };
  t.equal(await findVmcoreinfoInMemory(stream), null);
  await t.rejects(findVmcoreinfoInMemory(guest, AbortSignal.abort()), { code: 'ABORTED' });
});

t.test('holes are not read, wherever they begin and end', async (t) => {
  const kernel = new SyntheticKernel();
  putText(kernel, kernel.note);
  const { bytes } = kernel;
  let read = 0;
  const readSync = (offset: number, into: Uint8Array) => {
    read += into.length;
    into.fill(0);
    if (offset < bytes.length) into.set(bytes.subarray(offset, offset + into.length));
  };
  const runs = [
    { start: 100, end: PAGE_SIZE + 1 },
    { start: IMAGE, end: IMAGE + 64 * PAGE_SIZE },
    { start: TEXT_AT + 1, end: TEXT_AT + 2 },
    { start: 2 ** 40 - PAGE_SIZE, end: 2 ** 40 },
  ];
  const backing: Backing = {
    name: 'sparse',
    readSync,
    read: async (offset, into) => readSync(offset, into),
    nextData: (offset, end) => {
      const run = runs.find((run) => run.end > offset && run.start < end);
      return run ? { start: Math.max(run.start, offset), end: Math.min(run.end, end) } : null;
    },
    close: () => {},
  };
  const regions = [{ base: 0, length: 2 ** 40, backing, offset: 0 }];
  const guest = new MemoryGuest({ name: 'sparse', arch: 'x86_64', regions, cpus: [], notes: [] });
  t.equal((await findVmcoreinfoInMemory(guest))?.paddr, TEXT_AT);
  t.ok(read < 4 * MIB, `${read} bytes of a terabyte were read`);
});

t.test('where a long run of data ends is asked once', async (t) => {
  const { bytes } = new SyntheticKernel();
  const backing = new BufferBacking(bytes, [{ start: 0, end: bytes.length }]);
  const { nextData } = backing;
  let asked = 0;
  backing.nextData = (offset, end) => {
    asked++;
    return nextData!(offset, end);
  };
  const regions = [{ base: 0, length: bytes.length, backing, offset: 0 }];
  const guest = new MemoryGuest({ name: 'dense', arch: 'x86_64', regions, cpus: [], notes: [] });
  t.equal(await findVmcoreinfoInMemory(guest), null);
  t.equal(asked, 1);
});
