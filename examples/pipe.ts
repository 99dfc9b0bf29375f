/**
 * Into another tool, with Node's own pipeline: the vmcore goes through gzip as it is made, and no file is in between.
 *
 *   node dist/examples/pipe.js > vmcore.gz
 */

import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import { ByteStream, demoGuest, ElfFramer, nodeStream, planElf } from '../lib/index.js';

const guest = demoGuest({ memory: 64 << 20 });

await pipeline(
  guest.chunks(),
  nodeStream(new ElfFramer(planElf(guest))),
  nodeStream(new ByteStream()),
  createGzip({ level: 1 }),
  process.stdout,
);
