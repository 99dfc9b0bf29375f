/** Makes the oracle guests: all, or those named. `--prune` removes older versions from the cache first. */
import { GUEST_NAMES, type GuestName, missingTools, oracleGuest, prune } from './oracle.js';

const args = process.argv.slice(2);
const names = args.filter((arg) => !arg.startsWith('--'));
const unknown = names.filter((name) => !(GUEST_NAMES as string[]).includes(name));
if (unknown.length > 0) {
  console.error(`no such guest: ${unknown.join(', ')}; there are: ${GUEST_NAMES.join(', ')}`);
  process.exit(2);
}
if (args.includes('--prune')) prune();

let failed = false;
for (const name of names.length > 0 ? (names as GuestName[]) : GUEST_NAMES) {
  const missing = missingTools(name);
  if (missing.length > 0) {
    console.log(`${name}: not made, there is no ${missing.join(', ')}`);
    continue;
  }
  const start = performance.now();
  try {
    const { folder, manifest } = await oracleGuest(name);
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    const lost = manifest.registersLost.length > 0 ? `; not in registers.txt: ${manifest.registersLost.join(' ')}` : '';
    console.log(`${name}: ${seconds} s, ${folder}${lost}`);
  } catch (error) {
    failed = true;
    console.error(`${name}: ${error instanceof Error ? error.stack : error}`);
  }
}
process.exitCode = failed ? 1 : 0;
