/** Downloads the packages of other Debians that tests use, which else the first test does that needs them. */
import { i386Makedumpfile } from './bookworm-i386.js';
import { debianKernel } from './debian-kernel.js';
import { forkyMakedumpfile } from './forky.js';
import { trixie } from './trixie.js';

console.log({ ...(await trixie()), forky: await forkyMakedumpfile(), i386: await i386Makedumpfile() });
for (const name of ['6.1', '6.12', '6.1-686'] as const) console.log(name, (await debianKernel(name)).release);
