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
} from '../formats/kdump.js';
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
  return (input, into) =>
    zstdContentSize(input) === into.length &&
    takeOutput(into, () => decompress(input, { maxOutputLength: into.length }));
}

function portableZstd(): PageDecoder | null {
  try {
    const { decompress } = createRequire(import.meta.url)('fzstd') as {
      decompress(input: Uint8Array, into: Uint8Array): Uint8Array;
    };
    // Without a buffer of ours it would allocate what the frame claims, and with one it cuts what is too long.
    return (input, into) =>
      zstdContentSize(input) === into.length && takeOutput(into, () => decompress(input, new Uint8Array(into.length)));
  } catch {
    return null;
  }
}

/** Magic number of a Zstandard frame (RFC 8878, 3.1.1), as it stands in the file */
const ZSTD_MAGIC = [0x28, 0xb5, 0x2f, 0xfd] as const;
/** Bytes of Dictionary_ID and of Frame_Content_Size, by their flags in the frame header descriptor */
const DICTIONARY_ID_SIZES = [0, 1, 2, 4] as const;
const CONTENT_SIZE_SIZES = [0, 2, 4, 8] as const;
/** Single_Segment_flag: there is no Window_Descriptor, and always a Frame_Content_Size */
const SINGLE_SEGMENT = 1 << 5;

/** Frame_Content_Size of a Zstandard frame, which makedumpfile always writes; null when it is not there. */
function zstdContentSize(input: Uint8Array): number | null {
  if (!ZSTD_MAGIC.every((byte, i) => input[i] === byte)) return null;
  const descriptor = input[4] ?? 0;
  const single = (descriptor & SINGLE_SEGMENT) !== 0;
  const size = CONTENT_SIZE_SIZES[descriptor >> 6]! || (single ? 1 : 0);
  const at = 5 + (single ? 0 : 1) + DICTIONARY_ID_SIZES[descriptor & 3]!;
  if (size === 0 || at + size > input.length) return null;
  let value = 0;
  for (let i = size - 1; i >= 0; i--) value = value * 256 + input[at + i]!;
  return size === 2 ? value + 256 : value;
}
