/**
 * What VMCOREINFO says of a kernel, asked for by those who cannot do without: what is missing is named.
 */

import { VmcoreError } from '../model/errors.js';
import type { Vmcoreinfo } from '../formats/vmcoreinfo.js';

/** The keys of VMCOREINFO, with an error that names the first one that is missing. */
export class KernelSymbols {
  /**
   * @param info  what the kernel says
   * @param guest name of the guest, for messages
   */
  constructor(
    readonly info: Vmcoreinfo,
    readonly guest: string,
  ) {}

  /** Bytes of a pointer or long. */
  get long(): 4 | 8 {
    return this.info.size('list_head') === 8n ? 4 : 8;
  }

  /** Virtual address of a symbol. @throws VmcoreError UNSUPPORTED when VMCOREINFO does not say */
  symbol(name: string): bigint {
    return this.info.symbol(name) ?? this.missing(`SYMBOL(${name})`);
  }

  /** A number that may be negative. @throws VmcoreError UNSUPPORTED when VMCOREINFO does not say */
  number(name: string): bigint {
    return this.info.number(name) ?? this.missing(`NUMBER(${name})`);
  }

  /** Number of a bit in a word of 64. @throws VmcoreError UNSUPPORTED, BAD_INPUT when it is none */
  bit(name: string): number {
    return this.#within(`NUMBER(${name})`, this.number(name), 0n, 63n);
  }

  /** Offset of a member in bytes. @throws VmcoreError UNSUPPORTED, BAD_INPUT when it is beyond any structure */
  offset(member: string): number {
    const value = this.info.offset(member) ?? this.missing(`OFFSET(${member})`);
    return this.#within(`OFFSET(${member})`, value, 0n, MAX_STRUCTURE);
  }

  /** Size of a type in bytes. @throws VmcoreError UNSUPPORTED, BAD_INPUT when no structure has it */
  size(type: string): number {
    return this.#within(`SIZE(${type})`, this.info.size(type) ?? this.missing(`SIZE(${type})`), 1n, MAX_STRUCTURE);
  }

  /** Number of elements of an array. @throws VmcoreError UNSUPPORTED, BAD_INPUT when it is not within `max` */
  length(array: string, max: number): number {
    const value = this.info.length(array) ?? this.missing(`LENGTH(${array})`);
    return this.#within(`LENGTH(${array})`, value, 1n, BigInt(max));
  }

  /** Refuses because of a key. @throws VmcoreError UNSUPPORTED */
  missing(key: string): never {
    throw new VmcoreError(
      'UNSUPPORTED',
      `${this.guest}: which pages can be left out is not known, VMCOREINFO of the guest has no ${key}; dump without a level above 1`,
    );
  }

  /** Refuses because of a value. @throws VmcoreError BAD_INPUT */
  implausible(key: string, value: bigint): never {
    throw new VmcoreError(
      'BAD_INPUT',
      `${this.guest}: VMCOREINFO of the guest has ${key}=${value}, which cannot be; dump without a level above 1`,
    );
  }

  #within(key: string, value: bigint, min: bigint, max: bigint): number {
    return value < min || value > max ? this.implausible(key, value) : Number(value);
  }
}

/** Larger than any structure of Linux; struct pglist_data of a large machine has some hundred KiB. */
const MAX_STRUCTURE = 1n << 26n;
