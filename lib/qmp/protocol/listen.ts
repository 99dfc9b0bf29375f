/** Where clients come from: a UNIX socket of our own, one that was handed over, or stdin and stdout. */

import { randomBytes } from 'node:crypto';
import {
  closeSync,
  constants,
  linkSync,
  lstatSync,
  openSync,
  readFileSync,
  readlinkSync,
  type Stats,
  unlinkSync,
} from 'node:fs';
import { connect, createServer, type Server } from 'node:net';
import { basename, dirname, join } from 'node:path';
import { errnoOf, ioError, VmcoreError } from '../../model/errors.js';
import { type Connection, descriptorConnection, socketConnection, stdioConnection } from './connection.js';
import { checkSocketPath, fitsSocket } from './socket-path.js';

/** A place where clients come from. */
export interface Listener {
  /** settles when no more clients can come by themselves: the only one there can be is gone */
  readonly ended: Promise<void>;
  /** takes no more clients, and removes what `listen` made */
  close(): void;
}

type Serve = (connection: Connection) => Promise<void>;

/** Most clients at a time; more are turned away. */
const MAX_CLIENTS = 256;

/** Only its owner may connect to a socket of ours. */
const PRIVATE = 0o177;

/** First descriptor that systemd hands over (sd_listen_fds(3)). */
const FIRST_PASSED = 3;

const NEVER = new Promise<never>(() => {});

/** Begins to listen. @throws VmcoreError */
export async function listen(address: string, serve: Serve): Promise<Listener> {
  if (address === 'stdio') return serveOne(stdioConnection(), serve);
  const [, kind, rest = ''] = /^(unix|fd):(.+)$/s.exec(address) ?? [];
  if (kind === 'unix') return listenAt(rest, serve);
  if (kind === 'fd') return listenOn(passedDescriptor(rest), serve);
  throw new VmcoreError('USAGE', `--listen takes unix:PATH, stdio, fd:N or fd:NAME, not ${address}`);
}

function serveOne(connection: Connection, serve: Serve): Listener {
  return { ended: serve(connection), close: () => {} };
}

function newServer(serve: Serve): Server {
  const server = createServer({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => {
    void serve(socketConnection(socket));
  });
  server.maxConnections = MAX_CLIENTS;
  return server;
}

/**
 * The socket is made under another name, and linked to its own: a link never replaces what came into being in the
 * meantime, and libuv, which removes the name of its socket whatever that is by then, removes the other one.
 */
async function listenAt(path: string, serve: Serve): Promise<Listener> {
  checkSocketPath(path);
  await removeStale(path);
  const server = newServer(serve);
  const temporary = join(dirname(path), `.${randomBytes(4).toString('hex')}`);
  await start(server, `listen on ${path}`, () => listenPrivately(server, temporary));
  try {
    linkSync(temporary, path);
    unlinkSync(temporary);
  } catch (error) {
    server.close();
    throw ioError('WRITE', `listen on ${path}`, error);
  }
  const made = lstatSync(path);
  return { ended: NEVER, close: () => closeServer(server, path, made) };
}

/** The socket is made before this returns. The name of it may be longer than the one that was asked for, and not fit. */
function listenPrivately(server: Server, path: string): void {
  const folder = fitsSocket(path) ? null : openSync(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY);
  const mask = process.umask(PRIVATE);
  server.listen(folder === null ? path : `/proc/self/fd/${folder}/${basename(path)}`);
  process.umask(mask);
  if (folder !== null) closeSync(folder);
}

/** Removes the path, if it is still ours. What is left of it is stale, and is replaced by whoever listens there next. */
function closeServer(server: Server, path: string, made: Stats): void {
  server.close();
  try {
    const now = lstatSync(path, { throwIfNoEntry: false });
    if (now && now.ino === made.ino && now.dev === made.dev) unlinkSync(path);
  } catch {
    // Whoever closes has more to close.
  }
}

/** A socket that nobody listens to any more is replaced; everything else is refused. */
async function removeStale(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (!found) return;
  if (!found.isSocket()) throw new VmcoreError('EXISTS', `${path} exists, and is no socket`);
  if (await isLive(path)) throw new VmcoreError('EXISTS', `${path} is in use: another process listens there`);
  try {
    unlinkSync(path);
  } catch (error) {
    throw ioError('WRITE', `replace ${path}`, error);
  }
}

function isLive(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect(path);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', (error) => resolve(errnoOf(error) !== 'ECONNREFUSED'));
  });
}

async function listenOn(fd: number, serve: Serve): Promise<Listener> {
  const doing = `listen on fd ${fd}`;
  if (!isListening(fd, doing)) return serveOne(descriptorConnection(fd), serve);
  const server = newServer(serve);
  await start(server, doing, () => server.listen({ fd }));
  return { ended: NEVER, close: () => void server.close() };
}

function start(server: Server, doing: string, begin: () => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const fail = (error: unknown) => reject(ioError('READ', doing, error));
    server.once('error', fail);
    server.once('listening', resolve);
    try {
      begin();
    } catch (error) {
      fail(error);
    }
  });
}

/** The descriptor that is meant: a number, or a name that systemd gave one. */
function passedDescriptor(text: string): number {
  if (/^\d+$/.test(text)) return Number(text);
  const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES = '' } = process.env;
  const names = LISTEN_FDNAMES.split(':').slice(0, Number(LISTEN_FDS ?? 0));
  const index = LISTEN_PID === String(process.pid) ? names.indexOf(text) : -1;
  if (index < 0) throw new VmcoreError('USAGE', `no descriptor named ${text} was handed over (LISTEN_FDNAMES)`);
  return FIRST_PASSED + index;
}

/** Whether a socket waits for connections (or is one): column Flags of /proc/net/unix has __SO_ACCEPTCON. */
function isListening(fd: number, doing: string): boolean {
  const ACCEPTS = 0x10000;
  try {
    const inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/self/fd/${fd}`))?.[1];
    if (inode === undefined) throw new VmcoreError('READ', `cannot ${doing}: it is no socket`);
    const sockets = readFileSync('/proc/net/unix', 'latin1')
      .split('\n')
      .map((row) => row.trim().split(/\s+/));
    const row = sockets.find((fields) => fields[6] === inode);
    if (!row) throw new VmcoreError('READ', `cannot ${doing}: it is no UNIX socket`);
    return (Number.parseInt(row[3]!, 16) & ACCEPTS) !== 0;
  } catch (error) {
    throw ioError('READ', doing, error);
  }
}
