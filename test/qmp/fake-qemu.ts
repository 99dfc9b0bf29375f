/** A monitor that says what a test wants it to say, and remembers what it was asked and given. */

import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { type Connection, socketConnection } from '../../lib/qmp/protocol/connection.js';
import { makeShortFolder } from '../short-folder.js';
import { type Json, type JsonObject, JsonStream } from '../../lib/qmp/protocol/json-parser.js';

/** What QEMU 7.2 of Debian says first. */
export const GREETING =
  '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2"}, "capabilities": ["oob"]}}';

/** What was asked. */
export interface Request {
  readonly command: string;
  readonly oob: boolean;
  readonly args: JsonObject;
  /** how its answer begins and ends: the id as it came */
  readonly id: string;
  /** descriptors that came with it or before it, and whoever takes them closes them */
  takeDescriptors(): readonly number[];
}

/** Answers a request: the text of what is returned, or of a whole error; null is no answer for now. */
export type Answer = (request: Request) => string | null | Promise<string | null>;

/** QEMU's end of the connection. */
export class FakeQemu {
  readonly folder = makeShortFolder();
  readonly path = join(this.folder, 'monitor');
  readonly asked: Request[] = [];
  #server: Server | null = null;
  #socket: Socket | null = null;
  #connection: Connection | null = null;
  #descriptors: readonly number[] = [];

  private constructor(
    private readonly greeting: string,
    private readonly answer: Answer,
  ) {}

  static async start(answer: Answer = () => '{}', greeting = GREETING): Promise<FakeQemu> {
    const fake = new FakeQemu(greeting, answer);
    fake.#server = createServer({ pauseOnConnect: true }, (socket) => {
      fake.#socket = socket;
      fake.#connection = socketConnection(socket);
      void fake.#serve(fake.#connection);
    });
    fake.#server.listen(fake.path);
    await once(fake.#server, 'listening');
    return fake;
  }

  /** Commands that were asked for, but for the negotiation. */
  get commands(): string[] {
    return this.asked.map(({ command }) => command).filter((command) => command !== 'qmp_capabilities');
  }

  /** Sends a text and the end of a line. */
  say(text: string): void {
    void this.#connection?.send(`${text}\r\n`);
  }

  /** Ends the connection at once. */
  hangUp(): void {
    this.#socket?.destroy();
  }

  close(): void {
    this.#connection?.close();
    this.#server?.close();
    rmSync(this.folder, { recursive: true, force: true });
  }

  async #serve(connection: Connection): Promise<void> {
    const messages = new JsonStream((message) => void this.#take(message as JsonObject));
    this.say(this.greeting);
    for (let received = await connection.receive(); received; received = await connection.receive()) {
      if (received.descriptors.length > 0) this.#descriptors = received.descriptors;
      messages.feed(received.data);
    }
  }

  async #take(message: JsonObject): Promise<void> {
    const oob = message.has('exec-oob');
    const request: Request = {
      command: String(message.get('execute') ?? message.get('exec-oob')),
      oob,
      args: (message.get('arguments') as JsonObject | undefined) ?? new Map<string, Json>(),
      id: String(message.get('id')),
      takeDescriptors: () => {
        const descriptors = this.#descriptors;
        this.#descriptors = [];
        return descriptors;
      },
    };
    this.asked.push(request);
    const answer = request.command === 'qmp_capabilities' ? '{}' : await this.answer(request);
    if (answer === null) return;
    if (answer.startsWith('{"class"')) this.say(`{"id": "${request.id}", "error": ${answer}}`);
    else this.say(`{"return": ${answer}, "id": "${request.id}"}`);
  }
}

/** The text of an error. */
export function refusal(desc: string, errorClass = 'GenericError'): string {
  return `{"class": "${errorClass}", "desc": "${desc}"}`;
}
