/** A row of the table: what was done to which dump, what was expected, and what was seen. */

/** Where a row belongs. */
export interface RowName {
  readonly format: string;
  readonly target: string;
  readonly source: string;
  /** the system call, and how it failed; or what else was done */
  readonly fault: string;
  /** which of the calls */
  readonly which: string;
}

export interface Row extends RowName {
  readonly expected: string;
  readonly seen: string;
  /** what is not as it should be; empty when all is */
  readonly differences: readonly string[];
}

const COLUMNS = [
  ['format', 13],
  ['target', 6],
  ['source', 9],
  ['fault', 22],
  ['which', 14],
  ['expected', 15],
] as const;

/** The line over all rows. */
export function heading(): string {
  return `        ${COLUMNS.map(([name, width]) => name.padEnd(width)).join('  ')}  seen`;
}

/** A row as a line. */
export function rowText(row: Row): string {
  const cells = COLUMNS.map(([name, width]) => row[name].padEnd(width)).join('  ');
  const what = row.differences.length === 0 ? '' : `: ${row.differences.join('; ')}`;
  return `${row.differences.length === 0 ? 'right   ' : 'DIFFERS '}${cells}  ${row.seen}${what}`;
}
