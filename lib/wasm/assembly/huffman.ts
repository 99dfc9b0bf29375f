// Canonical Huffman codes of limited length, built for every page.
//
// A page is small, so building its codes is a good part of compressing it, and everything here is made to touch only
// the symbols that occur:
//
// 1. gather the symbols used, each one word of count << 9 | symbol;
// 2. sort them by count: one bucket for each count below 63, which is nearly all of them, and an insertion sort for
//    the few above;
// 3. merge the two lightest nodes again and again. The sorted leaves are one queue, the inner nodes, made in order of
//    weight, the other. Which queue gives the lighter node cannot be predicted, so the loop selects instead of
//    branching. Only parents of inner nodes are kept;
// 4. going down from the root, count the inner nodes of each depth. A node has two children, and those that are not
//    inner nodes are leaves: that gives the number of codes of each length;
// 5. shorten what is too long: codes beyond the limit are cut to it, and as long as that is more than a binary tree
//    has room for, a shorter code gets a neighbour at the next length, which takes in one of those at the limit;
// 6. hand out the lengths, shortest to the most frequent, then the codes, in order of symbols as the format wants it.
//
// Deflate packs a code starting with its most significant bit into bytes that fill from their least significant one, so
// codes are kept with their bits reversed, in one word with the length: code << 8 | length.

import { HUFFMAN } from './layout';

const SYMBOL_BITS: u32 = 9;
const SYMBOL_MASK: u32 = (1 << SYMBOL_BITS) - 1;

/** Counts from here on share the last bucket. */
const BUCKETS: u32 = 64;

/** No tree is deeper: its weights grow like Fibonacci's numbers, and a page has 4097 symbols at most. */
const DEEPEST: u32 = 31;

/** A weight greater than any. */
const NO_NODE: u32 = 0xffffffff;

/** Codes are handed out as if all were this long, and reversed as such. */
const CODE_BITS: u32 = 16;

const USED: usize = HUFFMAN; // u32[320], in order of symbols
const SORTED: usize = USED + 4 * 320; // u32[320], in order of counts
const WEIGHTS: usize = SORTED + 4 * 320; // u32[320], of inner nodes
const PARENTS: usize = WEIGHTS + 4 * 320; // u32[320], of inner nodes: offset of the parent, later depth
const BUCKET_ENDS: usize = PARENTS + 4 * 320; // u32[64]
const INNER_NODES: usize = BUCKET_ENDS + 4 * BUCKETS; // u32[32], number at each depth
const LEAVES: usize = INNER_NODES + 4 * (DEEPEST + 1); // u32[32], number at each depth, later next code of each length

// @ts-ignore: decorator
@inline
function reverse(code: u32): u32 {
  code = ((code & 0x5555) << 1) | ((code >>> 1) & 0x5555);
  code = ((code & 0x3333) << 2) | ((code >>> 2) & 0x3333);
  code = ((code & 0x0f0f) << 4) | ((code >>> 4) & 0x0f0f);
  return ((code & 0x00ff) << 8) | (code >>> 8);
}

/**
 * Gathers the symbols used, and clears the codes of all. There are two at least afterwards: a code of one symbol
 * would be incomplete, which the format allows for distances only, and not every decoder likes.
 */
function gather(counts: usize, symbols: u32, codes: usize, scratch: usize): usize {
  const used = scratch + USED;
  let usedEnd = used;
  for (let symbol: u32 = 0; symbol < symbols; symbol++) {
    const count = load<u32>(counts + (symbol << 2));
    store<u32>(codes + (symbol << 2), 0);
    store<u32>(usedEnd, (count << SYMBOL_BITS) | symbol);
    usedEnd += count ? 4 : 0;
  }
  if (usedEnd < used + 8) {
    const symbol = usedEnd > used ? load<u32>(used) & SYMBOL_MASK : 0;
    store<u32>(used, 1 << SYMBOL_BITS);
    store<u32>(used, (1 << SYMBOL_BITS) | (symbol ? symbol : 1), 4);
    usedEnd = used + 8;
  }
  return usedEnd;
}

// @ts-ignore: decorator
@inline
function bucketOf(entry: u32, scratch: usize): usize {
  const count = entry >>> SYMBOL_BITS;
  const bucket = count < BUCKETS ? count : BUCKETS - 1;
  return scratch + BUCKET_ENDS + ((<usize>bucket) << 2);
}

function sortByCount(usedEnd: usize, scratch: usize): void {
  const used = scratch + USED;
  const sorted = scratch + SORTED;
  const buckets = scratch + BUCKET_ENDS;
  const lastBucket = buckets + 4 * (BUCKETS - 1);
  memory.fill(buckets, 0, 4 * BUCKETS);
  for (let p = used; p < usedEnd; p += 4) {
    const bucket = bucketOf(load<u32>(p), scratch);
    store<u32>(bucket, load<u32>(bucket) + 4);
  }
  let start = <u32>sorted;
  for (let bucket = buckets; bucket <= lastBucket; bucket += 4) {
    const bytes = load<u32>(bucket);
    store<u32>(bucket, start);
    start += bytes;
  }
  const frequent = <usize>load<u32>(lastBucket);
  for (let p = used; p < usedEnd; p += 4) {
    const entry = load<u32>(p);
    const bucket = bucketOf(entry, scratch);
    const to = load<u32>(bucket);
    store<u32>(to, entry);
    store<u32>(bucket, to + 4);
  }
  const sortedEnd = <usize>load<u32>(lastBucket);
  for (let p = frequent + 4; p < sortedEnd; p += 4) {
    const entry = load<u32>(p);
    let to = p;
    while (to > frequent && load<u32>(to - 4) > entry) {
      store<u32>(to, load<u32>(to - 4));
      to -= 4;
    }
    store<u32>(to, entry);
  }
  store<u32>(sortedEnd, NO_NODE);
}

