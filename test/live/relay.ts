/** What passes a connection to a monitor on, as socat and ssh -L do: the process at the other end is not QEMU. */

import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/** Between two pieces, in milliseconds. */
const STEP = 5;

/** What it does beyond what it is for. */
export interface RelayOptions {
  /** cuts the connections when it has passed so many messages on, in both directions; new ones are taken */
  readonly cutAfter?: number;
  /** what QEMU says comes in pieces of so many bytes */
  readonly piece?: number;
}

/** A relay in the process of the test. */
export class Relay {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #wasCut = false;

  private constructor(
    /** where it listens */
    readonly path: string,
    target: string,
    { cutAfter = Number.POSITIVE_INFINITY, piece = Number.POSITIVE_INFINITY }: RelayOptions,
  ) {
    let passed = 0;
    this.#server = createServer((client) => {
      const qemu = connect(target);
      for (const [from, to, size] of [
        [client, qemu, Number.POSITIVE_INFINITY],
        [qemu, client, piece],
      ] as const) {
        this.#sockets.add(from);
        from.on('error', () => {}).on('close', () => to.destroy());
        const pass = async (data: Buffer) => {
          from.pause();
          for (let at = 0; at < data.length; at += size) {
            to.write(data.subarray(at, at + size));
            if (at + size < data.length) await sleep(STEP);
          }
          if (++passed === cutAfter) this.cut();
          else from.resume();
        };
        from.on('data', (data: Buffer) => void pass(data));
      }
    });
  }

  /** @param target the socket of the monitor */
  static async start(path: string, target: string, options: RelayOptions = {}): Promise<Relay> {
    const relay = new Relay(path, target, options);
    relay.#server.listen(path);
    await once(relay.#server, 'listening');
    return relay;
  }

  get source(): string {
    return `qmp:${this.path}`;
  }

  /** Whether connections were cut. */
  get wasCut(): boolean {
    return this.#wasCut;
  }

  /** Cuts the connections that there are; new ones are taken. */
  cut(): void {
    this.#wasCut = true;
    for (const socket of this.#sockets) socket.destroy();
    this.#sockets.clear();
  }

  /** Cuts them, and takes no more. */
  close(): void {
    this.#server.close();
    this.cut();
  }
}
