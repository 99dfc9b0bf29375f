/** Words of a command line, as they are handed to yargs. */

import t from 'tap';
import { getoptWords } from '../../lib/cli/words.js';
import { runCli } from './run-cli.js';

t.test('words that yargs would read in another way', async (t) => {
  const cases: [words: string[], put: string[]][] = [
    [[], []],
    [
      ['a', '-f', 'elf', '-o', '-', '--json', '-h'],
      ['a', '-f', 'elf', '-o', '-', '--json', '-h'],
    ],
    [
      ['-felf', '-o-', '-d31', '-o./x', '-oa=b', '-f=elf', '-o\n'],
      ['-f=elf', '-o=-', '-d=31', '-o=./x', '-o=a=b', '-f=elf', '-o=\n'],
    ],
    [
      ['-o', 'x', '--', '-w', '-', '--', ''],
      ['./-w', '-', './--', '', '-o', 'x'],
    ],
    [
      ['--add-fd', 'a=1', '--', 'demo:'],
      ['demo:', '--add-fd', 'a=1'],
    ],
    [
      ['-5', '--fd=-1'],
      ['-5', '--fd=-1'],
    ],
  ];
  for (const [words, put] of cases) t.same(getoptWords(words), put, words.join(' '));
});

t.test('no short option but -h is without a value', async (t) => {
  for (const command of ['dump', 'inspect', 'capture', 'qmp']) {
    const { stdout } = await runCli([command, '--help']);
    const booleans = stdout.toString().match(/^ +-\w, --.*\[boolean\]/gm) ?? [];
    t.ok(booleans.length === 1 && booleans[0].includes('-h, --help'), command);
  }
});
