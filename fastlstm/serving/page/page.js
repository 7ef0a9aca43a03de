// The page: what its user chose is streamed, and what came back is shown.

import { Kept } from "./kept.js";
import { MOST_LINES, Plot } from "./plot.js";
import * as sources from "./sources.js";
import { ModelStream } from "./stream.js";

const FRAME_SECONDS = 0.02; // of sound in a frame, unless the user says how many steps
const LATENCIES = 512; // the last ones that are told of
const STOP_SECONDS = 5; // in which what is under way is waited for

const part = (name) => document.getElementById(name);
const text = (name, words) => (part(name).textContent = words);
const count = (number) => Math.round(number).toLocaleString("en");
const milliseconds = (number) => `${number.toPrecision(3)} ms`;

const plot = new Plot(part("plot"));
let running = null; // the Run that is under way
let shown = null; // the Run that is shown
let model = null; // of the server's metadata, what is chosen
let chosenSteps = false; // by the user

/** What to say of an error. */
function say(words, isError = false) {
  text("status", words && words[0].toUpperCase() + words.slice(1));
  part("status").classList.toggle("error", isError);
}

// The models.

async function ask(path, options = {}) {
  const token = part("token").value.trim();
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers });
  const found = await response.json();
  if (!response.ok) {
    if (response.status === 401) {
      part("token-field").hidden = false;
      part("token").focus();
    }
    throw new Error(found.error);
  }
  return found;
}

async function listModels() {
  part("start").disabled = true;
  try {
    const server = await ask("v2");
    text("server", `${server.name} ${server.version} at ${location.host}`);
    const models = await ask("v2/repository/index", { method: "POST" });
    part("model").replaceChildren(
      ...models.map(({ name, state }) => {
        const option = new Option(state === "READY" ? name : `${name} (${state})`, name);
        option.disabled = state !== "READY";
        return option;
      }),
    );
    await describeModel();
  } catch (error) {
    say(error.message, true);
  }
}

async function describeModel() {
  const name = part("model").value;
  part("start").disabled = true;
  model = null;
  text("shapes", "");
  const found = await ask(`v2/models/${encodeURIComponent(name)}`);
  const words = ({ name, datatype, shape }) => `${name} ${datatype} [${shape.join(", ")}]`;
  const [inputs, outputs] = [found.inputs.map(words), found.outputs.map(words)];
  text("shapes", `${inputs.join(", ")} → ${outputs.join(", ")}; -1 is the number of steps`);
  if (found.inputs.length !== 1 || found.outputs.length !== 1) {
    say("a page streams rows of one input and one output: use gRPC or HTTP for this model", true);
    return;
  }
  const [{ datatype, shape }] = found.inputs;
  model = { name, datatype, rowSize: shape.slice(1).reduce((product, n) => product * n, 1) };
  const kind = datatype === "INT64" ? "integers" : "numbers";
  const { rowSize } = model;
  text("numbers-hint", rowSize === 1 ? `Of ${kind}, one a step.` : `${rowSize} ${kind} a line.`);
  suggestSteps();
  part("start").disabled = false;
  say("");
}

function suggestSteps() {
  if (chosenSteps || model === null) return;
  const steps = Math.round((part("rate").valueAsNumber * FRAME_SECONDS) / model.rowSize);
  part("steps").value = Math.max(1, steps || 1);
}

// Streaming.

const chosenSource = () => document.querySelector("[name=source]:checked").value;

function openSource() {
  const [rate, pace] = [part("rate").valueAsNumber, part("pace").valueAsNumber || 0];
  switch (chosenSource()) {
    case "microphone":
      return sources.microphone(model, rate);
    case "file":
      return sources.file(part("file").files[0], model, rate, pace);
    default:
      return sources.numbers(part("numbers").value, model, pace);
  }
}

