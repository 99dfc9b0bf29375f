import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  lstatSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import fsPromises from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { pipelinePromise, Readable } from 'streamx';
import t from 'tap';
import { FileSink, type FileSinkOptions } from '../../lib/sinks/file-sink.js';
import type { Extent } from '../../lib/model/stage.js';
import { shortFolder } from '../short-folder.js';
import { needsTools } from '../tools.js';

const MIB = 1 << 20;

function extent(offset: number, data: Uint8Array, memory = data.length): Extent {
  return { offset, length: data.length, data, memory };
}

function hole(offset: number, length: number): Extent {
  return { offset, length, memory: length };
}

async function write(path: string, extents: readonly Extent[], options?: FileSinkOptions): Promise<FileSink> {
  const sink = new FileSink(path, options);
  await pipelinePromise(Readable.from([...extents]), sink);
  return sink;
}

function bytes(length: number, fill: number): Uint8Array {
  return new Uint8Array(length).fill(fill);
}

t.test('extents land at their offsets, in any order; the file is for its owner only', async (t) => {
  const path = join(t.testdir({}), 'vmcore');
  const sink = await write(path, [extent(8192, bytes(4096, 2)), extent(0, bytes(100, 1)), extent(5000, bytes(10, 3))]);
  const want = Buffer.alloc(12288);
  want.fill(1, 0, 100);
  want.fill(3, 5000, 5010);
  want.fill(2, 8192);
  t.same(readFileSync(path), want);
  t.equal(statSync(path).mode & 0o777, 0o600);
  t.equal(sink.totals.completed, 4096 + 100 + 10);
  t.same(readdirSync(join(path, '..')), ['vmcore'], 'nothing is left beside it');
});

t.test('zeros are holes, also at the end; a dense file has none', async (t) => {
  const dir = t.testdir({});
  const extents = [extent(0, bytes(MIB, 1)), extent(MIB, bytes(MIB, 0)), hole(2 * MIB, 8 * MIB)];
  const sparse = await write(join(dir, 'sparse'), extents);
  const dense = await write(join(dir, 'dense'), extents, { sparse: false });
  t.same(readFileSync(join(dir, 'sparse')), readFileSync(join(dir, 'dense')));
  t.equal(statSync(join(dir, 'sparse')).size, 10 * MIB);
  t.ok(statSync(join(dir, 'sparse')).blocks * 512 < 2 * MIB);
  t.ok(statSync(join(dir, 'dense')).blocks * 512 >= 10 * MIB);
  t.same(sparse.totals, { completed: 10 * MIB, written: MIB, skipped: 9 * MIB, size: 10 * MIB });
  t.same(dense.totals, { completed: 10 * MIB, written: 10 * MIB, skipped: 0, size: 10 * MIB });
});

t.test('an existing file is refused and kept; --force replaces it only when all is written', async (t) => {
  const path = join(t.testdir({ vmcore: 'old' }), 'vmcore');
  await t.rejects(write(path, [extent(0, bytes(10, 1))]), { code: 'EXISTS', message: /--force/ });
  t.equal(readFileSync(path, 'utf8'), 'old');
  const failing = Readable.from(
    (async function* () {
      yield extent(0, bytes(10, 1));
      t.equal(readFileSync(path, 'utf8'), 'old', 'the old file is there while the new one is written');
      throw new Error('source failed');
    })(),
  );
  await t.rejects(pipelinePromise(failing, new FileSink(path, { force: true })), { message: 'source failed' });
  t.equal(readFileSync(path, 'utf8'), 'old', 'and after a failure');
  await write(path, [extent(0, bytes(10, 1))], { force: true });
  t.equal(statSync(path).size, 10);
  t.same(readdirSync(join(path, '..')), ['vmcore']);
});

t.test('a file that comes into being meanwhile is not replaced', async (t) => {
  const path = join(t.testdir({}), 'vmcore');
  const source = Readable.from(
    (async function* () {
      yield extent(0, bytes(10, 1));
      writeFileSync(path, 'somebody else');
    })(),
  );
  await t.rejects(pipelinePromise(source, new FileSink(path)), { code: 'EXISTS' });
  t.equal(readFileSync(path, 'utf8'), 'somebody else');
  t.same(readdirSync(join(path, '..')), ['vmcore']);
});

t.test('a symbolic link is followed', async (t) => {
  const dir = t.testdir({ real: 'old' });
  symlinkSync('real', join(dir, 'link'));
  await write(join(dir, 'link'), [extent(0, bytes(3, 0x41))], { force: true });
  t.equal(readFileSync(join(dir, 'real'), 'utf8'), 'AAA');
});

t.test('a symbolic link to a file that is not there yet is followed', async (t) => {
  const dir = t.testdir({ big: { sub: {} } });
  const links = {
    relative: 'big/relative.out',
    absolute: join(dir, 'big', 'absolute.out'),
    chain: 'relative-2',
    'relative-2': 'big/chain.out',
    folder: 'big/sub',
    dots: 'folder/../dots.out',
  };
  for (const [name, text] of Object.entries(links)) symlinkSync(text, join(dir, name));
  for (const name of ['relative', 'absolute', 'chain', 'dots']) {
    await write(join(dir, name), [extent(0, bytes(3, 0x41))]);
    t.ok(lstatSync(join(dir, name)).isSymbolicLink(), `${name}: is still a link`);
    t.equal(readFileSync(join(dir, 'big', `${name}.out`), 'utf8'), 'AAA', name);
    await t.rejects(write(join(dir, name), []), { code: 'EXISTS' }, `${name}: now it is there`);
  }
  t.same(readdirSync(join(dir, 'big')).length, 5, 'nothing is left beside');

  symlinkSync('no/such', join(dir, 'lost'));
  await t.rejects(write(join(dir, 'lost'), []), { code: 'WRITE', message: /lost: no such file or directory/ });
  symlinkSync('loop', join(dir, 'loop'));
  const loop = { code: 'WRITE', message: /loop: too many symbolic links, or they lead in a circle$/ };
  await t.rejects(write(join(dir, 'loop'), [], { force: true }), loop);
  t.ok(lstatSync(join(dir, 'loop')).isSymbolicLink(), 'a loop stays');
});

