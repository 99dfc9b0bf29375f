/** Where clients come from: a path, a socket that was handed over, stdin; and descriptors that were inherited. */

import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import t from 'tap';
import { checkFailure, runCli, startCli } from '../cli/run-cli.js';
import { shortFolder } from '../short-folder.js';
import { CLI, PYTHON } from '../tools.js';
import { eventually, TestServer, Wire } from './qmp-fixture.js';

/** A folder that goes with the test; its server has nothing to do with what is tested in it. */
async function folderOf(t: { teardown(work: () => Promise<void>): void }): Promise<string> {
  const server = await TestServer.start();
  t.teardown(() => server.stop());
  return server.folder;
}

const { NODE_OPTIONS: _, ...env } = process.env;

t.test('a path: private, removed at the end, not taken from others', async (t) => {
  const server = await TestServer.start();
  t.teardown(() => server.stop());
  t.equal(statSync(server.path).mode & 0o777, 0o600, 'mode 0600');
  t.same(server.files(), [], 'nothing else is made');
  const second = await runCli(['qmp', 'demo:64M', '--listen', `unix:${server.path}`]);
  t.equal(second.code, 1);
  t.match(second.stderr, /^vmcore: .* is in use: another process listens there\n$/);
  const file = join(server.folder, 'file');
  writeFileSync(file, '');
  t.match((await runCli(['qmp', 'demo:64M', '--listen', `unix:${file}`])).stderr, /exists, and is no socket/);
  symlinkSync('/nowhere', join(server.folder, 'link'));
  t.match((await runCli(['qmp', 'demo:64M', '--listen', `unix:${server.folder}/link`])).stderr, /is no socket/);
  t.match((await runCli(['qmp', 'demo:64M', '--listen', 'unix:/no/such/x'])).stderr, /^vmcore: cannot listen on/);
  t.equal((await runCli(['qmp', 'demo:64M', '--listen', 'tcp:1'])).code, 2, 'what is no address');
  t.equal((await runCli(['qmp', '-', '--listen', 'stdio'])).code, 2, 'stdin cannot be both');
  t.equal((await runCli(['qmp', 'demo:64M', '--listen', 'stdio', '--add-fd', '1=2'])).code, 2);
  const wire = await server.connect();
  await wire.execute('quit');
  t.equal(await server.exited, 0);
  t.notOk(existsSync(server.path), 'the socket is gone');
});

t.test('the longest path, and one that is too long', async (t) => {
  // The name under which the socket is made is longer than this one.
  const folder = folderOfLength(t, 105);
  const path = join(folder, 'q');
  const { child, ended } = startCli(['qmp', 'demo:64M', '--listen', `unix:${path}`]);
  t.teardown(() => child.kill());
  t.ok(await eventually(() => existsSync(path)));
  t.same(readdirSync(folder), ['q'], 'nothing else is made');
  t.equal(statSync(path).mode & 0o777, 0o600);
  const wire = await Wire.negotiated(path);
  await wire.execute('quit');
  t.equal((await ended).code, 0);
  t.same(readdirSync(folder), [], 'the socket is gone');

  const message = /qq is too long for the path of a socket: 108 bytes, and the system takes 107; [^\n]+\n$/;
  checkFailure(t, await runCli(['qmp', 'demo:64M', '--listen', `unix:${path}q`]), 2, message, '--listen');
  t.same(readdirSync(folder), [], 'and none by a part of its name');
  checkFailure(t, await runCli(['inspect', `qmp:${path}q`]), 2, message, 'qmp:');
});

/** A folder whose path has so many bytes. */
function folderOfLength(t: { teardown(work: () => void): void }, length: number): string {
  const above = shortFolder(t);
  const folder = join(above, 'f'.repeat(length - above.length - 1));
  mkdirSync(folder);
  return folder;
}

t.test('a stale socket is replaced', async (t) => {
  const server = await TestServer.start();
  server.child.kill('SIGKILL');
  await server.exited;
  t.ok(existsSync(server.path), 'it is still there');
  const child = spawn(process.execPath, [CLI, 'qmp', 'demo:64M', '--listen', `unix:${server.path}`], {
    env,
    stdio: 'ignore',
  });
  for (let wire: Wire | null = null; wire === null;) {
    wire = await Wire.negotiated(server.path).catch(() => null);
    await wire?.execute('quit');
    wire?.close();
  }
  const [code] = child.exitCode === null ? await once(child, 'exit') : [child.exitCode];
  t.equal(code, 0);
  await server.stop();
});

