/**
 * The size of a block device, which fstat(2) does not tell: found by reading, as a read behind the end gives nothing.
 * That needs no ioctl, which Node has not, and no /sys, which a container may not have.
 */

import { readSync } from 'node:fs';

/** Devices have whole sectors. */
const SECTOR_BYTES = 512;

/** Bytes of an open block device. @throws what read(2) fails with */
export function blockDeviceSize(fd: number): number {
  const sector = new Uint8Array(SECTOR_BYTES);
  const has = (index: number): boolean => readSync(fd, sector, 0, SECTOR_BYTES, index * SECTOR_BYTES) > 0;
  if (!has(0)) return 0;
  let [first, behind] = [0, 1];
  while (has(behind)) [first, behind] = [behind, behind * 2];
  while (behind - first > 1) {
    const middle = first + Math.floor((behind - first) / 2);
    if (has(middle)) first = middle;
    else behind = middle;
  }
  return behind * SECTOR_BYTES;
}
