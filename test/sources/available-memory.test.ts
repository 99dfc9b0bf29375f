/** What control groups leave, from files as Linux has them. */

import { mkdirSync, writeFileSync } from 'node:fs';
import { freemem } from 'node:os';
import { dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import { availableMemory } from '../../lib/io/available-memory.js';

/** Little enough for any machine to have it free. */
const LIMIT = 4_000_000;

function root(t: Test, files: Readonly<Record<string, string | number>>): string {
  const folder = t.testdir({});
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, name)), { recursive: true });
    writeFileSync(join(folder, name), `${text}\n`);
  }
  return folder;
}

t.test('no group, and no limit', async (t) => {
  const least = freemem() / 2;
  t.ok(availableMemory(root(t, {})) > least);
  const unlimited = {
    'proc/self/cgroup': '0::/unit',
    'sys/fs/cgroup/unit/memory.max': 'max',
    'sys/fs/cgroup/unit/memory.current': 1_000_000,
  };
  t.ok(availableMemory(root(t, unlimited)) > least);
});

t.test('what has been used of the limit is not available', async (t) => {
  const group = 'sys/fs/cgroup/unit/memory';
  const files = {
    'proc/self/cgroup': '0::/unit',
    [`${group}.max`]: LIMIT,
    [`${group}.current`]: 3_000_000,
    [`${group}.stat`]: 'anon 2000000\ninactive_file 500000\nactive_file 500000',
  };
  t.equal(availableMemory(root(t, files)), 1_500_000, 'but for what the system would give up');
  t.equal(availableMemory(root(t, { ...files, [`${group}.current`]: LIMIT + 900_000 })), 0, 'and never less than none');
});

t.test('the limit of a group that the group is in', async (t) => {
  const files = {
    'proc/self/cgroup': '0::/slice/unit',
    'sys/fs/cgroup/slice/unit/memory.max': 'max',
    'sys/fs/cgroup/slice/unit/memory.current': 500_000,
    'sys/fs/cgroup/slice/memory.max': LIMIT,
    'sys/fs/cgroup/slice/memory.current': 3_900_000,
  };
  t.equal(availableMemory(root(t, files)), 100_000);
});

t.test('groups of version 1, of a container that does not see its own path', async (t) => {
  const group = 'sys/fs/cgroup/memory/memory';
  const files = {
    'proc/self/cgroup': '9:name=systemd:/\n4:hugetlb,memory:/docker/abc\n3:cpuset:/\n0::/',
    [`${group}.limit_in_bytes`]: LIMIT,
    [`${group}.usage_in_bytes`]: 1_000_000,
    [`${group}.stat`]: 'inactive_file 7\ntotal_inactive_file 1000',
  };
  t.equal(availableMemory(root(t, files)), 3_001_000);
});
