/**
 * A parent process opens the target and hands the descriptor to `vmcore qmp`, drives it over stdin and stdout in the
 * words of QEMU's monitor, and shows how far it is, as a management program does with QEMU.
 *
 *   node dist/examples/qmp-parent.js OUTPUT
 */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { open } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { setInterval } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

interface Message {
  readonly return?: { readonly status?: string; readonly completed: number; readonly total: number };
  readonly error?: { readonly desc: string };
  readonly event?: string;
  readonly data?: { readonly result: { readonly status: string; readonly total: number }; readonly error?: string };
}

const target = await open(process.argv[2] ?? 'qmp-parent.vmcore', 'w', 0o600);
const cli = fileURLToPath(new URL('../cli/cli.js', import.meta.url));
const child = spawn(process.execPath, [cli, 'qmp', 'demo:256M', '--listen', 'stdio', '--add-fd', 'dump=3'], {
  stdio: ['pipe', 'pipe', 'inherit', target.fd],
});
await target.close();

let answered: (answer: Message) => void = () => {};
let ended: (event: Message) => void = () => {};
const completed = new Promise<Message>((resolve) => {
  ended = resolve;
});
createInterface(child.stdout!).on('line', (line) => {
  const message = JSON.parse(line) as Message;
  if (message.event === 'DUMP_COMPLETED') ended(message);
  else if (message.return || message.error) answered(message);
});

/** Sends a command and waits for its answer. */
async function execute(command: string, args: object = {}): Promise<Message> {
  const answer = new Promise<Message>((resolve) => {
    answered = resolve;
  });
  child.stdin!.write(`${JSON.stringify({ execute: command, arguments: args })}\n`);
  const { error, ...rest } = await answer;
  if (error) throw new Error(`${command}: ${error.desc}`);
  return rest;
}

await execute('qmp_capabilities');
await execute('dump-guest-memory', { paging: false, protocol: 'fd:dump', format: 'kdump-zlib', detach: true });
for await (const _ of setInterval(50)) {
  const { status, completed, total } = (await execute('query-dump')).return!;
  console.log(`${status}: ${Math.floor((100 * completed) / total)}%`);
  if (status !== 'active') break;
}
const { result, error } = (await completed).data!;
console.log(`DUMP_COMPLETED: ${result.status}, ${result.total} bytes of memory ${error ?? ''}`);
await Promise.all([once(child, 'exit'), execute('quit')]);
