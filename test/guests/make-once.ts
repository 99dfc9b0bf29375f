/** Folders that are made once, whoever asks: several processes may want the same at the same time. */
import { existsSync, linkSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isAlive } from './qemu.js';

const POLL_MS = 100;

/**
 * Has `make` fill an empty folder that becomes `folder` when it is whole. Where another process is at it, waits for that
 * one; where that one dies, takes over. Says whether it was made here and now.
 */
export async function makeOnce(folder: string, make: (into: string) => void | Promise<void>): Promise<boolean> {
  const lock = `${folder}.lock`;
  const temporary = `${folder}.tmp-${process.pid}`;
  mkdirSync(dirname(folder), { recursive: true });
  while (!existsSync(folder)) {
    if (!takeLock(lock)) {
      await sleep(POLL_MS);
      continue;
    }
    try {
      if (existsSync(folder)) return false;
      removeTemporaries(folder);
      mkdirSync(temporary);
      await make(temporary);
      renameSync(temporary, folder);
      return true;
    } finally {
      rmSync(temporary, { recursive: true, force: true });
      rmSync(lock, { force: true });
    }
  }
  return false;
}

/** Those of makers that were killed; whoever has the lock is the only one alive. */
function removeTemporaries(folder: string): void {
  for (const name of readdirSync(dirname(folder))) {
    if (name.startsWith(`${basename(folder)}.tmp-`))
      rmSync(join(dirname(folder), name), { recursive: true, force: true });
  }
}

/** The lock is a file with its owner's pid, linked into place so that it is never seen empty. */
function takeLock(lock: string): boolean {
  const mine = `${lock}-${process.pid}`;
  writeFileSync(mine, `${process.pid}`);
  try {
    linkSync(mine, lock);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    breakStaleLock(lock, mine);
    return false;
  } finally {
    rmSync(mine, { force: true });
  }
}

function breakStaleLock(lock: string, mine: string): void {
  const aside = `${mine}-stale`;
  try {
    const owner = Number(readFileSync(lock, 'latin1'));
    if (isAlive(owner)) return;
    renameSync(lock, aside);
    // Another may have broken it and taken it in between: then give it back.
    if (Number(readFileSync(aside, 'latin1')) !== owner) linkSync(aside, lock);
  } catch {
    // It went away by itself.
  } finally {
    rmSync(aside, { force: true });
  }
}
