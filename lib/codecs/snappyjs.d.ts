/** snappyjs has no types of its own. */
declare module 'snappyjs' {
  const snappy: {
    /** Compresses to the raw Snappy format. */
    compress(input: Uint8Array): Uint8Array;
    /** Decompresses the raw Snappy format; throws on bad input. */
    uncompress(input: Uint8Array, maxLength?: number): Uint8Array;
  };
  export default snappy;
}
