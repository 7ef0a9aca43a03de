// Where rows come from: a microphone, a file, or numbers that were typed. Each source gives its
// rows block by block, and tells in `note` what it could not use.

import { ARRAYS } from "./stream.js";

const MOST_FILE = 2 ** 28; // bytes
const MOST_WAITING = 1; // seconds of the microphone that wait to be sent

const TEXT = /\.(csv|txt)$/i;
const RAW = /\.(f32|f64|i64|bin|raw)$/i;

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Rows that are all there. */
class Rows {
  #numbers;
  #rowSize;
  #stopped = false;

  /**
   * @param {TypedArray} numbers
   * @param {number} rowSize
   * @param {number} pace  steps a second; 0 for as fast as they are taken
   */
  constructor(numbers, rowSize, pace) {
    this.dropped = 0;
    this.steps = Math.floor(numbers.length / rowSize);
    const rest = numbers.length - this.steps * rowSize;
    this.note = rest ? `The last ${rest} numbers fill no row of ${rowSize}; not sent.` : "";
    if (!this.steps) throw new Error(`there is no row of ${rowSize} numbers to send`);
    [this.#numbers, this.#rowSize, this.pace] = [numbers, rowSize, pace];
  }

  stop() {
    this.#stopped = true;
  }

  async *blocks(steps) {
    const began = performance.now();
    for (let step = 0; step < this.steps && !this.#stopped; step += steps) {
      const early = this.pace ? began + (1000 * step) / this.pace - performance.now() : 0;
      if (early > 0) await sleep(early);
      const end = Math.min(step + steps, this.steps);
      yield this.#numbers.subarray(step * this.#rowSize, end * this.#rowSize);
    }
  }
}

/** Samples as they are heard. */
class Microphone {
  #media;
  #context;
  #input;
  #waiting = [];
  #wake = () => {};
  #stopped = false;

