/**
 * Bundles the command line into dist/cli/: Node takes longer to find and load the modules of yargs, streamx and our
 * own than a gigabyte of guest memory takes to be read. Programs import dist/lib/, where nothing is bundled.
 */

import { chmodSync, copyFileSync, rmSync } from 'node:fs';
import { build } from 'esbuild-wasm';

const OUT = 'dist/cli';

/** Packages that were written for require() have it in a module that has none. */
const REQUIRE = [
  `import { createRequire as requireOfBundle } from 'node:module';`,
  `const require = requireOfBundle(import.meta.url);`,
].join('');

rmSync(OUT, { recursive: true, force: true });
await build({
  entryPoints: ['dist/lib/cli.js', 'dist/lib/codecs/kernel-worker.js'],
  outdir: OUT,
  entryNames: '[name]',
  bundle: true,
  splitting: true,
  platform: 'node',
  format: 'esm',
  target: 'node20',
  // Names stay as they are, for the stacks of VMCORE_DEBUG.
  minifySyntax: true,
  minifyWhitespace: true,
  external: ['koffi'],
  banner: { js: REQUIRE },
  logLevel: 'warning',
});
copyFileSync('dist/lib/kernel/kernel.wasm', `${OUT}/kernel.wasm`);
chmodSync(`${OUT}/cli.js`, 0o755);
