/**
 * The monitor while a dump runs at full speed: round trips of query-dump, one after the other. Printed, not asserted.
 *
 *   node dist/bench/qmp.js             a demo guest of 8 GiB
 *   node dist/bench/qmp.js --memory 2G
 */

import { parseArgs } from 'node:util';
import { type Message, TestServer } from '../test/qmp/qmp-fixture.js';

const AIM = 50;

/** Round trips, in milliseconds, from the start of a dump to its end. */
async function roundTrips(source: string, format: string): Promise<number[]> {
  const server = await TestServer.start({ source });
  try {
    const wire = await server.connect();
    await wire.execute('dump-guest-memory', {
      paging: false,
      protocol: `file:${server.folder}/out`,
      format,
      detach: true,
    });
    const times: number[] = [];
    for (let status = 'active'; status === 'active';) {
      const started = performance.now();
      const answer: Message = await wire.execute('query-dump');
      times.push(performance.now() - started);
      status = (answer['return'] as { status: string }).status;
    }
    wire.close();
    return times.sort((a, b) => a - b);
  } finally {
    await server.stop();
  }
}

const { values } = parseArgs({ options: { memory: { type: 'string', default: '8G' } } });
console.log(`round trips of query-dump during a dump of demo:${values.memory}, in ms (aim: p99 below ${AIM})\n`);
console.log(`${'format'.padEnd(20)}${['count', 'median', 'p99', 'max'].map((name) => name.padStart(10)).join('')}`);
for (const format of ['elf', 'kdump-zlib', 'kdump-lzo', 'kdump-raw-snappy']) {
  const times = await roundTrips(`demo:${values.memory}`, format);
  const at = (share: number) => times[Math.min(times.length - 1, Math.floor(share * times.length))]!.toFixed(2);
  console.log(
    `${format.padEnd(20)}${[String(times.length), at(0.5), at(0.99), at(1)].map((text) => text.padStart(10)).join('')}`,
  );
}
