/** Progress on a terminal: a bar with rate and time left. Silent where nobody looks. */

import type { DumpJob } from '../dump.js';
import { formatSize } from '../model/sizes.js';

/** Draws at most this often, in frames a second: drawing must not cost what it measures. */
const FRAMES = 10;

/**
 * Shows the progress of a job on stderr.
 * @param show whether to; by default when stderr is a terminal
 * @returns ends the display
 */
export async function showProgress(job: DumpJob, show = process.stderr.isTTY === true): Promise<() => void> {
  if (!show) return () => {};
  const { SingleBar } = (await import('cli-progress')).default;
  const started = performance.now();
  const bar = new SingleBar({
    stream: process.stderr,
    fps: FRAMES,
    clearOnComplete: false,
    noTTYOutput: !process.stderr.isTTY,
    notTTYSchedule: 1000,
    barCompleteChar: '█',
    barIncompleteChar: '░',
    barsize: 30,
    format: '{bar} {percentage}%  {done} of {all}  {rate}/s  {left} left',
  });
  let drawing = false;
  const draw = () => {
    const { completed, total } = job.progress;
    if (total === 0) return;
    const seconds = (performance.now() - started) / 1000;
    const payload = {
      done: formatSize(completed),
      all: formatSize(total),
      rate: formatSize(completed / seconds),
      left: timeLeft(completed, total, seconds),
    };
    if (drawing) bar.update(completed, payload);
    else bar.start(total, completed, payload);
    drawing = true;
  };
  job.on('progress', draw);
  return () => {
    job.off('progress', draw);
    draw();
    if (drawing) bar.stop();
  };
}

function timeLeft(completed: number, total: number, seconds: number): string {
  if (completed === 0) return '?';
  const left = Math.ceil((seconds * (total - completed)) / completed);
  return left < 60 ? `${left}s` : `${Math.floor(left / 60)}m${String(left % 60).padStart(2, '0')}s`;
}
