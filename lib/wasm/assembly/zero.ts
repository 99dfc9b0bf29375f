// Zero detection.
//
// Most memory of most guests is zero, and a page that is not differs from zero near its start more often than not. So
// the loop is as wide as pays while the page is zero, and leaves at the first 64 bytes that are not.

import { PAGE_BYTES } from './layout';

/** Whether a page holds nothing but zeros. */
export function isZeroPage(page: usize): bool {
  const end = page + PAGE_BYTES;
  do {
    const first = v128.or(v128.load(page), v128.load(page, 16));
    const second = v128.or(v128.load(page, 32), v128.load(page, 48));
    if (v128.any_true(v128.or(first, second))) return false;
    page += 64;
  } while (page < end);
  return true;
}
