// A stream of a model over WebSocket. It outlives its connection: the server keeps the stream of
// one that broke, and tells how many steps it has made when it is asked for again.

const MOST_IN_FLIGHT = 8; // frames that are sent and not answered
const MOST_BUFFERED = 2 ** 20; // bytes that the browser has not sent yet
const RETRIES = [0.25, 0.5, 1, 2, 4, 8]; // seconds; the last one again and again

// Of RFC 6455 and the registry of close codes, as the server uses them.
const ENDED = 1000;
const BROKEN = 1006;
const RESTART = 1012;
const LATER = 1013;

const WORDS = {
  1001: "the server has ended the stream",
  1006: "there is no connection to the server",
  1011: "the server failed",
};

// The processors that browsers run on are little endian, as the protocol is.
export const ARRAYS = { FP32: Float32Array, FP64: Float64Array, INT64: BigInt64Array };

export class ModelStream {
  #url;
  #told;
  #socket;
  #session = null;
  #inFlight = []; // {rows, start, steps, sentAt}
  #attempts = 0;
  #timer;
  #connected = false;
  #ended = false;
  #failure = null;
  #waiting = [];

  sent = 0; // steps
  answered = 0; // steps
  lost = 0; // steps that were made, whose answers were lost with a connection

  /**
   * @param {URL} url
   * @param {object} told  functions: answered(frame, rows), broke(why), resumed()
   */
  constructor(url, told) {
    this.#url = url;
    this.#told = told;
    this.#connect();
  }

  get connected() {
    return this.#connected;
  }

  /** The server's hello. */
  async opened() {
    await this.#until(() => this.#connected);
    return this.hello;
  }

  /** Send rows, as soon as not too much is under way. */
  async send(rows) {
    await this.#until(
      () =>
        this.#connected &&
        this.#inFlight.length < MOST_IN_FLIGHT &&
        this.#socket.bufferedAmount <= MOST_BUFFERED,
    );
    const frame = { rows, start: this.sent, steps: rows.length / this.rowSize, sentAt: 0 };
    this.sent += frame.steps;
    this.#inFlight.push(frame);
    this.#post(frame);
    return frame;
  }

  /** Wait until all that was sent is answered, and the rows that are still due have come. */
  async finish() {
    const frame = { rows: "end", start: this.sent, steps: 0, sentAt: 0 };
    this.#inFlight.push(frame);
    if (this.#connected) this.#post(frame);
    await this.#until(() => this.#ended);
  }

  /** End the stream. */
  close() {
    clearTimeout(this.#timer);
    this.#fail("the stream was stopped before all of it was answered");
    this.#socket.close(ENDED);
  }

  #connect() {
    const url = new URL(this.#url);
    if (this.#session !== null) url.searchParams.set("session", this.#session);
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => {
      if (typeof data === "string") this.#greeted(JSON.parse(data));
      else this.#answered(data);
    };
    socket.onclose = (event) => this.#closed(event);
    this.#socket = socket;
  }

  #greeted(hello) {
    const size = (shape) => shape.reduce((product, n) => product * n, 1);
    this.hello = hello;
    this.rowSize = size(hello.input.shape);
    const resumes = this.#session !== null;
    this.#session = hello.session;
    this.#attempts = 0;
    while (this.#inFlight.length && this.#inFlight[0].start < hello.steps) {
      this.lost += this.#inFlight.shift().steps;
    }
    const expected = this.#inFlight.length ? this.#inFlight[0].start : this.sent;
    if (hello.steps !== expected) {
      this.#fail(`the server is at step ${hello.steps} of the stream, the page at ${expected}`);
      this.#socket.close(ENDED);
      return;
    }
    this.#connected = true;
    this.#inFlight.forEach((frame) => this.#post(frame));
    if (resumes) this.#told.resumed();
    this.#wake();
  }

  #post(frame) {
    frame.sentAt = performance.now();
    this.#socket.send(frame.rows);
  }

  #answered(data) {
    const frame = this.#inFlight.shift();
    this.#ended = frame.rows === "end";
    this.answered += frame.steps;
    this.#told.answered(frame, new ARRAYS[this.hello.output.datatype](data));
    this.#wake();
  }

  #closed({ code, reason }) {
    this.#connected = false;
    if (this.#failure !== null || this.#ended) return;
    const why = reason || WORDS[code] || "the connection was closed";
    const may = this.#session !== null && [BROKEN, RESTART, LATER].includes(code);
    if (!may) {
      this.#fail(`${why} (code ${code})`);
      return;
    }
    const seconds = RETRIES[Math.min(this.#attempts++, RETRIES.length - 1)];
    this.#timer = setTimeout(() => this.#connect(), seconds * 1000);
    this.#told.broke(why);
  }

  #fail(why) {
    this.#failure ??= new Error(why);
    this.#wake();
  }

  async #until(condition) {
    while (this.#failure === null && !condition()) {
      await new Promise((resolve) => this.#waiting.push(resolve));
    }
    if (this.#failure !== null) throw this.#failure;
  }

  #wake() {
    this.#waiting.splice(0).forEach((resolve) => resolve());
  }
}
