/** Downloads the packages of other Debians that tests use, which else the first test does that needs them. */
import { i386Makedumpfile } from './bookworm-i386.js';
import { debianKernel, KERNEL_NAMES } from './debian-kernel.js';
import { forkyMakedumpfile } from './forky.js';
import { trixie } from './trixie.js';

console.log({ ...(await trixie()), forky: await forkyMakedumpfile(), i386: await i386Makedumpfile() });
for (const name of KERNEL_NAMES) console.log(name, (await debianKernel(name)).release);
