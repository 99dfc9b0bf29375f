/** The package as others install it. */

import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { skipUnless } from './tools.js';

const { NODE_OPTIONS: _, ...env } = process.env;

interface PackageJson {
  readonly version: string;
  readonly dependencies: Readonly<Record<string, string>>;
  readonly devDependencies: Readonly<Record<string, string>>;
}
const manifest = JSON.parse(readFileSync('package.json', 'utf8')) as PackageJson;

/** Runs a program without what tap has node processes load; what it prints. */
function run(cwd: string, program: string, ...args: string[]): string {
  const options = { cwd, env, encoding: 'utf8' as const, maxBuffer: 1 << 26 };
  const { status, stdout, stderr } = spawnSync('env', ['-u', 'NODE_OPTIONS', program, ...args], options);
  if (status !== 0) throw new Error(`${program} ${args.join(' ')} ended with ${status}: ${stdout}${stderr}`);
  return stdout;
}

const npm = (cwd: string, ...args: string[]) => run(cwd, 'npm', '--no-audit', '--no-fund', '--no-progress', ...args);

/** Dependencies come from the registry. */
function registryAnswers(): boolean {
  const args = [
    '-u',
    'NODE_OPTIONS',
    'npm',
    'view',
    'streamx',
    'version',
    '--fetch-retries=3',
    '--fetch-retry-mintimeout=1000',
    '--fetch-retry-maxtimeout=5000',
    '--fetch-timeout=20000',
  ];
  return spawnSync('env', args, { env }).status === 0;
}

t.test('npx vmcore works in the checkout', async (t) => {
  t.equal(run('.', 'npx', '--no-install', 'vmcore', '--version'), `${manifest.version}\n`);
});

t.test('the package', { skip: skipUnless(registryAnswers() ? [] : ['the npm registry']) }, async (t) => {
  const folder = t.testdir({ pack: {}, prefix: {}, project: {} });
  // What `prepare` builds is there already, and other tests run from it.
  const packed = JSON.parse(npm('.', 'pack', '--ignore-scripts', '--json', '--pack-destination', join(folder, 'pack')));
  const [{ filename, files }] = packed as [{ filename: string; files: { path: string; mode: number }[] }];
  const tarball = join(folder, 'pack', filename);

  t.test('has what is needed, and nothing else', async (t) => {
    const paths = files.map(({ path }) => path);
    const besides = paths.filter((path) => !/^dist\/(cli|lib)\//.test(path)).sort();
    t.same(besides, [
      'ARCHITECTURE.md',
      'CHANGELOG.md',
      'LICENSE',
      'README.md',
      'guest-description.schema.json',
      'package.json',
    ]);
    for (const path of ['dist/cli/cli.js', 'dist/cli/encoder.wasm', 'dist/lib/index.js', 'dist/lib/index.d.ts'])
      t.ok(paths.includes(path), path);
    t.same(
      paths.filter((path) => /\btests?\b|fixture|bench|\.tsbuildinfo/.test(path)),
      [],
      'no tests',
    );
    t.ok(paths.every((path) => !path.endsWith('.ts') || path.endsWith('.d.ts')));
  });

  t.test('npm i -g gives a working vmcore', async (t) => {
    npm(folder, 'install', '-g', '--prefix', join(folder, 'prefix'), tarball);
    const vmcore = join(folder, 'prefix/bin/vmcore');
    t.equal(run(folder, vmcore, '--version'), `${manifest.version}\n`);
    const summary = JSON.parse(run(folder, vmcore, 'dump', 'demo:64M', '--paging', '-o', 'vmcore', '--json'));
    t.match(summary, { format: 'elf', output: 'vmcore' });
    t.match(run(folder, vmcore, 'inspect', 'vmcore'), /^vmcore: ELF64 core/);
    for (const codec of ['fast', 'portable']) {
      run(folder, vmcore, 'dump', 'vmcore', '-f', 'kdump-raw-lzo', '--codec', codec, '-o', codec);
      t.match(run(folder, vmcore, 'inspect', codec), /kdump/);
    }
  });

  t.test('an import type-checks, strictly, and runs', async (t) => {
    const project = join(folder, 'project');
    writeFileSync(join(project, 'package.json'), JSON.stringify({ name: 'project', private: true, type: 'module' }));
    const types = `@types/node@${manifest.devDependencies['@types/node']}`;
    npm(project, 'install', tarball, types);
    const typescript = join(process.cwd(), 'node_modules/typescript/bin/tsc');
    const compilerOptions = {
      strict: true,
      exactOptionalPropertyTypes: true,
      noUncheckedIndexedAccess: true,
      module: 'nodenext',
      target: 'es2023',
      types: ['node'],
      skipLibCheck: true,
    };
    writeFileSync(join(project, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: ['main.ts'] }));
    writeFileSync(
      join(project, 'main.ts'),
      `import { type DumpSummary, demoGuest, dump, type Guest, VmcoreError } from 'vmcore';
const guest: Guest = demoGuest({ memory: 64 << 20 });
const job = dump(guest, { paging: true }, { file: 'vmcore' });
let last = 0;
job.on('progress', ({ completed, total }) => { last = completed / total; });
const summary: DumpSummary = await job.finished;
try {
  await dump(guest, {}, { file: 'vmcore' }).finished;
} catch (error) {
  if (error instanceof VmcoreError) console.log(error.code, last, summary.pages.total);
}
`,
    );
    run(project, process.execPath, typescript, '-p', '.');
    t.equal(run(project, process.execPath, 'main.js'), `EXISTS 1 ${64 * 256 - 96}\n`);

    const wrong = `import { demoGuest, dump } from 'vmcore';\ndump(demoGuest(), { paging: 'yes' }, { file: 1 });\n`;
    writeFileSync(join(project, 'main.ts'), wrong);
    t.throws(() => run(project, process.execPath, typescript, '-p', '.'), /TS2322|TS2345|TS2769/, 'types are checked');

    // Our declarations without the leniency for libraries; what is wrong in those of others is not ours.
    writeFileSync(join(project, 'main.ts'), `export * from 'vmcore';\n`);
    const { stdout } = spawnSync(process.execPath, [typescript, '-p', '.', '--skipLibCheck', 'false'], {
      cwd: project,
      env,
      encoding: 'utf8',
    });
    t.same(
      stdout.split('\n').filter((line) => line.startsWith('node_modules/vmcore/')),
      [],
      'no error in our declarations',
    );

    t.equal(
      run(
        project,
        process.execPath,
        '-e',
        `console.log(JSON.parse(require('fs').readFileSync(require.resolve('vmcore/guest-description.schema.json'))).title)`,
      ),
      'Guest description of vmcore\n',
    );
  });
});
