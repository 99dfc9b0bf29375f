/** Writes guest-description.schema.json, the JSON Schema of guest descriptions, from the schema in the code. */

import { writeFileSync } from 'node:fs';
import { guestDescriptionJsonSchema } from '../lib/sources/description/guest-description.js';

// This file runs as dist/scripts/schema.js.
const TARGET = new URL('../../guest-description.schema.json', import.meta.url);

writeFileSync(TARGET, guestDescriptionJsonSchema());
