/**
 * Decompresses one page of a kdump, whichever way it was compressed. What comes out has to be a page exactly: no page
 * can be made to take more memory than that.
 */

import { createRequire } from 'node:module';
import * as zlib from 'node:zlib';
import {
  DUMP_DH_COMPRESSED_LZO,
  DUMP_DH_COMPRESSED_SNAPPY,
  DUMP_DH_COMPRESSED_ZLIB,
  DUMP_DH_COMPRESSED_ZSTD,
} from './kdump.js';
import { decompressLzo1x } from './lzo1x.js';
import { decompressSnappy } from './snappy.js';

/**
 * Decompresses a page.
 * @param input  all of the page's bytes in the file
 * @param into   the page
 * @returns whether `input` was sound and filled `into` exactly
 */
export type PageDecoder = (input: Uint8Array, into: Uint8Array) => boolean;

/** The decoder for the flags of a page descriptor; null for flags that are none or more than one codec. */
export function pageDecoder(flags: number): PageDecoder | null {
  switch (flags) {
    case DUMP_DH_COMPRESSED_ZLIB:
      return decompressZlib;
    case DUMP_DH_COMPRESSED_LZO:
      return decompressLzo1x;
    case DUMP_DH_COMPRESSED_SNAPPY:
      return decompressSnappy;
    case DUMP_DH_COMPRESSED_ZSTD:
      return zstd();
    default:
      return null;
  }
}

/** Whether pages with these flags could be read if a package or a newer Node were there. */
export function lacksDecoder(flags: number): boolean {
  return flags === DUMP_DH_COMPRESSED_ZSTD && zstd() === null;
}

function decompressZlib(input: Uint8Array, into: Uint8Array): boolean {
  return takeOutput(into, () => zlib.inflateSync(input, { maxOutputLength: into.length, chunkSize: into.length }));
}

/** Runs a decoder that throws on bad input, and copies what it returns. */
function takeOutput(into: Uint8Array, decode: () => Uint8Array): boolean {
  try {
    const page = decode();
    if (page.length !== into.length) return false;
    into.set(page);
    return true;
  } catch {
    return false;
  }
}

type ZstdSync = (input: Uint8Array, options: { maxOutputLength: number }) => Uint8Array;

let zstdDecoder: PageDecoder | null | undefined;

/** Node has zstd from 22.15 on; before, the package fzstd does it, when it is installed. */
function zstd(): PageDecoder | null {
  zstdDecoder ??= nativeZstd() ?? portableZstd();
  return zstdDecoder;
}

function nativeZstd(): PageDecoder | null {
  const decompress = (zlib as { zstdDecompressSync?: ZstdSync }).zstdDecompressSync;
  if (!decompress) return null;
  return (input, into) => takeOutput(into, () => decompress(input, { maxOutputLength: into.length }));
}

function portableZstd(): PageDecoder | null {
  try {
    const { decompress } = createRequire(import.meta.url)('fzstd') as {
      decompress(input: Uint8Array, into: Uint8Array): Uint8Array;
    };
    // Given a buffer, it writes nothing beyond it and allocates no window of the size that a frame claims.
    return (input, into) => takeOutput(into, () => decompress(input, new Uint8Array(into.length)));
  } catch {
    return null;
  }
}
