/** Loaded into a server that is asked for its memory: SIGUSR2 has it collect its garbage (`--expose-gc`). */

process.on('SIGUSR2', () => globalThis.gc!());
