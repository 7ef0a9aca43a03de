// The input and the outputs of a stream over its last steps, on a canvas.

const COLUMNS = 600;
const SECONDS = 5; // that are seen at once of what has a pace, if a column is a step or more
const MOST_DRAWN = 512; // outputs
const GAP = 10; // CSS pixels
const HEAT = ["--heat-least", "--heat-zero", "--heat-most"];

export const MOST_LINES = 8; // more outputs are drawn as a heat map

/** The least and the greatest number of some lines in each of the last columns. */
class History {
  constructor(lines) {
    this.lines = lines;
    this.least = new Float32Array(COLUMNS * lines).fill(NaN);
    this.greatest = new Float32Array(COLUMNS * lines).fill(NaN);
    this.newest = -1;
  }

  put(column, line, number) {
    for (; this.newest < column; this.newest++) {
      const at = this.#at(this.newest + 1, 0);
      this.least.fill(NaN, at, at + this.lines);
      this.greatest.fill(NaN, at, at + this.lines);
    }
    if (column <= this.newest - COLUMNS || !Number.isFinite(number)) return;
    const at = this.#at(column, line);
    if (!(this.least[at] <= number)) this.least[at] = number;
    if (!(this.greatest[at] >= number)) this.greatest[at] = number;
  }

  /** Where a column's number lies; -1 if it is none of the last ones. */
  of(column, line) {
    return column > this.newest || column <= this.newest - COLUMNS ? -1 : this.#at(column, line);
  }

  range() {
    let [low, high] = [Infinity, -Infinity];
    for (let i = 0; i < this.least.length; i++) {
      if (this.least[i] < low) low = this.least[i];
      if (this.greatest[i] > high) high = this.greatest[i];
    }
    if (low > high) return [NaN, NaN];
    return low === high ? [low - 0.5, high + 0.5] : [low, high];
  }

  #at(column, line) {
    return (column % COLUMNS) * this.lines + line;
  }
}

export class Plot {
  #canvas;
  #pen;
  #asked = false;
  #heat = new OffscreenCanvas(1, 1);

