/**
 * How much memory the process may still take: no more than the machine has free, nor than any control group that it is in
 * (a container, a systemd unit) leaves it. A group's limit alone says nothing: others in it have used some of it.
 */

import { readFileSync } from 'node:fs';
import { freemem } from 'node:os';
import { dirname, join } from 'node:path';

/** Names of a group's files, by version (Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst). */
const VERSIONS = [
  {
    /** how /proc/self/cgroup names the hierarchy */
    line: /^0::(\/.*)$/m,
    root: 'sys/fs/cgroup',
    limit: 'memory.max',
    usage: 'memory.current',
    reclaimable: /^inactive_file (\d+)$/m,
  },
  {
    line: /^\d+:(?:[^:]*,)?memory(?:,[^:]*)?:(\/.*)$/m,
    root: 'sys/fs/cgroup/memory',
    limit: 'memory.limit_in_bytes',
    usage: 'memory.usage_in_bytes',
    reclaimable: /^total_inactive_file (\d+)$/m,
  },
] as const;

/**
 * Bytes of memory that are available.
 * @param root where /proc and /sys are found
 */
export function availableMemory(root = '/'): number {
  const groups = VERSIONS.flatMap((version) => {
    const [, path] = version.line.exec(textOf(join(root, 'proc/self/cgroup'))) ?? [];
    return path === undefined ? [] : ancestors(path).map((group) => leftIn(join(root, version.root, group), version));
  });
  return Math.min(freemem(), ...groups);
}

/** A group and all that it is in. In a container a group may not be found by its path, but as the root. */
function ancestors(path: string): string[] {
  return path === '/' ? [path] : [path, ...ancestors(dirname(path))];
}

/** What a group leaves: pages of files that nobody has used for a while are given up when memory is asked for. */
function leftIn(folder: string, { limit, usage, reclaimable }: (typeof VERSIONS)[number]): number {
  const [most, used] = [limit, usage].map((name) => Number.parseInt(textOf(join(folder, name)), 10));
  // No limit is the word `max`, or no file.
  if (Number.isNaN(most) || Number.isNaN(used)) return Number.POSITIVE_INFINITY;
  const [, inactive = '0'] = reclaimable.exec(textOf(join(folder, 'memory.stat'))) ?? [];
  return Math.max(0, most! - used! + Number(inactive));
}

function textOf(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
}