  constructor(media, context, input) {
    [this.#media, this.#context, this.#input] = [media, context, input];
    this.steps = Infinity;
    this.pace = context.sampleRate / input.rowSize;
    this.dropped = 0; // steps
    this.note = "";
    media.getAudioTracks().forEach((track) => {
      track.onended = () => {
        this.note = "The microphone was taken away.";
        this.stop();
      };
    });
  }

  stop() {
    this.#stopped = true;
    this.#media.getTracks().forEach((track) => track.stop());
    if (this.#context.state !== "closed") this.#context.close();
    this.#wake();
  }

  #drop(steps) {
    this.dropped += steps;
    this.note = "The server or the network is slower than the microphone: see what is not sent.";
  }

  async *blocks(steps) {
    const context = this.#context;
    const samples = steps * this.#input.rowSize;
    const most = Math.max(2, Math.floor((MOST_WAITING * context.sampleRate) / samples));
    const node = new AudioWorkletNode(context, "microphone", {
      channelCount: 1,
      channelCountMode: "explicit",
      processorOptions: { samples },
    });
    node.port.onmessage = ({ data }) => {
      if (this.#waiting.length < most) this.#waiting.push(data);
      else this.#drop(steps);
      this.#wake();
    };
    // The node gives silence: it is connected so that the browser runs it.
    context.createMediaStreamSource(this.#media).connect(node).connect(context.destination);
    await context.resume();
    const Numbers = ARRAYS[this.#input.datatype];
    while (!this.#stopped) {
      if (this.#waiting.length) yield Numbers.from(this.#waiting.shift());
      else await new Promise((resolve) => (this.#wake = resolve));
    }
  }
}

function refuseTokens({ datatype }) {
  if (datatype === "INT64") {
    throw new Error("this model takes tokens, not sound: type numbers or choose a file of them");
  }
}

/**
 * @param {object} input  of the model: datatype, rowSize
 * @param {number} rate  samples a second
 */
export async function microphone(input, rate) {
  refuseTokens(input);
  if (!navigator.mediaDevices) {
    throw new Error(
      "browsers lend a microphone only to pages over HTTPS, or from this machine (localhost)",
    );
  }
  const audio = {
    channelCount: 1,
    echoCancellation: false,
    noiseSuppression: false,
    autoGainControl: false,
  };
  const media = await navigator.mediaDevices.getUserMedia({ audio });
  try {
    const context = new AudioContext({ sampleRate: rate });
    await context.audioWorklet.addModule(new URL("microphone.js", import.meta.url));
    return new Microphone(media, context, input);
  } catch (error) {
    media.getTracks().forEach((track) => track.stop());
    throw error;
  }
}

/**
 * @param {File} chosen
 * @param {object} input  of the model: datatype, rowSize
 * @param {number} rate  samples a second, of audio
 * @param {number} pace  steps a second, or 0
 */
export async function file(chosen, input, rate, pace) {
  if (!chosen) throw new Error("choose a file first");
  if (chosen.size > MOST_FILE) {
    throw new Error(`the file ${chosen.name} has ${chosen.size} bytes; this page takes ${MOST_FILE}`);
  }
  if (TEXT.test(chosen.name)) return numbers(await chosen.text(), input, pace);
  const bytes = await chosen.arrayBuffer();
  if (RAW.test(chosen.name)) {
    const Numbers = ARRAYS[input.datatype];
    const row = Numbers.BYTES_PER_ELEMENT * input.rowSize;
    if (bytes.byteLength % row) {
      throw new Error(
        `the file ${chosen.name} has ${bytes.byteLength} bytes; expected a multiple of ${row}, ` +
          `a row of ${input.rowSize} ${input.datatype}`,
      );
    }
    return new Rows(new Numbers(bytes), input.rowSize, pace);
  }
  refuseTokens(input);
  const samples = await decoded(bytes, chosen.name, rate);
  return new Rows(ARRAYS[input.datatype].from(samples), input.rowSize, pace);
}

/** The samples of a file of audio, its channels made one. */
async function decoded(bytes, name, rate) {
  let sound;
  try {
    sound = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes);
  } catch {
    throw new Error(
      `the file ${name} is no audio that this browser reads; expected audio, .csv or .txt, or ` +
        `.f32, .f64, .i64, .bin or .raw`,
    );
  }
  const mixed = new Float32Array(sound.length);
  for (let i = 0; i < sound.numberOfChannels; i++) {
    sound.getChannelData(i).forEach((sample, t) => (mixed[t] += sample / sound.numberOfChannels));
  }
  return mixed;
}

/**
 * Rows that were written as text: each line has one, or several.
 *
 * @param {string} text
 * @param {object} input  of the model: datatype, rowSize
 * @param {number} pace  steps a second, or 0
 */
export function numbers(text, { datatype, rowSize }, pace) {
  const found = [];
  text.split(/\r?\n/).forEach((line, i) => {
    if (!line.trim()) return;
    const words = line.trim().split(/\s*[,;]\s*|\s+/);
    if (words.length % rowSize) {
      throw new Error(`line ${i + 1} has ${words.length} numbers; expected ${rowSize}, a row`);
    }
    for (const word of words) {
      const number = datatype === "INT64" ? integer(word) : real(word);
      if (number === undefined) {
        const given = `line ${i + 1} has "${word.slice(0, 40)}"`;
        throw new Error(`${given}; expected ${datatype === "INT64" ? "an integer" : "a number"}`);
      }
      found.push(number);
    }
  });
  return new Rows(ARRAYS[datatype].from(found), rowSize, pace);
}

function integer(word) {
  if (!/^[-+]?\d{1,20}$/.test(word)) return undefined;
  const number = BigInt(word);
  return BigInt.asIntN(64, number) === number ? number : undefined;
}

function real(word) {
  if (/^nan$/i.test(word)) return NaN;
  return word === "" || Number.isNaN(Number(word)) ? undefined : Number(word);
}