  constructor(canvas) {
    this.#canvas = canvas;
    this.#pen = canvas.getContext("2d");
    this.start(1, 0, COLUMNS);
    new ResizeObserver(() => this.#ask()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#ask());
  }

  /**
   * @param {number} outputs  numbers in a row
   * @param {number} pace  steps a second; 0 if there is none: then all steps are seen at once
   * @param {number} steps
   */
  start(outputs, pace, steps) {
    const perColumn = pace ? Math.round((pace * SECONDS) / COLUMNS) : Math.ceil(steps / COLUMNS);
    this.stepsPerColumn = Math.max(1, perColumn);
    this.columns = Math.min(COLUMNS, Math.ceil(steps / this.stepsPerColumn));
    this.outputs = outputs;
    this.input = new History(1);
    this.output = new History(Math.min(outputs, MOST_DRAWN));
    this.#ask();
  }

  sent(rows, rowSize, start) {
    for (let i = 0; i < rows.length; i++) {
      this.input.put(this.#column(start + Math.floor(i / rowSize)), 0, Number(rows[i]));
    }
    this.#ask();
  }

  /** Rows that `steps` steps gave: as many as these, or fewer or more. */
  answered(rows, start, steps) {
    const count = rows.length / this.outputs;
    for (let row = 0; row < count; row++) {
      const column = this.#column(start + Math.floor((row * steps) / count));
      for (let line = 0; line < this.output.lines; line++) {
        this.output.put(column, line, Number(rows[row * this.outputs + line]));
      }
    }
    this.#ask();
  }

  #column(step) {
    return Math.floor(step / this.stepsPerColumn);
  }

  #ask() {
    if (this.#asked) return;
    this.#asked = true;
    requestAnimationFrame(() => {
      this.#asked = false;
      this.#draw();
    });
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const dots = window.devicePixelRatio || 1;
    const [wide, high] = [Math.round(width * dots), Math.round(height * dots)];
    if (this.#canvas.width !== wide || this.#canvas.height !== high) {
      [this.#canvas.width, this.#canvas.height] = [wide, high];
    }
    const pen = this.#pen;
    pen.setTransform(dots, 0, 0, dots, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = "12px system-ui, sans-serif";
    const text = 18;
    const newest = Math.max(this.input.newest, this.output.newest, this.columns - 1);
    const inputHeight = Math.round((height - 3 * text) * 0.22);
    const input = { left: 0, top: text, width, height: inputHeight };
    const top = input.top + inputHeight + GAP + text;
    const output = { left: 0, top, width, height: height - text - top };
    this.#lines(this.input, input, newest, ["--input"]);
    this.#label("input", this.input.range(), input);
    if (this.outputs <= MOST_LINES) {
      const colours = Array.from({ length: this.outputs }, (_, i) => `--line-${i + 1}`);
      this.#lines(this.output, output, newest, colours);
      this.#label("output", this.output.range(), output);
    } else {
      const drawn = this.output.lines;
      const name = `outputs 0 to ${drawn - 1}${drawn < this.outputs ? ` of ${this.outputs}` : ""}`;
      this.#label(name, this.#heatMap(output, newest), output);
      this.#ramp(pen.measureText(name).width + 10, output.top - 14);
    }
    pen.fillStyle = this.#colour("--faint");
    pen.textBaseline = "bottom";
    pen.textAlign = "left";
    const first = (newest - this.columns + 1) * this.stepsPerColumn;
    pen.fillText(`step ${first.toLocaleString("en")}`, 0, height);
    pen.textAlign = "right";
    pen.fillText(((newest + 1) * this.stepsPerColumn).toLocaleString("en"), width, height);
  }

  #colour(name) {
    return getComputedStyle(this.#canvas).getPropertyValue(name).trim();
  }

  #label(name, [low, high], box) {
    const pen = this.#pen;
    pen.fillStyle = this.#colour("--faint");
    pen.textBaseline = "alphabetic";
    pen.textAlign = "left";
    pen.fillText(name, box.left, box.top - 5);
    pen.textAlign = "right";
    if (low < high) {
      const words = `${low.toPrecision(3)} to ${high.toPrecision(3)}`;
      pen.fillText(words, box.left + box.width, box.top - 5);
    }
    pen.strokeStyle = this.#colour("--edge");
    pen.lineWidth = 1;
    pen.strokeRect(box.left + 0.5, box.top + 0.5, box.width - 1, box.height - 1);
  }

  /** Which colours a heat map has, from the least to the greatest number. */
  #ramp(left, top) {
    const ramp = this.#pen.createLinearGradient(left, 0, left + 72, 0);
    HEAT.forEach((name, i) => ramp.addColorStop(i / 2, this.#colour(name)));
    this.#pen.fillStyle = ramp;
    this.#pen.fillRect(left, top, 72, 9);
  }

  #lines(history, box, newest, colours) {
    const [low, high] = history.range();
    const [scale, bottom] = [(box.height - 8) / (high - low), box.top + box.height - 4];
    const y = (number) => bottom - (number - low) * scale;
    const pen = this.#pen;
    pen.lineWidth = 1.5;
    pen.lineJoin = "round";
    colours.forEach((colour, line) => {
      pen.strokeStyle = this.#colour(colour);
      pen.beginPath();
      let drawing = false;
      for (let i = 0; i < this.columns; i++) {
        const at = history.of(newest - this.columns + 1 + i, line);
        if (at < 0 || Number.isNaN(history.least[at])) {
          drawing = false;
          continue;
        }
        const x = box.left + ((i + 0.5) * box.width) / this.columns;
        const [least, greatest] = [y(history.least[at]), y(history.greatest[at])];
        if (drawing) pen.lineTo(x, greatest);
        else pen.moveTo(x, greatest);
        pen.lineTo(x, least === greatest ? least + 0.01 : least);
        drawing = true;
      }
      pen.stroke();
    });
  }

  /** Draw one row of cells an output; the range of their colours. */
  #heatMap(box, newest) {
    const { lines, least, greatest } = this.output;
    const [low, high] = this.output.range();
    const most = Math.max(Math.abs(low), Math.abs(high));
    const [cold, zero, hot] = HEAT.map((name) =>
      this.#colour(name)
        .match(/[\da-f]{2}/gi)
        .map((digits) => parseInt(digits, 16)),
    );
    const image = new ImageData(this.columns, lines);
    for (let i = 0; i < this.columns; i++) {
      for (let line = 0; line < lines; line++) {
        const at = this.output.of(newest - this.columns + 1 + i, line);
        if (at < 0 || Number.isNaN(least[at])) continue;
        const share = (least[at] + greatest[at]) / 2 / most;
        const far = share < 0 ? cold : hot;
        const pixel = (line * this.columns + i) * 4;
        for (let c = 0; c < 3; c++) {
          image.data[pixel + c] = zero[c] + (far[c] - zero[c]) * Math.abs(share);
        }
        image.data[pixel + 3] = 255;
      }
    }
    [this.#heat.width, this.#heat.height] = [this.columns, lines];
    this.#heat.getContext("2d").putImageData(image, 0, 0);
    this.#pen.imageSmoothingEnabled = false;
    this.#pen.drawImage(this.#heat, box.left, box.top, box.width, box.height);
    return [-most, most];
  }
}
