/** What planning a dump may use. */

import type { Scope } from './model/scope.js';

/** What planning may use: an end to it, an owner for what it acquires, and somebody who listens. */
export interface PlanContext {
  readonly signal: AbortSignal;
  /** owns what the plan acquires: threads */
  readonly scope: Scope;
  /** is told what whoever asked should know */
  onWarning(text: string): void;
}
