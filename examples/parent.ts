/**
 * A parent process opens the target and hands the descriptor to `vmcore`, as libvirt does with QEMU: the child needs
 * no right to create files, and says at the end what it wrote.
 *
 *   node dist/examples/parent.js OUTPUT
 */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { open } from 'node:fs/promises';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';

const target = await open(process.argv[2] ?? 'parent.vmcore', 'w', 0o600);
const cli = fileURLToPath(new URL('../cli/cli.js', import.meta.url));
const child = spawn(process.execPath, [cli, 'dump', 'demo:64M', '--fd', '3', '--json'], {
  stdio: ['ignore', 'pipe', 'inherit', target.fd],
});
const [output, [exitCode]] = await Promise.all([text(child.stdout!), once(child, 'exit')]);
const { size } = await target.stat();
await target.close();

if (exitCode !== 0) throw new Error(`vmcore ended with exit code ${exitCode}`);
const { bytesWritten, seconds } = JSON.parse(output) as { bytesWritten: number; seconds: number };
console.log(`the child wrote ${bytesWritten} bytes in ${seconds.toFixed(2)} s; the file has ${size}`);
