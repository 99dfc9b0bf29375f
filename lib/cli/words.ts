/** The words of a command line, put so that yargs reads them as getopt(3) would. */

/**
 * A short option with its value in the same word: `-fVALUE`. All of our short options but `-h` take one. What has an
 * equals sign yargs reads itself.
 */
const SHORT_WITH_VALUE = /^(-[a-gi-zA-Z])([^=].*)$/s;

/**
 * Puts words so that yargs reads them as users mean them: `-fVALUE`, of which yargs would take each letter for an
 * option, is `-f=VALUE`; and what follows `--`, which yargs keeps from a command's positionals, comes first.
 * @param words those behind the name of the subcommand
 */
export function getoptWords(words: readonly string[]): string[] {
  const end = words.indexOf('--');
  const options = end < 0 ? words : words.slice(0, end);
  const operands = end < 0 ? [] : words.slice(end + 1);
  // In front they are not values of an option that takes a list.
  return [...operands.map(operand), ...options.map((word) => word.replace(SHORT_WITH_VALUE, '$1=$2'))];
}

/** A word that is no option, whatever it looks like: of what begins with a dash only files do, and they have a folder. */
function operand(word: string): string {
  return word.startsWith('-') && word !== '-' ? `./${word}` : word;
}