/** Merges `leaves` sorted symbols into one tree. */
function buildTree(leaves: usize, scratch: usize): void {
  const weights = scratch + WEIGHTS;
  const weightsEnd = weights + ((leaves - 1) << 2);
  let leaf = scratch + SORTED;
  let node = weights;
  for (let made = weights; made < weightsEnd; made += 4) {
    store<u32>(made, NO_NODE);
    // The parent of a node that is not taken now is written again before it is read.
    store<u32>(node + (PARENTS - WEIGHTS), <u32>(made - weights));
    let leafWeight = load<u32>(leaf) >>> SYMBOL_BITS;
    let nodeWeight = load<u32>(node);
    let isLeaf = leafWeight <= nodeWeight;
    let weight = isLeaf ? leafWeight : nodeWeight;
    leaf += isLeaf ? 4 : 0;
    node += isLeaf ? 0 : 4;
    store<u32>(node + (PARENTS - WEIGHTS), <u32>(made - weights));
    leafWeight = load<u32>(leaf) >>> SYMBOL_BITS;
    nodeWeight = load<u32>(node);
    isLeaf = leafWeight <= nodeWeight;
    weight += isLeaf ? leafWeight : nodeWeight;
    leaf += isLeaf ? 4 : 0;
    node += isLeaf ? 0 : 4;
    store<u32>(made, weight);
  }
}

/** Counts the leaves at each depth, none deeper than `limit`. */
function countLeaves(leaves: usize, limit: u32, scratch: usize): void {
  const inner = scratch + INNER_NODES;
  const parents = scratch + PARENTS;
  const root = (leaves - 2) << 2;
  memory.fill(inner, 0, 4 * (DEEPEST + 1));
  store<u32>(inner, 1);
  store<u32>(parents + root, 0);
  for (let node = root; node > 0; ) {
    node -= 4;
    const depth = load<u32>(parents + load<u32>(parents + node)) + 1;
    store<u32>(parents + node, depth);
    const atDepth = inner + (depth << 2);
    store<u32>(atDepth, load<u32>(atDepth) + 1);
  }
  const counts = scratch + LEAVES;
  for (let depth: u32 = 1; depth <= limit; depth++) {
    const nodes = load<u32>(inner + ((depth - 1) << 2)) << 1;
    store<u32>(counts + (depth << 2), nodes - load<u32>(inner + (depth << 2)));
  }
  // The inner nodes at the limit have more leaves below than places: each gives its own place to one of them.
  const atLimit = counts + (limit << 2);
  let homeless: u32 = 0;
  for (let depth = limit; depth < DEEPEST; depth++) {
    homeless += load<u32>(inner + (depth << 2)) << 1;
    homeless -= load<u32>(inner + ((depth + 1) << 2));
  }
  store<u32>(atLimit, load<u32>(atLimit) + homeless);
  homeless -= load<u32>(inner + (limit << 2));
  while (homeless) {
    let shorter = atLimit - 4;
    while (!load<u32>(shorter)) shorter -= 4;
    store<u32>(shorter, load<u32>(shorter) - 1);
    store<u32>(shorter, load<u32>(shorter, 4) + 2, 4);
    store<u32>(atLimit, load<u32>(atLimit) - 1);
    homeless--;
  }
}

/** Gives each symbol its length and its code; gives the bits that all symbols of the page take. */
function assignCodes(usedEnd: usize, limit: u32, codes: usize, scratch: usize): u32 {
  const used = scratch + USED;
  const counts = scratch + LEAVES;
  let p = scratch + SORTED + (usedEnd - used);
  let bits: u32 = 0;
  let next: u32 = 0;
  for (let length: u32 = 1; length <= limit; length++) {
    const count = load<u32>(counts + (length << 2));
    store<u32>(counts + (length << 2), next);
    next += count << (CODE_BITS - length);
    const to = p - ((<usize>count) << 2);
    while (p > to) {
      p -= 4;
      const entry = load<u32>(p);
      store<u32>(codes + ((entry & SYMBOL_MASK) << 2), length);
      bits += (entry >>> SYMBOL_BITS) * length;
    }
  }
  for (p = used; p < usedEnd; p += 4) {
    const at = codes + ((load<u32>(p) & SYMBOL_MASK) << 2);
    const length = load<u32>(at);
    const slot = counts + (length << 2);
    const code = load<u32>(slot);
    store<u32>(slot, code + ((<u32>1) << (CODE_BITS - length)));
    store<u32>(at, (reverse(code) << 8) | length);
  }
  return bits;
}

/**
 * Builds the code of an alphabet from how often each of its symbols is used, with no code longer than `limit` bits.
 * Gives the bits that all of them take together.
 */
export function buildCode(counts: usize, symbols: u32, limit: u32, codes: usize, scratch: usize): u32 {
  const usedEnd = gather(counts, symbols, codes, scratch);
  const leaves = (usedEnd - scratch - USED) >>> 2;
  sortByCount(usedEnd, scratch);
  buildTree(leaves, scratch);
  countLeaves(leaves, limit, scratch);
  return assignCodes(usedEnd, limit, codes, scratch);
}
