/**
 * Mutated cores: whatever is in them, opening and reading one ends soon, as a guest or as a VmcoreError, and the file
 * and the stream agree on which guest it is.
 */

import fc from 'fast-check';
import t from 'tap';
import { VmcoreError } from '../../lib/model/errors.js';
import type { Guest } from '../../lib/model/guest.js';
import { openElfCore } from '../../lib/sources/elf/elf-core.js';
import { DEFAULT_ELF_LIMITS } from '../../lib/sources/elf/elf-headers.js';
import { openElfStream } from '../../lib/sources/elf/elf-stream.js';
import { inChunks, Scratch, smallCore } from './elf-fixtures.js';
import { plainly } from '../plain-chunk.js';

const scratch = new Scratch();

/** Headers and notes of the small core; the rest is memory, where nothing can go wrong. */
const INTERESTING_BYTES = 64 + 3 * 56 + 400;
/** Zeros that go through within a moment: a lie about p_memsz shall not take the time that other lies could have. */
const LIMITS = { ...DEFAULT_ELF_LIMITS, maxLeftOutBytes: 2 ** 38 };

type Mutation = readonly [at: number, width: 1 | 2 | 4 | 8, value: bigint];

const mutations: fc.Arbitrary<readonly Mutation[]> = fc.array(
  fc.tuple(
    fc.nat(INTERESTING_BYTES),
    fc.constantFrom(1 as const, 2 as const, 4 as const, 8 as const),
    fc.oneof(
      fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      fc.bigInt({ min: 0n, max: 0x1000n }),
      fc.constantFrom(0n, 1n, 0xffffn, 0x7fff_ffffn, 0xffff_ffffn, 2n ** 52n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n),
    ),
  ),
  { minLength: 1, maxLength: 5 },
);

function mutate(core: Uint8Array, changes: readonly Mutation[]): Uint8Array {
  const copy = core.slice();
  for (const [at, width, value] of changes)
    for (let i = 0; i < width && at + i < copy.length; i++) copy[at + i] = Number((value >> BigInt(8 * i)) & 0xffn);
  return copy;
}

/** A guest as text, or the code of the error that it ends with. */
async function outcome(opening: Promise<Guest>): Promise<string> {
  try {
    const guest = await opening;
    try {
      return await describe(guest);
    } finally {
      guest.close();
    }
  } catch (error) {
    if (error instanceof VmcoreError) return `error ${error.code}`;
    throw error;
  }
}

async function describe(guest: Guest): Promise<string> {
  const cpus = guest.cpus.map((cpu) => `${cpu.rip} ${cpu.longMode}`);
  const notes = guest.notes.map(({ name, desc }) => `${name} ${desc.length}`);
  const blocks = guest.blocks.map(({ base, length }) => `${base}+${length}`);
  const chunks: string[] = [];
  for await (const { paddr, length, data, release } of plainly(guest.chunks())) {
    chunks.push(`${paddr}+${length} ${data ? Buffer.from(data).toString('hex') : 'zeros'}`);
    release?.();
  }
  // A file is read in order of addresses and a stream in that of its bytes; zeros may be in any number of pieces.
  const stored = chunks.filter((chunk) => !chunk.endsWith('zeros')).sort();
  return [guest.arch, cpus, notes, blocks, stored].join('\n');
}

/** A PT_LOAD that is cut, where another has named the same memory before. */
const CUT_REPETITION: readonly Mutation[] = [
  [201, 8, 2n ** 63n],
  [121, 1, 0n],
];

const runs = Number(process.env['FUZZ_RUNS'] ?? 1500);

t.test(`${runs} mutated cores`, async (t) => {
  const core = smallCore();
  const counts = { guests: 0, errors: 0 };
  await fc.assert(
    fc.asyncProperty(mutations, async (changes) => {
      const bytes = mutate(core, changes);
      const file = await outcome(openElfCore(scratch.write(bytes), LIMITS));
      const stream = await outcome(openElfStream(inChunks(bytes, [100, 1]), 'stream', LIMITS));
      if (file.startsWith('error')) counts.errors++;
      else counts.guests++;
      // A stream may refuse what needs seeking, and must not accept what the file is refused for.
      if (stream === 'error UNSUPPORTED') return;
      if (file.startsWith('error')) return stream.startsWith('error');
      return stream === file;
    }),
    { numRuns: runs, examples: [[CUT_REPETITION]] },
  );
  t.ok(counts.errors > runs / 20 && counts.guests > runs / 20, `${counts.guests} guests, ${counts.errors} errors`);
});

t.test('random bytes behind an ELF header', async (t) => {
  const head = smallCore().subarray(0, 64);
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 1000 }), async (rest) => {
      const bytes = Buffer.concat([head, rest]);
      await outcome(openElfCore(scratch.write(bytes), LIMITS));
      await outcome(openElfStream(inChunks(bytes), 'stream', LIMITS));
    }),
    { numRuns: 300 },
  );
  t.end();
});
