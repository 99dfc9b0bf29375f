/** What QEMU says of its commands, with the formats that dumps through the proxy can have. */

import { FORMATS } from '../../request.js';
import type { Json, JsonObject } from '../protocol/json-parser.js';

/** Names of types mean nothing: DumpGuestMemoryFormat is known by a value that every QEMU of it has, and no other type. */
const KNOWN_FORMAT = 'kdump-zlib';

/** @param schema what QEMU answers to `query-qmp-schema` */
export function withAllFormats(schema: Json): Json {
  if (!Array.isArray(schema)) return schema;
  return schema.map((entry: Json) => (isFormatType(entry) ? describeFormats(entry) : entry));
}

function isFormatType(entry: Json): entry is JsonObject {
  const values = entry instanceof Map ? (entry as JsonObject).get('values') : undefined;
  return Array.isArray(values) && values.includes(KNOWN_FORMAT);
}

/** QEMU before 7.0 has values only. */
function describeFormats(entry: JsonObject): JsonObject {
  const described = new Map(entry).set('values', FORMATS);
  if (entry.has('members'))
    described.set(
      'members',
      FORMATS.map((name) => new Map([['name', name]])),
    );
  return described;
}
