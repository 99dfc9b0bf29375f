/**
 * The nodes of a Linux kernel's memory (struct pglist_data): of NUMA node_data[] has them, else contig_page_data is the
 * only one (include/linux/mmzone.h).
 */

import type { KernelMemory } from './kernel-memory.js';
import type { KernelSymbols } from './kernel-symbols.js';

/** Nodes that a kernel can have at most: more are damage */
const MAX_NODES = 1024;

/** Addresses of struct pglist_data; null when they are not to be found. @throws VmcoreError READ, TRUNCATED */
export function onlineNodes(kernel: KernelMemory, { info }: KernelSymbols): bigint[] | null {
  const only = info.symbol('contig_page_data');
  if (only !== null) return [only];
  const [map, data, length] = [info.symbol('node_online_map'), info.symbol('node_data'), info.length('node_data')];
  if (map === null || data === null || length === null || length > BigInt(MAX_NODES)) return null;
  const online = kernel.bytes(map, Math.ceil(Number(length) / 64) * 8);
  if (!online) return null;
  const nodes: bigint[] = [];
  for (let node = 0; node < Number(length); node++) {
    if ((online[node >>> 3]! & (1 << (node & 7))) === 0) continue;
    const address = kernel.pointer(data + BigInt(node * kernel.long));
    if (address === null || !kernel.isKernelAddress(address)) return null;
    nodes.push(address);
  }
  return nodes;
}

/** The page frame behind the last node's last; null when VMCOREINFO or memory does not tell. @throws VmcoreError READ, TRUNCATED */
export function nodesEnd(kernel: KernelMemory, symbols: KernelSymbols): number | null {
  const { info } = symbols;
  const [startAt, pagesAt] = [info.offset('pglist_data.node_start_pfn'), info.offset('pglist_data.node_spanned_pages')];
  const nodes = onlineNodes(kernel, symbols);
  if (startAt === null || pagesAt === null || nodes === null || nodes.length === 0) return null;
  let end = 0n;
  for (const node of nodes) {
    const [start, pages] = [kernel.pointer(node + startAt), kernel.pointer(node + pagesAt)];
    if (start === null || pages === null) return null;
    if (start + pages > end) end = start + pages;
  }
  return Number(end);
}
