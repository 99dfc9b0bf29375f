/**
 * A compressing pipeline composed by hand: any vmcore becomes a kdump, by all cores. Where its memory is in a file as it
 * is, the compressor's threads read it themselves (`unread`); from other sources it comes in the encoder's own slabs.
 *
 *   node dist/examples/compose-kdump.js INPUT OUTPUT
 */

import { pipelinePromise } from 'streamx';
import { FileSink, KdumpFramer, WasmEncoder, openGuest, PageAligner, PageCompressor, planKdump } from '../lib/index.js';

const [input, output] = process.argv.slice(2);
if (!input || !output) throw new Error('usage: compose-kdump INPUT OUTPUT');

const guest = await openGuest(input);
const layout = planKdump(guest, { codec: 'lzo' });
const encoder = await WasmEncoder.open('lzo', { level: 2 });
const compressor = new PageCompressor(encoder);

await pipelinePromise(
  guest.chunks({ pool: encoder.pool, deferred: encoder.readsFiles }),
  new PageAligner(),
  compressor,
  new KdumpFramer(layout),
  new FileSink(output),
);
guest.close();

const { zero, stored, compressed } = compressor.counts;
console.log(`${output}: ${zero} pages of zeros, ${stored} stored, ${compressed} compressed`);
