import { closeSync, fstatSync, ftruncateSync, openSync, readSync, statSync, truncateSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { libc } from '../../lib/io/libc.js';
import { FileBacking } from '../../lib/io/file-backing.js';

const MIB = 1 << 20;

/** A file of 8 MiB with a MiB of data at 2 and at 5 MiB. */
function sparseFile(folder: string): string {
  const path = join(folder, 'sparse');
  const fd = openSync(path, 'w');
  ftruncateSync(fd, 8 * MIB);
  for (const at of [2, 5]) writeSync(fd, Buffer.alloc(MIB, at), 0, MIB, at * MIB);
  closeSync(fd);
  return path;
}

t.test('the C library is there on Linux: without it every hole would be read', async (t) => {
  t.equal(libc() !== null, process.platform === 'linux');
});

t.test('holes are found, clipped to what is asked for', async (t) => {
  const backing = FileBacking.open(sparseFile(t.testdir({})));
  t.same(backing.nextData(0, 8 * MIB), { start: 2 * MIB, end: 3 * MIB });
  t.same(backing.nextData(2.5 * MIB, 8 * MIB), { start: 2.5 * MIB, end: 3 * MIB });
  t.same(backing.nextData(3 * MIB, 5.5 * MIB), { start: 5 * MIB, end: 5.5 * MIB });
  t.equal(backing.nextData(3 * MIB, 4 * MIB), null, 'data only behind the end');
  t.equal(backing.nextData(6 * MIB, 8 * MIB), null, 'no data at all');
  backing.close();
});

t.test('a run is looked for once, whatever parts of it are asked for', async (t) => {
  const path = sparseFile(t.testdir({}));
  const backing = FileBacking.open(path);
  t.same(backing.nextData(2 * MIB, 2.5 * MIB), { start: 2 * MIB, end: 2.5 * MIB });
  // A file system that is asked again would say that there is a hole now.
  truncateSync(path, 0);
  truncateSync(path, 8 * MIB);
  t.same(backing.nextData(2.5 * MIB, 8 * MIB), { start: 2.5 * MIB, end: 3 * MIB });
  t.same(backing.nextData(2.25 * MIB, 2.75 * MIB), { start: 2.25 * MIB, end: 2.75 * MIB });
  t.equal(backing.nextData(MIB, 8 * MIB), null, 'what is not all of the run is looked for again');
  backing.close();
});

t.test('reading leaves a sparse file as sparse as it was', async (t) => {
  const path = sparseFile(t.testdir({}));
  const { blocks } = statSync(path);
  const backing = FileBacking.open(path);
  const into = new Uint8Array(8 * MIB);
  await backing.read(0, into);
  t.equal(into[2 * MIB], 2);
  t.equal(into[5 * MIB + 7], 5);
  t.equal(into[4 * MIB], 0);
  t.equal(statSync(path).blocks, blocks);
  backing.close();
});

t.test('the end of the file is told, with the numbers', async (t) => {
  const backing = FileBacking.open(sparseFile(t.testdir({})));
  const error = { code: 'TRUNCATED', message: /ends at byte 8388608/ };
  t.throws(() => backing.readSync(8 * MIB - 10, new Uint8Array(20)), error);
  await t.rejects(backing.read(8 * MIB - 10, new Uint8Array(20)), error);
  backing.close();
  t.throws(() => FileBacking.open(join(t.testdir({}), 'none')), { code: 'READ', message: /no such file or directory/ });
});

t.test('what has been closed is not read, whatever file has its descriptor by then', async (t) => {
  const folder = t.testdir({ ours: 'ours', other: 'other' });
  const backing = FileBacking.open(join(folder, 'ours'));
  backing.close();
  const other = FileBacking.open(join(folder, 'other'));
  const into = new Uint8Array(4);
  const closed = { code: 'READ', message: /ours: it has been closed/ };
  await t.rejects(backing.read(0, into), closed);
  t.throws(() => backing.readSync(0, into), closed);
  t.throws(() => backing.nextData(0, 4), closed);
  t.throws(() => backing.locate(0), closed);
  backing.close();
  other.readSync(0, into);
  t.equal(Buffer.from(into).toString(), 'othe');
  other.close();
});

t.test('a file stays open while it is read, and while a place in it is held', async (t) => {
  const folder = t.testdir({ ours: 'ours', other: 'other' });
  const backing = FileBacking.open(join(folder, 'ours'));
  const place = backing.locate(0);
  const into = new Uint8Array(4);
  const reading = backing.read(0, into);
  backing.close();
  const other = openSync(join(folder, 'other'), 'r');
  t.not(other, place.fd, 'the descriptor is still taken');
  await reading;
  t.equal(Buffer.from(into).toString(), 'ours');
  readSync(place.fd, into, 0, 4, 0);
  t.equal(Buffer.from(into).toString(), 'ours');
  place.release();
  place.release();
  t.throws(() => fstatSync(place.fd), { code: 'EBADF' });
  closeSync(other);
});
