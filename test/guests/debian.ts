/**
 * Packages of a Debian release that this machine need not run: downloaded from the mirror that its apt uses, with an apt
 * configuration of our own, and unpacked beside the system. Nothing is installed, and it takes no rights.
 *
 * This is quicker and smaller than debootstrap: the lists of one release and the packages asked for, nothing else.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { hasTool } from '../tools.js';

export interface Debian {
  readonly release: 'bookworm' | 'trixie' | 'forky';
  readonly architecture: 'amd64' | 'i386';
}

/** Signs every release that is supported, also those that came after the machine's own. */
const KEYRINGS = ['/usr/share/keyrings/debian-archive-keyring.gpg', '/usr/share/keyrings/debian-archive-keyring.pgp'];
const TARGET_FIELDS = '$(ORIGIN) $(LABEL) $(COMPONENT) $(ARCHITECTURE) $(REPO_URI)';
const DEBIAN_TARGET = /^Debian Debian main amd64 (\S+)$/m;

/**
 * Where tests may be skipped, a machine without a network must find that out soon; where they may not, what is lost is
 * asked for again.
 */
const [DOWNLOAD_RETRIES, UPDATE_TRIES] = process.env['VMCORE_NO_SKIP'] ? [5, 3] : [2, 1];

/** What is missing to have packages of Debian; [] when nothing is, but for the network. */
export function missingForDebian(): string[] {
  const missing = ['apt-get', 'dpkg'].filter((tool) => !hasTool(tool));
  if (missing.length === 0 && mirror() === undefined) missing.push('a Debian mirror in the lists of apt');
  return missing;
}

/** The first mirror of Debian's own archive in apt's configuration. */
function mirror(): string | undefined {
  const args = ['indextargets', '--format', TARGET_FIELDS, 'Created-By: Packages'];
  return DEBIAN_TARGET.exec(spawnSync('apt-get', args, { encoding: 'utf8' }).stdout ?? '')?.[1];
}

/** An apt for one release, with its state in a folder of its own. */
export class DebianApt {
  readonly #folder: string;
  readonly #config: string;

  private constructor(folder: string) {
    this.#folder = folder;
    this.#config = join(folder, 'apt.conf');
  }

  /**
   * Fetches the lists of a release.
   * @param folder an empty one; the caller removes it
   */
  static open(debian: Debian, folder: string): DebianApt {
    const apt = new DebianApt(folder);
    apt.#configure(debian);
    apt.#update();
    return apt;
  }

  /** The package that a meta package stands for: its first dependency. */
  resolve(metaPackage: string): string {
    const name = /^ *Depends: (\S+)$/m.exec(this.#run('apt-cache', 'depends', metaPackage))?.[1];
    if (name === undefined) throw new Error(`${metaPackage} stands for no package`);
    return name;
  }

  /** Unpacks packages, and with `closure` all that they depend on, down to the C library, into one tree. */
  unpack(packages: readonly string[], tree: string, { closure }: { closure: boolean }): void {
    const archives = join(this.#folder, 'archives');
    if (closure) this.#run('apt-get', 'install', '--yes', '--no-install-recommends', '--download-only', ...packages);
    else this.#run('apt-get', 'download', ...packages);
    for (const name of readdirSync(archives))
      if (name.endsWith('.deb')) execFileSync('dpkg', ['-x', join(archives, name), tree]);
  }

  #configure({ release, architecture }: Debian): void {
    const keyring = KEYRINGS.find(existsSync);
    const options = [`arch=${architecture}`, ...(keyring ? [`signed-by=${keyring}`] : [])];
    for (const name of ['state/lists/partial', 'archives/partial'])
      mkdirSync(join(this.#folder, name), { recursive: true });
    const file = (name: string, text: string) => {
      writeFileSync(join(this.#folder, name), text);
      return join(this.#folder, name);
    };
    const settings = {
      'Dir::Etc::sourcelist': file('sources.list', `deb [${options.join(' ')}] ${mirror()} ${release} main\n`),
      'APT::Architecture': architecture,
      'APT::Architectures': architecture,
      'Dir::Etc::sourceparts': '/dev/null',
      'Dir::Etc::preferences': '/dev/null',
      'Dir::Etc::preferencesparts': '/dev/null',
      'Dir::State': join(this.#folder, 'state'),
      // As if nothing were installed.
      'Dir::State::status': file('status', ''),
      'Dir::Cache': this.#folder,
      'Acquire::Languages': 'none',
      'Acquire::Retries': `${DOWNLOAD_RETRIES}`,
      'Acquire::http::Timeout': '20',
      'Acquire::https::Timeout': '20',
      // Of no use here, and its user may not write to our folder.
      'APT::Sandbox::User': 'root',
    };
    writeFileSync(
      this.#config,
      Object.entries(settings)
        .map(([name, value]) => `${name} "${value}";\n`)
        .join(''),
    );
  }

  /** A mirror that is just being brought up to date has lists that do not fit together, for a while. */
  #update(): void {
    for (let tries = 1; ; tries++) {
      try {
        this.#run('apt-get', 'update');
        return;
      } catch (error) {
        if (tries === UPDATE_TRIES) throw error;
        execFileSync('sleep', ['15']);
      }
    }
  }

  /** @throws Error with what apt complained about first */
  #run(tool: 'apt-get' | 'apt-cache', ...args: readonly string[]): string {
    const run = spawnSync(tool, ['-q', '-c', this.#config, ...args], {
      cwd: join(this.#folder, 'archives'),
      encoding: 'utf8',
      maxBuffer: 2 ** 26,
    });
    const complaint = /^(?:E|Err|W):.*$/m.exec(run.stderr ?? '')?.[0];
    // Lists that cannot be fetched are a warning to `apt-get update`.
    if (run.status !== 0 || (args[0] === 'update' && complaint !== undefined))
      throw new Error(`${tool} ${args[0]}: ${complaint ?? run.error?.message ?? `status ${run.status}`}`);
    return run.stdout;
  }
}