t.test('a name may be as long as the file system allows', async (t) => {
  const dir = t.testdir({});
  const names = ['a'.repeat(255), 'ä'.repeat(127), `b${'€'.repeat(84)}`];
  for (const name of names) await write(join(dir, name), [extent(0, bytes(3, 0x41))]);
  t.same(readdirSync(dir).sort(), names.sort());
  const tooLong = { code: 'WRITE', message: /c: the name is too long$/ };
  await t.rejects(write(join(dir, 'c'.repeat(256)), []), tooLong, 'before anything is written');
});

t.test('what cannot be written says so in one line', async (t) => {
  const dir = t.testdir({ sub: {} });
  await t.rejects(write(join(dir, 'sub'), []), { code: 'WRITE', message: /is a directory/ });
  await t.rejects(write(join(dir, 'no', 'such'), []), { code: 'WRITE', message: /no such file or directory/ });
  if (process.getuid?.() !== 0) {
    chmodSync(join(dir, 'sub'), 0o500);
    await t.rejects(write(join(dir, 'sub', 'x'), []), { message: /permission denied/ });
  }
});

t.test('aborted: nothing stays', async (t) => {
  const dir = t.testdir({});
  const abort = new AbortController();
  const source = new Readable({ read: () => {} });
  source.push(extent(0, bytes(10, 1)));
  const done = pipelinePromise(source, new FileSink(join(dir, 'vmcore'), { signal: abort.signal }));
  setTimeout(() => abort.abort(), 20);
  await t.rejects(done);
  t.same(readdirSync(dir), []);
  t.notOk(existsSync(join(dir, 'vmcore')));
});

t.test('bytes are given back when they have been written, and progress says so', async (t) => {
  const path = join(t.testdir({}), 'vmcore');
  let released = 0;
  const sink = new FileSink(path);
  const seen: number[] = [];
  sink.on('progress' as 'drain', () => seen.push(sink.totals.completed));
  const items = [1, 2, 3].map((n) => ({ ...extent(n * 4096, bytes(4096, n)), release: () => void released++ }));
  await pipelinePromise(Readable.from(items), sink);
  t.equal(released, 3);
  t.same(seen, [4096, 8192, 12288]);
});

t.test('what is no file is never replaced by one', { skip: needsTools('mkfifo') }, async (t) => {
  const dir = shortFolder(t);
  const path = (name: string) => join(dir, name);
  execFileSync('mkfifo', [path('fifo')]);
  symlinkSync('fifo', path('link'));
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(path('s'), resolve));
  t.teardown(() => server.close());
  const refused: Record<string, RegExp> = {
    fifo: /fifo: is a FIFO, which a file must not replace; open it and give the descriptor \(fd\)$/,
    link: /link: is a FIFO, /,
    s: /s: is a socket; connect to it and give the descriptor \(fd\)$/,
  };
  for (const [name, message] of Object.entries(refused)) {
    await t.rejects(write(path(name), [extent(0, bytes(10, 1))], { force: true }), { code: 'WRITE', message }, name);
  }
  t.ok(lstatSync(path('fifo')).isFIFO());
  t.ok(lstatSync(path('s')).isSocket());
  t.same(readdirSync(dir).sort(), ['fifo', 'link', 's']);
});

/** Has the file that is opened next tell, when it is closed, that its bytes may be lost. */
function failNextClose(): void {
  const { open } = fsPromises;
  const setOpen = (value: typeof open) => {
    fsPromises.open = value;
    syncBuiltinESMExports();
  };
  setOpen(async (...args) => {
    setOpen(open);
    const handle = await open(...args);
    const { close } = handle;
    handle.close = async () => {
      handle.close = close;
      await close();
      throw Object.assign(new Error('EIO'), { code: 'EIO' });
    };
    return handle;
  });
}

t.test('a close(2) that fails fails the file', async (t) => {
  const path = join(t.testdir({ vmcore: 'old' }), 'vmcore');
  failNextClose();
  const error = { code: 'WRITE', message: /^cannot write .*vmcore: input\/output error$/ };
  await t.rejects(write(path, [extent(0, bytes(10, 1))], { force: true }), error);
  t.equal(readFileSync(path, 'utf8'), 'old');
  t.same(readdirSync(join(path, '..')), ['vmcore']);
});

t.test('a failure whose cleaning up fails leaves nothing', async (t) => {
  const dir = t.testdir({});
  failNextClose();
  const source = Readable.from(
    (async function* () {
      yield extent(0, bytes(10, 1));
      throw new Error('source failed');
    })(),
  );
  await t.rejects(pipelinePromise(source, new FileSink(join(dir, 'vmcore'))), { message: 'source failed' });
  t.same(readdirSync(dir), []);
});

t.test('with sync, names are on the disk as well', async (t) => {
  const path = join(t.testdir({}), 'vmcore');
  await write(path, [extent(0, bytes(10, 1))], { sync: true });
  t.equal(statSync(path).size, 10);
});
