/** Our ELF vmcores of every oracle guest against QEMU's of the same pause. */

import { rmSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { dump } from '../../lib/dump.js';
import type { Guest } from '../../lib/model/guest.js';
import { openGuest } from '../../lib/open-guest.js';
import { GUEST_NAMES, missingTools, ORACLE_GUESTS, type OracleGuest, oracleGuest } from '../guests/oracle.js';
import { skipUnless } from '../tools.js';
import { compareElf, type Expectation } from './compare-elf.js';
import { maskLostRegisters } from './lost-registers.js';

interface Case {
  readonly title: string;
  readonly paging: boolean;
  readonly range?: { base: number; length: number };
  readonly expected: string;
}

function casesOf({ manifest }: OracleGuest): Case[] {
  const whole: Case[] = [{ title: 'all memory', paging: false, expected: 'qemu.elf' }];
  if (manifest.pagingElf) whole.push({ title: 'all memory, paging', paging: true, expected: 'qemu-paging.elf' });
  const ranges = manifest.ranges.flatMap(({ about, begin, length, paging, file }) =>
    file
      ? [{ title: `${about}${paging ? ', paging' : ''}`, paging, range: { base: begin, length }, expected: file }]
      : [],
  );
  return [...whole, ...ranges];
}

/** A vmcore has no place for the A20 gate, which bends the page tables of this guest: no mappings from there. */
const A20_UNKNOWN = 'a20-off';

function memoryIn({ manifest }: OracleGuest, range = { base: 0, length: Number.MAX_SAFE_INTEGER }): number {
  const overlaps = manifest.blocks.map(
    ({ base, length }) => Math.min(base + length, range.base + range.length) - Math.max(base, range.base),
  );
  return overlaps.reduce((sum, overlap) => sum + Math.max(0, overlap), 0);
}

async function compareAll(
  t: Test,
  oracle: OracleGuest,
  guest: Guest,
  cases: readonly Case[],
  mask?: Expectation['mask'],
): Promise<void> {
  const ours = join(t.testdir({}), 'vmcore');
  for (const { title, paging, range, expected } of cases)
    await t.test(title, async (t) => {
      await dump(guest, { paging, range }, { file: ours }).finished;
      compareElf(t, ours, oracle.path(expected), { memoryBytes: memoryIn(oracle, range), mask });
      rmSync(ours);
    });
}

for (const name of GUEST_NAMES) {
  if (ORACLE_GUESTS[name].hostile) continue;
  t.test(name, { skip: skipUnless(missingTools(name)) }, async (t) => {
    const oracle = await oracleGuest(name);
    t.test('from memory and registers', async (t) => {
      const guest = await openGuest(oracle.path('guest.json'));
      await compareAll(t, oracle, guest, casesOf(oracle), maskLostRegisters(oracle.manifest));
      guest.close();
    });
    t.test("from QEMU's ELF", async (t) => {
      const guest = await openGuest(oracle.path('qemu.elf'));
      const cases = casesOf(oracle).filter(({ paging }) => !paging || name !== A20_UNKNOWN);
      await compareAll(t, oracle, guest, cases);
      guest.close();
    });
    t.test('ranges that QEMU refuses are refused', async (t) => {
      const guest = await openGuest(oracle.path('guest.json'));
      for (const { about, begin, length, error } of oracle.manifest.ranges)
        if (error)
          await t.rejects(
            dump(guest, { range: { base: begin, length } }, { file: join(t.testdir({}), 'vmcore') }).finished,
            { code: 'NO_MEMORY' },
            `${about}: ${error}`,
          );
      guest.close();
    });
  });
}
