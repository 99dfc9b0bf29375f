/**
 * Bundles the command line into dist/cli/: Node takes longer to find, load and compile the modules of yargs, streamx and
 * our own than a gigabyte of guest memory takes to be read. Programs import dist/lib/, where nothing is bundled.
 *
 *   cli.js            starts command.js, from command.cache (lib/cli/start.ts)
 *   command.js        the command line with all that it imports
 *   command.cache     what V8 has compiled of it
 *   wasm-worker.js    the compressor threads
 *
 * These are CommonJS, which Node starts faster than ES modules.
 */

import { spawnSync } from 'node:child_process';
import { chmodSync, copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { build, type Plugin } from 'esbuild-wasm';

const OUT = 'dist/cli';

/**
 * yargs measures text to lay out help, and no other time, but what it measures with takes 30 ms to get its Unicode tables
 * ready when it is loaded: so it is loaded when text is first measured.
 */
const LAZY_STRING_WIDTH: Plugin = {
  name: 'lazy string-width',
  setup(build) {
    const namespace = 'lazy';
    build.onResolve({ filter: /^string-width$/, namespace: 'file' }, ({ path, kind }) =>
      // cli-progress, which has an older one that loads quickly, has it by require().
      kind === 'import-statement' ? { path, namespace } : undefined,
    );
    build.onLoad({ filter: /^string-width$/, namespace }, ({ path }) => ({
      contents: `let measure; export default (...args) => (measure ??= require('${path}').default)(...args);`,
      resolveDir: resolve('node_modules/yargs'),
    }));
  },
};

/** What was compiled for an older bundle must not run with a new one: all goes. */
rmSync(OUT, { recursive: true, force: true });
await build({
  entryPoints: {
    cli: 'dist/lib/cli/start.js',
    command: 'dist/lib/cli.js',
    'wasm-worker': 'dist/lib/codecs/wasm-worker.js',
  },
  outdir: OUT,
  bundle: true,
  platform: 'node',
  format: 'cjs',
  target: 'node20',
  // Names stay as they are, for the stacks of VMCORE_DEBUG.
  minifySyntax: true,
  minifyWhitespace: true,
  external: ['koffi'],
  plugins: [LAZY_STRING_WIDTH],
  define: { 'import.meta.url': 'bundleUrl' },
  banner: { js: `const bundleUrl = require('node:url').pathToFileURL(__filename).href;` },
  logLevel: 'warning',
});
writeFileSync(`${OUT}/package.json`, '{ "type": "commonjs" }\n');
copyFileSync('dist/lib/wasm/encoder.wasm', `${OUT}/encoder.wasm`);
chmodSync(`${OUT}/cli.js`, 0o755);
keepCode();

/** Makes a dump, and keeps what was compiled for it. */
function keepCode(): void {
  const folder = mkdtempSync(join(tmpdir(), 'vmcore-bundle-'));
  const dump = ['dump', 'demo:', '-f', 'kdump-raw-lzo', '-o', join(folder, 'vmcore')];
  const { status, stderr } = spawnSync(process.execPath, [`${OUT}/cli.js`, ...dump], {
    env: { ...process.env, VMCORE_KEEP_CODE: '1' },
    encoding: 'utf8',
  });
  rmSync(folder, { recursive: true });
  if (status !== 0) throw new Error(`the bundle cannot dump the demo guest: ${stderr}`);
}
