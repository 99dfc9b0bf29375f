/** The public API, and nothing else. */

export { WasmEncoder, type WasmOptions } from './codecs/wasm-encoder.js';
export type { EncodableChunk, PageCodecName, PageEncoder } from './codecs/page-encoder.js';
export { PortableEncoder } from './codecs/portable-encoder.js';
export { DumpJob, type DumpSummary, type DumpTarget, dump } from './dump.js';
export { type ErrorCode, VmcoreError } from './model/errors.js';
export { encodeNote, parseNotes } from './formats/notes.js';
export { findVmcoreinfo, parseVmcoreinfo, Vmcoreinfo } from './formats/vmcoreinfo.js';
export { decodeWinDmpHeader, type WinDmpBits, type WinDmpHeader, type WinDmpRun } from './formats/win-dmp.js';
export type {
  Architecture,
  ChunkOptions,
  CpuState,
  Guest,
  LiveMachine,
  LiveReport,
  Segment,
  SystemState,
} from './model/guest.js';
export { type Inspection, inspect } from './inspect.js';
export { type ExcludeOptions, type ExclusionReport, excludePages } from './linux/exclude-pages.js';
export { findVmcoreinfoInMemory, type FoundVmcoreinfo } from './linux/find-vmcoreinfo.js';
export { type CompletedGuest, withVmcoreinfo } from './linux/with-vmcoreinfo.js';
export {
  EXCLUDE_NAMES,
  EXCLUDE_REASONS,
  type ExcludeReason,
  type MissingPages,
  PageExclusion,
  type PfnRun,
} from './model/page-exclusion.js';
export {
  type Backing,
  type DataRun,
  type FilePlace,
  type MemoryBlock,
  type MemoryRegion,
  PhysicalMemory,
} from './model/physical-memory.js';
export type { DumpedPages } from './plan.js';
export {
  type ConnectOptions,
  connectQmp,
  type ExecuteOptions,
  humanMonitor,
  type QmpArguments,
  type QmpClient,
  QmpCommandError,
  type QmpEvent,
  type QmpValue,
} from './qmp/protocol/client.js';
export { QmpProxy, type QmpProxyOptions } from './qmp/monitor/proxy.js';
export { QmpServer, type QmpServerOptions } from './qmp/monitor/server.js';
export { type DumpRequest, FORMATS, type Format } from './request.js';
export { ExtentSink, type SinkTotals } from './sinks/extent-sink.js';
export { FdSink, type FdSinkOptions } from './sinks/fd-sink.js';
export { FileSink, type FileSinkOptions } from './sinks/file-sink.js';
export { type Slab, SlabPool } from './model/slab-pool.js';
export { demoGuest } from './sources/demo/demo.js';
export { openElfCore } from './sources/elf/elf-core.js';
export { openElfStream } from './sources/elf/elf-stream.js';
export { FileBacking } from './io/file-backing.js';
export { openGuestDescription } from './sources/description/guest-description.js';
export { openKdump } from './sources/kdump/kdump-core.js';
export { openKdumpStream } from './sources/kdump/kdump-stream.js';
export { MemoryGuest, type MemoryGuestFields } from './sources/memory-guest.js';
export { MemorySource } from './sources/memory-source.js';
export { type OpenGuestOptions, openGuest, openStream } from './open-guest.js';
export { type CapturedFile, captureGuest } from './live/qemu/capture.js';
export { openQemu } from './live/qemu/qemu-guest.js';
export { MEMORY_PATHS, type MemoryPath, type OpenQemuOptions } from './live/qemu/options.js';
export { openRawMemory } from './sources/raw/raw-memory.js';
export { parseRegisters } from './sources/raw/registers.js';
export { runChunks } from './sources/run-source.js';
export { openWinDmp, WinDmpGuest } from './sources/windows/win-dmp-core.js';
export {
  type BytesChunk,
  type Chunk,
  chunkBytes,
  type DeferredChunk,
  type Extent,
  type HoleChunk,
  MAX_CHUNK_BYTES,
  nodeStream,
  PAGE_COMPRESSED,
  PAGE_SIZE,
  PAGE_STORED,
  PAGE_ZERO,
  type PageBatch,
  type Progress,
  releaseChunk,
  Sink,
  Source,
  Stage,
  type StageOptions,
} from './model/stage.js';
export { ByteStream } from './transforms/byte-stream.js';
export { ElfFramer } from './transforms/elf-framer.js';
export { type ElfLayout, type ElfLayoutOptions, planElf } from './layouts/elf-layout.js';
export { type FindKdbgOptions, findKdbg, windowsHeader } from './windows/find-kdbg.js';
export { Flattener } from './transforms/flattener.js';
export { KdumpFramer } from './transforms/kdump-framer.js';
export { type KdumpLayout, type KdumpLayoutOptions, planKdump } from './layouts/kdump-layout.js';
export type { Mapping } from './paging/mapping-list.js';
export { type ResolveOptions, resolveMappings, translate } from './paging/mapping-resolver.js';
export { MemoryOverlay } from './transforms/memory-overlay.js';
export { PageAligner } from './transforms/page-aligner.js';
export { PageCompressor, type PageCounts } from './transforms/page-compressor.js';
export { PageFilter } from './transforms/page-filter.js';
export { RangeFilter } from './transforms/range-filter.js';
export { VirtualMemory } from './paging/virtual-memory.js';
export { WinDmpFramer } from './transforms/win-dmp-framer.js';
export { planWinDmp, type WinDmpLayout, type WinDmpLayoutOptions } from './layouts/win-dmp-layout.js';
export { openVmcore, VmcoreReader } from './vmcore-reader.js';
export type { ElfNote } from './model/note.js';
export { OverlaidMemory, type OverlayPages } from './model/overlaid-memory.js';
export { winDmpHeaderOf } from './windows/header-note.js';
