import { spawnSync } from 'node:child_process';
import t from 'tap';
import { PAGE_SIZE } from '../../lib/model/stage.js';
import { PYTHON, skipUnless } from '../tools.js';
import { type Codec, hardPages, WasmBench, VARIANTS } from './encoder-fixture.js';

/** Shared libraries with the decoders that crash, makedumpfile and drgn use. */
const LIBRARIES: Readonly<Record<Codec, string>> = { zlib: 'libz.so.1', lzo: 'liblzo2.so.2', snappy: 'libsnappy.so.1' };

/**
 * Decodes what comes in as records of a 32-bit size and as many bytes, and puts pages out. The output has no room but for
 * the page, so that a decoder that would write more fails.
 */
const DECODE = `
import ctypes, struct, sys
codec, name = sys.argv[1:]
lib = ctypes.CDLL(name)
page = ctypes.create_string_buffer(${PAGE_SIZE})
room = ctypes.c_size_t()
decode = {
    'zlib': lambda data: lib.uncompress(page, ctypes.byref(room), data, ctypes.c_size_t(len(data))),
    'lzo': lambda data: lib.lzo1x_decompress_safe(data, ctypes.c_size_t(len(data)), page, ctypes.byref(room), None),
    'snappy': lambda data: lib.snappy_uncompress(data, ctypes.c_size_t(len(data)), page, ctypes.byref(room)),
}[codec]
while header := sys.stdin.buffer.read(4):
    data = sys.stdin.buffer.read(struct.unpack('<I', header)[0])
    room.value = ${PAGE_SIZE}
    status = decode(data)
    if status or room.value != ${PAGE_SIZE}:
        sys.exit(f'status {status}, {room.value} bytes')
    sys.stdout.buffer.write(page.raw)
`;

function lacks(library: string): boolean {
  return spawnSync(PYTHON, ['-c', `import ctypes; ctypes.CDLL('${library}')`]).status !== 0;
}

const bench = new WasmBench(1);

for (const [codec, level] of VARIANTS) {
  const library = LIBRARIES[codec];
  const skip = skipUnless(lacks(library) ? [library] : []);
  t.test(`${library} decodes ${codec} level ${level}`, { skip }, async (t) => {
    const pages = [...hardPages()];
    const records = pages.flatMap(([, page]) => {
      const encoded = bench.encode(codec, level, page);
      const size = Buffer.alloc(4);
      size.writeUInt32LE(encoded.length);
      return [size, encoded];
    });
    const { status, stdout, stderr } = spawnSync(PYTHON, ['-c', DECODE, codec, library], {
      input: Buffer.concat(records),
      maxBuffer: pages.length * PAGE_SIZE + 65_536,
    });
    t.equal(status, 0, stderr.toString());
    t.equal(stdout.length, pages.length * PAGE_SIZE);
    for (const [index, [name, page]] of pages.entries())
      if (Buffer.compare(stdout.subarray(index * PAGE_SIZE, (index + 1) * PAGE_SIZE), page) !== 0) t.fail(name);
  });
}
