// Rows that went by, kept so that they can be saved: as .npy, which NumPy's load opens.

const MOST_BYTES = 2 ** 26;

const DESCRIPTIONS = { FP32: "<f4", FP64: "<f8", INT64: "<i8" };

export class Kept {
  #parts = [];
  #bytes = 0;

  /**
   * @param {object} tensor  as the server's hello has it: datatype, shape of a row
   */
  constructor({ datatype, shape }) {
    [this.datatype, this.shape] = [datatype, shape];
    this.rowSize = shape.reduce((product, n) => product * n, 1);
    this.forgotten = 0; // rows, the oldest ones
  }

  put(rows) {
    this.#parts.push(rows);
    this.#bytes += rows.byteLength;
    while (this.#bytes > MOST_BYTES) {
      const oldest = this.#parts.shift();
      this.#bytes -= oldest.byteLength;
      this.forgotten += oldest.length / this.rowSize;
    }
  }

  /** A file of all rows, in NumPy's format version 1.0 (numpy.lib.format). */
  npy() {
    const rows = this.#parts.reduce((count, part) => count + part.length, 0) / this.rowSize;
    const shape = `(${[rows, ...this.shape].join(", ")},)`;
    const type = DESCRIPTIONS[this.datatype];
    const header = `{'descr': '${type}', 'fortran_order': False, 'shape': ${shape}}`;
    const size = Math.ceil((10 + header.length + 1) / 64) * 64 - 10;
    const start = [new Uint8Array([0x93]), "NUMPY", new Uint8Array([1, 0, size & 255, size >> 8])];
    return new Blob([...start, header.padEnd(size - 1), "\n", ...this.#parts]);
  }
}