function address() {
  const url = new URL(`v2/models/${encodeURIComponent(model.name)}/stream`, location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  const token = part("token").value.trim();
  url.hash = "";
  url.search = token ? new URLSearchParams({ token }) : "";
  return url;
}

/** One stream, from its start to its end. */
class Run {
  latencies = [];
  last = null; // row of the output

  async go() {
    const source = await openSource();
    this.source = source;
    if (this.stopped) throw new Error("stopped before it began");
    this.stream = new ModelStream(address(), {
      answered: (frame, rows) => this.#answered(frame, rows),
      broke: (why) => say(`${why}; trying to go on`, true),
      resumed: () => say("Streaming again"),
    });
    const hello = await this.stream.opened();
    const steps = part("steps").valueAsNumber;
    if (steps > hello.max_steps) {
      throw new Error(`${steps} steps a frame; the server takes at most ${hello.max_steps}`);
    }
    this.input = new Kept(hello.input);
    this.output = new Kept(hello.output);
    showLegend(this.output.rowSize);
    plot.start(this.output.rowSize, source.pace, source.steps);
    this.began = performance.now();
    say("Streaming");
    for await (const rows of source.blocks(steps)) {
      const { start } = await this.stream.send(rows);
      this.input.put(rows);
      plot.sent(rows, this.input.rowSize, start);
    }
    await this.stream.finish();
    const { sent, answered, lost } = this.stream;
    say(`Done: ${lost ? count(answered) : "all"} of ${count(sent)} steps were answered`, lost > 0);
  }

  /** Send nothing new; wait a while for what is under way. */
  stop() {
    this.stopped = true;
    if (!this.source) return;
    this.source.stop();
    if (!this.stream?.connected) this.stream?.close();
    else setTimeout(() => this.end(), STOP_SECONDS * 1000);
  }

  end() {
    this.source.stop();
    this.stream?.close();
  }

  #answered(frame, rows) {
    this.ended = performance.now();
    this.latencies.push(this.ended - frame.sentAt);
    if (this.latencies.length > LATENCIES) this.latencies.shift();
    this.output.put(rows);
    if (rows.length) this.last = rows.subarray(rows.length - this.output.rowSize);
    plot.answered(rows, frame.start, frame.steps);
  }
}

async function start() {
  busy(true);
  const run = new Run();
  [running, shown] = [run, run];
  text("notice", "");
  say("Opening the source");
  try {
    await run.go();
  } catch (error) {
    say(error.message, true);
  } finally {
    if (run.source) run.end();
    running = null;
    busy(false);
    show();
  }
}

function busy(isBusy) {
  const focused = part(isBusy ? "controls" : "stop").contains(document.activeElement);
  part("settings").disabled = isBusy;
  part("start").disabled = isBusy;
  part("stop").disabled = !isBusy;
  if (focused) part(isBusy ? "stop" : "start").focus({ preventScroll: true });
}

// What is shown of a run.

function showLegend(outputs) {
  const legend = part("legend");
  const lines = outputs <= MOST_LINES;
  legend.classList.toggle("lines", lines);
  legend.replaceChildren(
    ...Array.from({ length: Math.min(outputs, MOST_LINES) }, () => document.createElement("li")),
  );
}

function show() {
  if (!shown?.input) return;
  const { stream, source, latencies, last, began, ended, input, output } = shown;
  text("sent", count(stream.sent));
  text("answered", count(stream.answered));
  text("dropped", count(source.dropped));
  const { lost } = stream;
  const notices = [source.note, lost && `The answers of ${count(lost)} steps were lost.`];
  const notice = notices.filter(Boolean).join(" ");
  if (notice !== part("notice").textContent) text("notice", notice); // read aloud once
  if (latencies.length) {
    const sorted = [...latencies].sort((a, b) => a - b);
    text("speed", count((1000 * stream.answered) / (ended - began)));
    text("median", milliseconds(sorted[Math.floor(sorted.length / 2)]));
    text("p99", milliseconds(sorted[Math.ceil(sorted.length * 0.99) - 1]));
  }
  if (last !== null) {
    [...part("legend").children].forEach((item, i) => {
      item.textContent = `${i}: ${Number(last[i]).toPrecision(6)}`;
    });
  }
  for (const name of ["save-input", "save-output"]) part(name).disabled = false;
  const forgotten = [input, output].map((kept) => count(kept.forgotten));
  text(
    "kept",
    "Saved as .npy: every number as it was sent and received" +
      (input.forgotten || output.forgotten
        ? `, without the first ${forgotten[0]} rows of input and ${forgotten[1]} of output.`
        : "."),
  );
}

function save(name, kept) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(kept.npy());
  link.download = `${name}.npy`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// What the user does.

function showSource() {
  for (const field of document.querySelectorAll("[data-source]")) {
    field.hidden = !field.dataset.source.split(" ").includes(chosenSource());
    // What nobody sees is not checked either.
    field.querySelectorAll("input, textarea").forEach((input) => (input.disabled = field.hidden));
  }
}

part("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running === null && model !== null) start();
});
part("stop").addEventListener("click", () => running?.stop());
part("model").addEventListener("change", () =>
  describeModel().catch((error) => say(error.message, true)),
);
part("token").addEventListener("change", listModels);
part("rate").addEventListener("input", suggestSteps);
part("steps").addEventListener("input", () => (chosenSteps = true));
part("save-input").addEventListener("click", () => save("input", shown.input));
part("save-output").addEventListener("click", () => save("output", shown.output));
for (const choice of document.querySelectorAll("[name=source]")) {
  choice.addEventListener("change", showSource);
}

// A token in the fragment is sent to nobody by the browser; nor does it stay in the address.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given !== null) {
  part("token").value = given;
  history.replaceState(null, "", location.pathname + location.search);
}
showSource();
setInterval(() => running && show(), 250);
listModels();
