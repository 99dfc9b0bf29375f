/** Paths that stand for descriptors which the process has open already. */

const STANDARD: readonly string[] = ['/dev/stdin', '/dev/stdout', '/dev/stderr'];

/**
 * The descriptor that a path stands for; null for any other path. To open such a path is to open the file again, which
 * a process that has dropped privileges may not be allowed to: what it was handed is open all the same.
 */
export function ownDescriptor(path: string): number | null {
  const standard = STANDARD.indexOf(path);
  if (standard >= 0) return standard;
  const [, number] = /^\/(?:dev|proc\/self)\/fd\/(\d+)$/.exec(path) ?? [];
  return number === undefined ? null : Number(number);
}