t.test('stdio: commands until the end of stdin', async (t) => {
  const folder = await folderOf(t);
  const target = openSync(join(folder, 'out'), 'w');
  const child = spawn(process.execPath, [CLI, 'qmp', 'demo:64M', '--listen', 'stdio', '--add-fd', 'dump=5'], {
    env,
    stdio: ['pipe', 'pipe', 'pipe', 'ignore', 'ignore', target],
  });
  closeSync(target);
  const output = text(child.stdout!);
  child.stdin!.end(
    `{"execute":"qmp_capabilities"}{"execute":"dump-guest-memory","arguments":{"paging":false,"protocol":"fd:dump"}}`,
  );
  const [[code], lines] = await Promise.all([once(child, 'exit'), output]);
  t.equal(code, 0);
  t.match(lines.trim().split('\r\n'), [/QMP/, /return/, /DUMP_COMPLETED.*completed/, /return/]);
  t.ok(statSync(join(folder, 'out')).size > 1 << 25, 'the inherited descriptor has the dump');
});

/** Hands a socket to `vmcore qmp`, and talks to it from the other side; prints what comes. */
const HAND_OVER = `
import os, socket, subprocess, sys, time
kind, cli, folder, address = sys.argv[1:5]
names = {}
if kind == 'pair':
    ours, theirs = socket.socketpair(socket.AF_UNIX)
else:
    theirs = socket.socket(socket.AF_UNIX)
    theirs.bind(folder + '/handed')
    theirs.listen()
def child():
    os.dup2(theirs.fileno(), 3)
    os.set_inheritable(3, True)
    if kind == 'systemd':
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='monitor')
    os.execvp('node', ['node', cli, 'qmp', 'demo:64M', '--listen', address])
os.environ.pop('NODE_OPTIONS', None)
pid = os.fork()
if pid == 0: child()
theirs.close() if kind == 'pair' else None
if kind != 'pair':
    ours = socket.socket(socket.AF_UNIX)
    ours.connect(folder + '/handed')
stream = ours.makefile('rb')
print(stream.readline().decode().strip())
fd = os.open(folder + '/' + kind, os.O_WRONLY | os.O_CREAT)
socket.send_fds(ours, [b'{"execute":"qmp_capabilities"}{"execute":"getfd","arguments":{"fdname":"d"}}'], [fd])
print(stream.readline().decode().strip())
print(stream.readline().decode().strip())
ours.sendall(b'{"execute":"dump-guest-memory","arguments":{"paging":false,"protocol":"fd:d"}}{"execute":"quit"}')
for i in range(3): print(stream.readline().decode().strip())
ours.close()
print('exit', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
`;

for (const [kind, address] of [
  ['pair', 'fd:3'],
  ['listening', 'fd:3'],
  ['systemd', 'fd:monitor'],
] as const)
  t.test(`a socket that was handed over: ${kind}`, async (t) => {
    const folder = await folderOf(t);
    const { stdout, stderr } = spawnSync(PYTHON, ['-c', HAND_OVER, kind, CLI, folder, address], {
      encoding: 'utf8',
      timeout: 20_000,
    });
    const lines = stdout.trim().split('\n');
    t.match(lines, [/QMP/, /return/, /"return"/, /DUMP_COMPLETED/, /"return"/, /"return"/, /^exit 0$/], stderr);
    t.ok(readFileSync(join(folder, kind)).length > 1 << 25, 'a descriptor came through it');
  });

t.test('what is no socket, or has no such name', async (t) => {
  const folder = await folderOf(t);
  const file = openSync(join(folder, 'file'), 'w');
  const result = await runCli(['qmp', 'demo:64M', '--listen', 'fd:3'], { stdio: ['ignore', 'pipe', 'pipe', file] });
  closeSync(file);
  t.match(result.stderr, /^vmcore: cannot listen on fd 3: it is no socket\n$/);
  t.match((await runCli(['qmp', 'demo:64M', '--listen', 'fd:77'])).stderr, /^vmcore: cannot listen on fd 77: /);
  t.match((await runCli(['qmp', 'demo:64M', '--listen', 'fd:x'])).stderr, /no descriptor named x was handed over/);
});
