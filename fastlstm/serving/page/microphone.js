// The microphone's samples, in blocks of as many as the page sends at once.

class Microphone extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.size = processorOptions.samples;
    this.block = new Float32Array(this.size);
    this.filled = 0;
  }

  process([[channel]]) {
    for (let start = 0; channel && start < channel.length; ) {
      const part = channel.subarray(start, start + this.size - this.filled);
      this.block.set(part, this.filled);
      start += part.length;
      this.filled += part.length;
      if (this.filled === this.size) {
        this.port.postMessage(this.block, [this.block.buffer]);
        this.block = new Float32Array(this.size);
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);
