/** The faults of one dump: which system calls fail, how, and at which of their calls. */

/** Whose files a fault is in. */
export type Side = 'source' | 'target';

/** What a dump has to do about a fault. `either`: it may get over it, or fail; what it made is whole, or not there. */
export type Expected = 'fails' | 'whole' | 'either';

/** A kind of system call: the calls of Linux that do it. */
const CALLS = {
  open: ['open', 'openat'],
  read: ['read', 'readv'],
  pread: ['pread64', 'preadv', 'preadv2'],
  write: ['write', 'writev'],
  pwrite: ['pwrite64', 'pwritev', 'pwritev2'],
  ftruncate: ['ftruncate'],
  fsync: ['fsync', 'fdatasync'],
  close: ['close'],
  name: ['link', 'linkat', 'rename', 'renameat', 'renameat2'],
  unlink: ['unlink', 'unlinkat'],
} as const;

export type Call = keyof typeof CALLS;
export const CALL_NAMES = Object.keys(CALLS) as Call[];

/** The calls of Linux. */
export function systemCalls(call: Call): readonly string[] {
  return CALLS[call];
}

/** A fault that strace makes. */
export interface Fault {
  readonly side: Side;
  readonly call: Call;
  /** an errno, or the signal that comes with the call */
  readonly error: string;
  /** the how-many-th call of a thread; the first is 1 */
  readonly when: number;
  /** all later calls fail as well: a disk stays full */
  readonly stays: boolean;
  /** `first`, `3 of 12`, `last` */
  readonly which: string;
  readonly expected: Expected;
}

/** Whether a fault is a signal that comes with a call. */
export function isSignal({ error }: Fault): boolean {
  return error.startsWith('SIG');
}

/** Errors by which a call fails for good. */
const LASTING: Readonly<Record<Side, Partial<Record<Call, readonly string[]>>>> = {
  source: { open: ['EIO'], read: ['EIO'], pread: ['EIO'], close: ['EIO'] },
  target: {
    open: ['ENOSPC', 'EDQUOT', 'EIO'],
    write: ['EPIPE', 'ENOSPC', 'EIO'],
    pwrite: ['ENOSPC', 'EIO', 'EDQUOT'],
    ftruncate: ['EIO', 'ENOSPC'],
    fsync: ['EIO', 'ENOSPC', 'EDQUOT'],
    close: ['EIO', 'ENOSPC', 'EDQUOT'],
    name: ['EIO', 'ENOSPC', 'EDQUOT'],
    unlink: ['EIO'],
  },
};

/** Errors that mean: try again. */
const PASSING: Partial<Record<Call, readonly string[]>> = {
  open: ['EINTR'],
  read: ['EINTR', 'EAGAIN'],
  pread: ['EINTR', 'EAGAIN'],
  write: ['EINTR', 'EAGAIN'],
  pwrite: ['EINTR', 'EAGAIN'],
  ftruncate: ['EINTR'],
  fsync: ['EINTR'],
  close: ['EINTR'],
};

/** How often a thread makes a call, at most, in a dump that nothing is done to. */
export type Counts = ReadonlyMap<Call, number>;

/** What a dump is like, as far as it matters for what a fault leads to. */
export interface Traits {
  /** the target is a file that gets its name when it is whole */
  readonly named: boolean;
  /** threads read the source, and what one of them cannot read is read once more by another */
  readonly readByThreads: boolean;
  /** some of the files of the source are small, and read at once by Node */
  readonly small: boolean;
  /** a machine that runs, whose memory is read in another way where the first does not do */
  readonly live: boolean;
}

/** What an error that stays has to lead to. */
function expectedOf(side: Side, call: Call, when: number, { named, readByThreads, live, small }: Traits): Expected {
  // What tidies up.
  if (call === 'unlink') return 'either';
  // Node fails when it reads a whole small file and cannot close it; what is read in parts by us has to be whole.
  if (side === 'source' && call === 'close') return small ? 'either' : 'whole';
  // What was written is somebody else's to close, and to keep.
  if (!named && (call === 'close' || call === 'fsync')) return 'either';
  if (side === 'source' && live && when === 1) return 'either';
  // strace counts the calls of each thread.
  return side === 'source' && call === 'pread' && readByThreads && when > 1 ? 'either' : 'fails';
}

/** The first call, some between, the last. */
export function sampleOf(count: number): number[] {
  const all = [1, Math.ceil(count / 4), Math.ceil(count / 2), Math.ceil((3 * count) / 4), count];
  return [...new Set(all)];
}

/** What to call the n-th of some calls. */
export function whichOf(when: number, count: number): string {
  if (when === 1) return count === 1 ? 'only' : 'first';
  return when === count ? `last (${count})` : `${when} of ${count}`;
}

/** All faults of one side of a dump. */
export function faultsOf(side: Side, counts: Counts, traits: Traits): Fault[] {
  return CALL_NAMES.flatMap((call) => callFaults(side, call, counts.get(call) ?? 0, traits));
}

function callFaults(side: Side, call: Call, count: number, traits: Traits): Fault[] {
  const errors = LASTING[side][call];
  if (!errors || count === 0) return [];
  const middle = Math.ceil(count / 2);
  const fault = (when: number, error: string, stays: boolean, expected: Expected): Fault => ({
    ...{ side, call, error, when, stays, expected },
    which: whichOf(when, count),
  });
  const lasting = (when: number, error: string) => fault(when, error, true, expectedOf(side, call, when, traits));
  return [
    ...sampleOf(count).map((when, i) => lasting(when, errors[i % errors.length]!)),
    // Each error at least once.
    ...errors.slice(sampleOf(count).length).map((error) => lasting(middle, error)),
    ...errors.slice(0, 1).map((error) => fault(middle, error, false, onceExpected(side, call, traits))),
    ...(PASSING[call] ?? []).map((error) => fault(middle, error, false, 'either')),
  ];
}

/** An error that comes once may be got over, but not one that says that bytes are lost. */
function onceExpected(side: Side, call: Call, { named }: Traits): Expected {
  return named && side === 'target' && (call === 'fsync' || call === 'close') ? 'fails' : 'either';
}

/** Calls that change what is there. */
const CHANGING: readonly Call[] = ['open', 'pwrite', 'write', 'ftruncate', 'fsync', 'name', 'unlink'];

/**
 * Signals that come while a file is made: Ctrl-C and SIGKILL.
 * @param every whether SIGKILL comes with each of the calls, and not only with a sample of them
 */
export function signalFaults(counts: Counts, every: boolean): Fault[] {
  return CHANGING.flatMap((call) => {
    const count = counts.get(call) ?? 0;
    if (count === 0) return [];
    const fault = (when: number, error: string): Fault => ({
      ...{ side: 'target', call, error, when, stays: false, expected: 'either' },
      which: whichOf(when, count),
    });
    const killed = every ? Array.from({ length: count }, (_, i) => i + 1) : sampleOf(count);
    return [...sampleOf(count).map((when) => fault(when, 'SIGINT')), ...killed.map((when) => fault(when, 'SIGKILL'))];
  });
}
