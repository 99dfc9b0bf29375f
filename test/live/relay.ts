/** What passes a connection to a monitor on, as socat and ssh -L do: the process at the other end is not QEMU. */

import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';

/** A relay in the process of the test. */
export class Relay {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(
    /** where it listens */
    readonly path: string,
    target: string,
  ) {
    this.#server = createServer((client) => {
      const qemu = connect(target);
      for (const [from, to] of [
        [client, qemu],
        [qemu, client],
      ] as const) {
        this.#sockets.add(from);
        from.on('error', () => {}).on('close', () => to.destroy());
        from.pipe(to);
      }
    });
  }

  /** @param target the socket of the monitor */
  static async start(path: string, target: string): Promise<Relay> {
    const relay = new Relay(path, target);
    relay.#server.listen(path);
    await once(relay.#server, 'listening');
    return relay;
  }

  get source(): string {
    return `qmp:${this.path}`;
  }

  /** Cuts the connections that there are; new ones are taken. */
  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
    this.#sockets.clear();
  }

  /** Cuts them, and takes no more. */
  close(): void {
    this.#server.close();
    this.cut();
  }
}
