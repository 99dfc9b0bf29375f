/**
 * A pipeline composed by hand: 16 MiB of the guest, from the source to a file, stage by stage.
 *
 *   node dist/examples/compose.js OUTPUT
 */

import { pipelinePromise } from 'streamx';
import { demoGuest, ElfFramer, FileSink, planElf, RangeFilter } from '../lib/index.js';

const guest = demoGuest();
const range = { base: 0x100000, length: 16 << 20 };
const layout = planElf(guest, { range });
const sink = new FileSink(process.argv[2] ?? 'part.vmcore', { force: true });

await pipelinePromise(guest.chunks(), new RangeFilter(range), new ElfFramer(layout), sink);

console.log(`${sink.target}: ${layout.programHeaders.length - 1} PT_LOADs, ${sink.totals.completed} bytes of memory`);
