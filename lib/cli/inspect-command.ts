/** `vmcore inspect`: what a vmcore is. */

import type { Argv } from 'yargs';
import type { InspectedKdump, Inspection } from '../inspect.js';
import { formatSize } from '../model/sizes.js';
import { sourceOperand } from './source-operand.js';
import { describedBy, type DescribingArguments, describingOptions } from './source-options.js';

export const command = 'inspect <file>';
export const describe = 'say what a vmcore is: format, CPUs, memory, mappings, notes';

/** As many mappings as fit a screen; --json has all. */
const MAPPINGS_SHOWN = 12;

interface InspectArguments extends DescribingArguments {
  file: string;
  pages: boolean;
  json: boolean;
}

/** Declares the options. */
export function builder(yargs: Argv): Argv {
  return describingOptions(sourceOperand(yargs, 'file', 'a vmcore, or any source that dump takes'))
    .option('pages', {
      type: 'boolean',
      default: false,
      describe: 'Linux: count pages by what they are used for, as dump --dump-level 31 sees it',
    })
    .option('json', { type: 'boolean', default: false, describe: 'print one JSON object, with all mappings' })
    .example('$0 inspect vmcore', 'what is in it')
    .example('$0 inspect vmcore --pages', 'and what a dump level would leave out of it')
    .example('$0 inspect vmcore --json', 'the same for programs');
}

/** Runs the command. */
export async function handler(args: InspectArguments): Promise<void> {
  const { file, pages, json } = args;
  const { inspect } = await import('../inspect.js');
  const inspection = await inspect(file, { pages, ...describedBy(args) });
  process.stdout.write(`${json ? JSON.stringify(inspection) : inspectionText(inspection)}\n`);
}

/** The inspection for people. */
export function inspectionText(inspection: Inspection): string {
  return [
    `${inspection.source}: ${inspection.format}, ${inspection.architecture}`,
    ...(inspection.assumption === null ? [] : [`warning: ${inspection.assumption}`]),
    ...cpuLines(inspection),
    ...memoryLines(inspection),
    ...mappingLines(inspection),
    ...kdumpLines(inspection),
    ...pageLines(inspection),
    ...winDmpLines(inspection),
    ...noteLines(inspection),
    ...vmcoreinfoLines(inspection),
  ].join('\n');
}

function cpuLines({ cpus }: Inspection): string[] {
  if (cpus.length === 0) return ['CPUs: none'];
  return cpus.map(
    ({ rip, rsp, cr3, paging }, i) => `CPU ${i}: rip ${rip}, rsp ${rsp}${cr3 ? `, cr3 ${cr3}, paging ${paging}` : ''}`,
  );
}

function memoryLines({ memory }: Inspection): string[] {
  const end = (base: string, length: number) => `0x${(Number(base) + length - 1).toString(16)}`;
  return [
    `memory: ${formatSize(memory.bytes)} in ${memory.blocks.length} ${memory.blocks.length === 1 ? 'block' : 'blocks'}${leftOutText(memory.leftOut)}`,
    ...memory.blocks.map(({ base, length }) => `  ${base} - ${end(base, length)}  ${formatSize(length)}`),
  ];
}

function leftOutText(pages: number): string {
  if (pages === 0) return '';
  return pages === 1 ? ', 1 page of it left out' : `, ${pages} pages of it left out`;
}

function mappingLines({ mappings }: Inspection): string[] {
  if (mappings.length === 0) return [];
  const more = mappings.length - MAPPINGS_SHOWN;
  return [
    `mappings: ${mappings.length}`,
    ...mappings
      .slice(0, MAPPINGS_SHOWN)
      .map(({ vaddr, paddr, length }) => `  ${vaddr} -> ${paddr ?? 'no physical address'}  ${formatSize(length)}`),
    ...(more > 0 ? [`  and ${more} more (--json has all)`] : []),
  ];
}

function kdumpLines({ kdump }: Inspection): string[] {
  if (!kdump) return [];
  const { memory, excluded, zero, plain, compressed, bytes } = kdump.pages;
  const ratio = kdump.ratio === null ? '' : `, ${kdump.ratio.toFixed(2)} to 1`;
  return [
    `pages: ${memory}: ${compressed} compressed, ${plain} plain, ${zero} zero, ${excluded} left out; ${formatSize(bytes)} in the file${ratio}`,
    'header:',
    ...Object.entries(kdump.header).map(([name, value]) => `  ${name}: ${value}${levelNames(name, kdump)}`),
  ];
}

/** What the bits of dump_level mean. */
function levelNames(name: string, { excludes }: InspectedKdump): string {
  return name === 'dump_level' && excludes.length > 0 ? ` (${excludes.join(', ')})` : '';
}

function pageLines({ pages }: Inspection): string[] {
  if (!pages) return [];
  const { total, excluded, kept, undecided, vmcoreinfoAt, warnings } = pages;
  return [
    ...(vmcoreinfoAt ? [`VMCOREINFO found in guest memory at ${vmcoreinfoAt}`] : []),
    `a dump at level 31 leaves out, of ${total} pages:`,
    ...Object.entries(excluded).map(([reason, count]) => `  ${reason}: ${count}`),
    `  and keeps ${kept}${undecided > 0 ? `, ${undecided} of them because they could not be decided on` : ''}`,
    ...warnings.map((text) => `  warning: ${text}`),
  ];
}

function winDmpLines({ winDmp }: Inspection): string[] {
  if (!winDmp) return [];
  const { header, runs, withoutFrames } = winDmp;
  return [
    ...(withoutFrames ? [`context frames: none, ${withoutFrames}`] : []),
    'dump header:',
    ...Object.entries(header).map(([name, value]) => `  ${name}: ${value}`),
    'runs:',
    ...runs.map(({ base, length }) => `  ${base}  ${formatSize(length)}`),
  ];
}

function noteLines({ notes }: Inspection): string[] {
  return notes.length === 0 ? [] : [`notes: ${notes.map(({ name, bytes }) => `${name} (${bytes} bytes)`).join(', ')}`];
}

function vmcoreinfoLines({ vmcoreinfo }: Inspection): string[] {
  if (!vmcoreinfo) return ['VMCOREINFO: none'];
  const facts = Object.entries(vmcoreinfo).filter(([, value]) => value !== null);
  return ['VMCOREINFO:', ...facts.map(([key, value]) => `  ${key}: ${value}`)];
}
