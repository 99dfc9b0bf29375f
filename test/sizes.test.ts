import fc from 'fast-check';
import t from 'tap';
import { VmcoreError } from '../lib/model/errors.js';
import { formatSize, parseAddress, parseInteger, parseSize, sizeArgument } from '../lib/model/sizes.js';

t.test('sizes as people write them', async (t) => {
  const sizes: [string, number][] = [
    ['0', 0],
    ['4096', 4096],
    ['0x1000', 4096],
    ['0XfF', 255],
    ['64K', 65536],
    ['64k', 65536],
    ['64KiB', 65536],
    ['0x10M', 16 * 2 ** 20],
    ['2G', 2 ** 31],
    [' 1T\n', 2 ** 40],
    ['7P', 7 * 2 ** 50],
    ['9007199254740991', Number.MAX_SAFE_INTEGER],
  ];
  for (const [text, bytes] of sizes) t.equal(parseSize(text, '--size'), bytes, text);
  t.equal(parseAddress('4G', '--begin'), 2 ** 32);
  t.equal(parseAddress('0x100000000', '--begin'), 2 ** 32);
});

t.test('what is no size is refused in one line that quotes it', async (t) => {
  for (const text of ['', ' ', '-1', '1.5G', '1e3', '64KB', 'G', '0x', '12 34', '8P', '9007199254740992', '1\n2', '٣'])
    t.throws(
      () => parseSize(text, '--below-4g'),
      { code: 'USAGE', message: /^--below-4g: "[^\n]*" is not a size/ },
      text,
    );
  t.throws(() => parseSize('x'), { code: 'USAGE', message: /^"x" is not a size/ });
  t.throws(() => parseAddress('x', '--begin'), { code: 'USAGE', message: /^--begin: "x" is not an address/ });
});

t.test('integers without units', async (t) => {
  t.equal(parseInteger('0xffffffffffff'), 0xffff_ffff_ffff);
  t.equal(parseInteger('10'), 10);
  for (const text of ['', '-1', '64K', '1.0', '0x20000000000000', '1'.repeat(1000)]) t.equal(parseInteger(text), null);
});

t.test('sizes for people', async (t) => {
  const sizes: [number, string][] = [
    [0, '0 bytes'],
    [1, '1 byte'],
    [1023, '1023 bytes'],
    [1024, '1 KiB'],
    [0.4, '0 bytes'],
    [1_048_000, '0.999 MiB'],
    [268_435_456, '256 MiB'],
    [2816 * 2 ** 20, '2.75 GiB'],
    [4096 * 124_576, '487 MiB'],
    [2 ** 52, '4 PiB'],
    [2 ** 63, '8190 PiB'],
  ];
  for (const [bytes, text] of sizes) t.equal(formatSize(bytes), text);
});

t.test('a printed argument is read back exactly', async () => {
  fc.assert(fc.property(fc.maxSafeNat(), (bytes) => parseSize(sizeArgument(bytes)) === bytes));
  fc.assert(
    fc.property(fc.nat(1 << 22), fc.integer({ min: 0, max: 30 }), (count, power) => {
      const bytes = count * 2 ** power;
      return parseSize(sizeArgument(bytes)) === bytes;
    }),
  );
});

t.test('no text throws anything but a VmcoreError', async () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.string({ unit: fc.constantFrom(...'0x19afKMGTPiB. -') })), (text) => {
      try {
        return Number.isSafeInteger(parseSize(text, 'it'));
      } catch (error) {
        return error instanceof VmcoreError && !error.message.includes('\n');
      }
    }),
  );
});
