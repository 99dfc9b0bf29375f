/**
 * The shared memory of an encoder that has ended, for the next one. V8 does not count such memory, and so frees it late:
 * a program that makes one dump after the other would come to hold that of dozens.
 */

/** Bytes of a page of WebAssembly. */
const WASM_PAGE = 65_536;

/** Held weakly: when garbage is collected, it goes. */
let spare: WeakRef<WebAssembly.Memory> | null = null;

/** A shared memory of at least `bytes`, which need not be zeros. */
export function takeMemory(bytes: number): WebAssembly.Memory {
  const pages = Math.ceil(bytes / WASM_PAGE);
  const kept = spare?.deref();
  spare = null;
  if (kept?.buffer.byteLength === pages * WASM_PAGE) return kept;
  return new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
}

/** Keeps a memory that nobody reads or writes any more. */
export function keepMemory(memory: WebAssembly.Memory): void {
  spare = new WeakRef(memory);
}
