/** What one dump after the other is made with: sources, a folder for the target, a machine that runs. Lanes work side by side. */

import { join } from 'node:path';
import type { SourceName } from './axes.js';
import { LiveSource, type OpenSource, type SourceFiles } from './sources.js';
import { TargetFolder } from './targets.js';

export class Lane {
  readonly targets: TargetFolder;
  #live: Promise<LiveSource> | null = null;
  /** how often the machine that runs has become another one */
  renewals = 0;

  /** @param folder of its own */
  constructor(
    readonly folder: string,
    readonly files: SourceFiles,
  ) {
    this.targets = new TargetFolder(join(folder, 'out'));
  }

  /** Opens a source for one dump. */
  async open(name: SourceName): Promise<OpenSource> {
    if (name !== 'live-file' && name !== 'live-proc') return this.files.open(name);
    this.#live ??= LiveSource.boot(join(this.folder, 'live'));
    return (await this.#live).open(name);
  }

  /** A file that nobody else writes to. */
  path(name: string): string {
    return join(this.folder, name);
  }

  /** After a dump that did not end: what it has left of a machine is nothing for the next. */
  async renew(): Promise<void> {
    if (!this.#live) return;
    await this.close();
    this.renewals++;
  }

  async close(): Promise<void> {
    const live = this.#live;
    this.#live = null;
    await (await live)?.kill();
  }
}
