import fc from 'fast-check';
import t from 'tap';
import {
  CONTEXT_FLAGS,
  CONTEXT_SIZE,
  decodeWinContext,
  decodeWinDmpHeader,
  emptyWinDmpHeader,
  encodeWinContext,
  RESET_DEBUG,
  setBugcheckData,
  setWinDmpFields,
  setWinDmpRuns,
  WIN_DMP_HEADER_SIZE,
  winDmpBits,
} from '../../lib/formats/win-dmp.js';
import { cpuOf } from '../windows-fixture.js';

const BITS = [64, 32] as const;

t.test('which header it is', async (t) => {
  for (const bits of BITS) t.equal(winDmpBits(emptyWinDmpHeader(bits)), bits);
  t.equal(winDmpBits(Buffer.from('PAGEDU65')), null);
  t.equal(winDmpBits(Buffer.from('PAGE')), null);
  t.equal(winDmpBits(new Uint8Array()), null);
});

t.test('a field that is set is read back, and no other changes', async (t) => {
  for (const bits of BITS) {
    const names = Object.entries(decodeWinDmpHeader(emptyWinDmpHeader(bits), bits))
      .filter(([name, value]) => typeof value === 'bigint' && !['NumberOfRuns', 'NumberParameters'].includes(name))
      .map(([name]) => name as 'DirectoryTableBase');
    t.ok(names.length > 25);
    for (const name of names) {
      const header = emptyWinDmpHeader(bits);
      const before = decodeWinDmpHeader(header, bits);
      setWinDmpFields(header, bits, { [name]: 0xa5n });
      t.same(decodeWinDmpHeader(header, bits), { ...before, [name]: 0xa5n }, `${name}, ${bits} bit`);
    }
  }
});

t.test('a number that is too wide is cut, not spilled', async (t) => {
  const header = emptyWinDmpHeader(32);
  setWinDmpFields(header, 32, { KdDebuggerDataBlock: 0xffff_ffff_8040_0000n });
  t.match(decodeWinDmpHeader(header, 32), { KdDebuggerDataBlock: 0x8040_0000n, NumberOfRuns: 0n });
});

t.test('runs: as many as there is room for, whatever is claimed', async (t) => {
  for (const bits of BITS) {
    const header = emptyWinDmpHeader(bits);
    const runs = [
      { BasePage: 0x100n, PageCount: 5n },
      { BasePage: 1n, PageCount: 3n },
    ];
    setWinDmpRuns(header, bits, runs);
    t.match(decodeWinDmpHeader(header, bits), { runs, NumberOfRuns: 2n, NumberOfPages: 8n });
    setWinDmpFields(header, bits, { NumberOfRuns: 0xffff_ffffn });
    t.equal(decodeWinDmpHeader(header, bits).runs.length, bits === 64 ? 43 : 86);
  }
});

t.test('exception parameters: as many as there are', async (t) => {
  for (const bits of BITS) {
    const header = emptyWinDmpHeader(bits);
    setWinDmpFields(header, bits, { NumberParameters: 2n });
    t.equal(decodeWinDmpHeader(header, bits).ExceptionInformation.length, 2);
    setWinDmpFields(header, bits, { NumberParameters: 16n });
    t.equal(decodeWinDmpHeader(header, bits).ExceptionInformation.length, 0);
  }
});

t.test('bugcheck data: 0 becomes a live dump, by the low half of the code alone', async (t) => {
  for (const [code, expected] of [
    [0n, 0x161n],
    [0x1en, 0x1en],
    [0x9999_9999_0000_0000n, 0x161n],
  ] as const) {
    const data = new Uint8Array(40);
    new DataView(data.buffer).setBigUint64(0, code, true);
    const header = emptyWinDmpHeader(64);
    setBugcheckData(header, 64, data);
    t.equal(decodeWinDmpHeader(header, 64).BugcheckCode, expected);
    t.equal(new DataView(header.buffer).getUint32(0x3c, true), Number(code >> 32n), 'the upper half is as it was');
  }
});

t.test('contexts: what is encoded is decoded', async (t) => {
  for (const bits of BITS) {
    const cpu = cpuOf(bits, 3);
    const context = encodeWinContext(cpu, bits);
    t.equal(context.length, CONTEXT_SIZE[bits]);
    const back = decodeWinContext(context, bits)!;
    t.match(back, {
      rax: cpu.rax,
      rsp: cpu.rsp,
      rip: cpu.rip,
      rflags: cpu.rflags,
      cs: { selector: cpu.cs.selector },
      longMode: bits === 64,
      debug: { dr0: cpu.debug!.dr0 & (bits === 64 ? ~0n : 0xffff_ffffn), dr7: 0x400n },
      system: null,
    });
    t.equal(back.mxcsr, bits === 64 ? 0x1fa0 : undefined);
    t.equal(new DataView(context.buffer).getUint32(bits === 64 ? 0x30 : 0, true), CONTEXT_FLAGS[bits]);
    t.same(encodeWinContext(back, bits), context, 'and encoded again the same');
    t.equal(decodeWinContext(context, bits === 64 ? 32 : 64), null, 'the other machine sees none in it');
  }
});

t.test('a CPU that does not tell has debug registers and MXCSR of a reset', async (t) => {
  const { debug: _, mxcsr: __, ...cpu } = cpuOf(64, 0);
  t.match(decodeWinContext(encodeWinContext(cpu, 64), 64), { debug: RESET_DEBUG, mxcsr: 0x1f80 });
});

t.test('any bytes decode to something', async () => {
  fc.assert(
    fc.property(fc.constantFrom(...BITS), fc.infiniteStream(fc.nat(255)), (bits, stream) => {
      const bytes = Uint8Array.from({ length: WIN_DMP_HEADER_SIZE[bits] }, () => stream.next().value as number);
      decodeWinDmpHeader(bytes, bits);
      decodeWinContext(bytes, bits);
    }),
    { numRuns: 30 },
  );
});
