/**
 * The house: rooms stand on floors, and imports go down only. A room may import from itself and from those before it in
 * this list. There is no circle, not even of types, and no exception.
 */
const ROOMS = [
  '^lib/model/',
  '^lib/io/',
  '^lib/qmp/protocol/',
  '^lib/formats/',
  '^lib/paging/',
  '^lib/linux/',
  '^lib/windows/',
  '^lib/layouts/',
  '^lib/wasm/',
  '^lib/codecs/',
  '^lib/sinks/',
  '^lib/transforms/',
  '^lib/sources/',
  '^lib/live/',
  // Composition: dump.ts, plan.ts, open-guest.ts, inspect.ts and what they are made of.
  '^lib/(?!cli\\.ts|index\\.ts)[a-z-]+\\.ts$',
  '^lib/qmp/monitor/',
  '^lib/(index\\.ts$|cli\\.ts$|cli/)',
];

module.exports = {
  forbidden: [
    { name: 'no-circle', severity: 'error', from: {}, to: { circular: true } },
    {
      name: 'every-file-in-a-room',
      severity: 'error',
      from: { path: '^lib/', pathNot: ROOMS },
      to: {},
    },
    ...ROOMS.slice(0, -1).map((room, floor) => ({
      name: `down-only: ${room}`,
      severity: 'error',
      from: { path: room },
      to: { path: ROOMS.slice(floor + 1) },
    })),
  ],
  options: {
    tsConfig: { fileName: 'tsconfig.json' },
    tsPreCompilationDeps: true,
    doNotFollow: { path: 'node_modules' },
    exclude: { path: ['^lib/wasm/assembly/', '\\.d\\.ts$'] },
    enhancedResolveOptions: { extensions: ['.ts', '.js'], conditionNames: ['import', 'node', 'default'] },
  },
};
