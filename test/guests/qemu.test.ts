/** What the harness says of guests that go wrong. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { hasTool, skipUnless } from '../tools.js';
import { bootLinux, linuxKernel, missingForLinux } from './linux.js';
import { cacheFolder } from './places.js';

const missing = [...(hasTool('qemu-system-x86_64') ? [] : ['qemu-system-x86_64']), ...missingForLinux(cacheFolder())];

t.test('a guest that panics while it boots', { skip: skipUnless(missing) }, async (t) => {
  const kernel = await linuxKernel(cacheFolder());
  const initrd = join(t.testdir({}), 'none');
  writeFileSync(initrd, '');
  const booting = bootLinux({ ...kernel, initrd }, { machine: 'pc', memory: 128 << 20 });
  await t.rejects(booting, { message: /^the guest panicked: Kernel panic - not syncing: / });
});
