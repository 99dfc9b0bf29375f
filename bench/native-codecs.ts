/** What the native libraries that QEMU and makedumpfile use do with pages: the peers of the encoder module. */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { deflateSync } from 'node:zlib';
import { PAGE_SIZE } from '../lib/model/page-size.js';

/** What a codec came to on some pages. */
export interface CodecSpeed {
  /** seconds for all pages, in one thread */
  readonly seconds: number;
  /** bytes of all encoded pages; one that does not shrink counts as 4096 */
  readonly bytes: number;
}

/** Prints a line of name, seconds and bytes for each library; takes the file of pages. */
const NATIVE = `
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zlib.h>
int lzo1x_1_compress(const unsigned char *, size_t, unsigned char *, size_t *, void *);
int snappy_compress(const char *, size_t, char *, size_t *);
static unsigned char page[4096], out[8192], work[1 << 17];
static z_stream stream;
static size_t lzo(unsigned char *in) { size_t n; lzo1x_1_compress(in, 4096, out, &n, work); return n; }
static size_t snap(unsigned char *in) { size_t n = sizeof out; snappy_compress((char *)in, 4096, (char *)out, &n); return n; }
static size_t fresh(unsigned char *in) { uLongf n = sizeof out; compress2(out, &n, in, 4096, 1); return n; }
static size_t reused(unsigned char *in) {
  deflateReset(&stream);
  stream.next_in = in; stream.avail_in = 4096; stream.next_out = out; stream.avail_out = sizeof out;
  deflate(&stream, Z_FINISH);
  return stream.total_out;
}
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static void run(const char *name, size_t (*encode)(unsigned char *), unsigned char *pages, size_t size) {
  double best = 1e9; size_t bytes = 0;
  for (int round = 0; round < 4; round++) {
    double start = now(); bytes = 0;
    for (size_t at = 0; at < size; at += 4096) { size_t n = encode(pages + at); bytes += n < 4096 ? n : 4096; }
    if (now() - start < best) best = now() - start;
  }
  printf("%s\\t%f\\t%zu\\n", name, best, bytes);
}
int main(int count, char **arguments) {
  FILE *file = fopen(arguments[1], "rb");
  size_t size = 0; unsigned char *pages = NULL;
  while (fread(page, 1, 4096, file) == 4096) {
    if (size % (1 << 24) == 0) pages = realloc(pages, size + (1 << 24));
    memcpy(pages + size, page, 4096); size += 4096;
  }
  deflateInit(&stream, 1);
  run("liblzo2 lzo1x_1_compress", lzo, pages, size);
  run("libsnappy snappy_compress", snap, pages, size);
  run("zlib level 1, compress2 (QEMU's)", fresh, pages, size);
  run("zlib level 1, one z_stream", reused, pages, size);
}
`;

/** What native libraries do with the pages, by name; nothing where they or a compiler are not to be had. */
export function measureNative(pages: Buffer): Map<string, CodecSpeed> {
  const folder = mkdtempSync(join(tmpdir(), 'wasm-speed-'));
  try {
    const [source, program, input] = ['native.c', 'native', 'pages'].map((name) => join(folder, name));
    writeFileSync(source!, NATIVE);
    writeFileSync(input!, pages);
    const libraries = ['-lz', '-l:liblzo2.so.2', '-l:libsnappy.so.1'];
    execFileSync('cc', ['-O2', '-o', program!, source!, ...libraries], { stdio: 'ignore' });
    const lines = execFileSync(program!, [input!], { encoding: 'utf8' }).trim().split('\n');
    return new Map(
      lines.map((line) => {
        const [name = '', seconds, bytes] = line.split('\t');
        return [name, { seconds: Number(seconds), bytes: Number(bytes) }];
      }),
    );
  } catch {
    console.log('(no cc, zlib.h, liblzo2.so.2 or libsnappy.so.1: no native libraries to compare with)');
    return new Map();
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** node:zlib at its level 1, one call a page. */
export function measureNodeZlib(pages: Buffer): CodecSpeed {
  let bytes = 0;
  const started = performance.now();
  for (let at = 0; at < pages.length; at += PAGE_SIZE)
    bytes += Math.min(PAGE_SIZE, deflateSync(pages.subarray(at, at + PAGE_SIZE), { level: 1 }).length);
  return { seconds: (performance.now() - started) / 1000, bytes };
}
