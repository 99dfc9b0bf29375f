/**
 * Live guests for the tests of the live source: Linux in every QEMU that is at hand, with two more monitors: one that is
 * ours to dump over, and one that the test watches the machine through (the first is the harness's own).
 */

import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import { dump } from '../../lib/dump.js';
import type { LiveReport } from '../../lib/model/guest.js';
import type { DumpRequest } from '../../lib/request.js';
import { openGuest, type OpenGuestOptions } from '../../lib/open-guest.js';
import { bootLinux, linuxKernel, missingForLinux } from '../guests/linux.js';
import { cacheFolder } from '../guests/places.js';
import { Qemu, type QemuOptions, roomyFolder } from '../guests/qemu.js';
import { needsTrixie, trixie } from '../guests/trixie.js';
import { bootWindows, type WindowsGuestName } from '../guests/windows.js';
import { hasTool, PYTHON, skipUnless } from '../tools.js';

export const MIB = 2 ** 20;
const MEMORY = 256 * MIB;

/** Programs that read dumps, of the same Debian as a QEMU. */
export interface ReaderPrograms {
  readonly makedumpfile: string;
  readonly python: string;
  /** whether its libkdumpfile knows makedumpfile's flattened format, as that of Debian 12 does not */
  readonly readsFlattened: boolean;
}

/** A QEMU that the tests run with. */
export interface LiveQemu {
  readonly name: string;
  /** the skip of its tests */
  readonly skip: string | false;
  /** for QemuOptions; undefined is the machine's */
  binary(): Promise<string | undefined>;
  readers(): Promise<ReaderPrograms>;
}

const OWN_READERS: ReaderPrograms = { makedumpfile: 'makedumpfile', python: PYTHON, readsFlattened: false };

/** All QEMUs that the tests of the live source run with. */
export async function liveQemus(): Promise<LiveQemu[]> {
  const missing = [...(hasTool('qemu-system-x86_64') ? [] : ['qemu-system-x86_64']), ...missingForLinux(cacheFolder())];
  const skip = skipUnless(missing);
  return [
    { name: `QEMU ${ownVersion()}`, skip, binary: async () => undefined, readers: async () => OWN_READERS },
    {
      name: 'QEMU of trixie',
      skip: skip || (await needsTrixie()),
      binary: async () => (await trixie()).qemu,
      readers: async () => ({ ...(await trixie()), readsFlattened: true }),
    },
  ];
}

function ownVersion(): string {
  const { stdout } = spawnSync('qemu-system-x86_64', ['--version'], { encoding: 'utf8' });
  return /version ([0-9]+\.[0-9]+)/.exec(stdout ?? '')?.[1] ?? 'of the machine';
}

/** A running guest, and where to reach it. */
export interface LiveGuest {
  readonly qemu: Qemu;
  /** a folder for what the test makes, in memory where there is room */
  readonly folder: string;
  /** a monitor that nobody is connected to */
  readonly socket: string;
  /** `qmp:` and that monitor */
  readonly source: string;
  /** `running` or `paused`, as QEMU says through the harness's monitor */
  status(): Promise<string>;
  /** 512-byte blocks that the memory file has allocated */
  allocated(): number;
}

/** The machine unless a test says otherwise. */
const MACHINE = { machine: 'pc', memory: MEMORY, cpus: 2, cpu: 'max,la57=off' } satisfies QemuOptions;

/** Boots Linux, paused, and ends it with the test. */
export async function bootLive(t: Test, { binary }: LiveQemu, options: Partial<QemuOptions> = {}): Promise<LiveGuest> {
  const kernel = await linuxKernel(cacheFolder());
  const withNote = { ...options, args: ['-device', 'vmcoreinfo', ...(options.args ?? [])] };
  return start(t, await binary(), withNote, (all) => bootLinux(kernel, { ...MACHINE, ...all }));
}

/** Starts a machine that has nothing to boot from, and runs its firmware. */
export async function launchLive(
  t: Test,
  { binary }: LiveQemu,
  options: Partial<QemuOptions> = {},
): Promise<LiveGuest> {
  return start(t, await binary(), options, (all) => Qemu.launch({ ...MACHINE, ...all }));
}

/** Boots a guest that looks like Windows to a dumper. It is not paused. */
export async function bootLiveWindows(t: Test, { binary }: LiveQemu, name: WindowsGuestName): Promise<LiveGuest> {
  return start(t, await binary(), {}, (all) => bootWindows(name, all.base!, all));
}

async function start(
  t: Test,
  binary: string | undefined,
  options: Partial<QemuOptions>,
  launch: (options: Partial<QemuOptions>) => Promise<Qemu>,
): Promise<LiveGuest> {
  const folder = mkdtempSync(join(roomyFolder(Math.max(2 ** 31, options.memory ?? 0)), 'vmcore-live-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const socket = join(folder, 'qmp');
  const qemu = await launch({
    base: folder,
    ...(binary === undefined ? {} : { binary }),
    ...options,
    args: ['-qmp', `unix:${socket},server=on,wait=off`, ...(options.args ?? [])],
  });
  t.teardown(() => qemu.kill());
  return {
    qemu,
    folder,
    socket,
    source: `qmp:${socket}`,
    status: async () => (await qemu.execute<{ status: string }>('query-status')).status,
    allocated: () => statSync(qemu.ramFile).blocks,
  };
}

/**
 * Dumps a live machine.
 * @returns how it was read
 */
export async function dumpLive(
  { source }: LiveGuest,
  options: OpenGuestOptions,
  request: DumpRequest,
  file: string,
): Promise<LiveReport> {
  const guest = await openGuest(source, options);
  try {
    await dump(guest, request, { file }).finished;
    return guest.live!.report;
  } finally {
    await guest.live!.release();
    guest.close();
  }
}
