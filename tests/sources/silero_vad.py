"""Voice activity, ``silero/silero_vad_16k_op15.onnx``, in the forms in which it can be used.

A call of the program is 576 samples: 64 of context and 512 new ones. Its conditions are all of
shapes, which are known; its input ``sr`` is multiplied by 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from fastlstm import spec

__all__ = ["CONTEXT", "NEW", "of_new_samples", "of_samples", "of_windows"]

Model = tuple[spec.Graph, dict[str, npt.NDArray[Any]]]

CONTEXT, NEW = 64, 512
BINS, FRAMES = 129, 4

# Names in the file -> names of the layers' tensors, where they differ.
RENAMED = {
    "model.stft.forward_basis_buffer": "model.stft.weight",
    **{
        f"model.decoder.rnn.{name}": f"model.decoder.rnn.{name}_l0"
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    },
}


def of_windows(path: Path) -> Model:
    """A row is what the program is given: the context, the new samples; h and c are held inputs."""
    rnn = spec.LSTM("model.decoder.rnn", 128, 128, initial_state="given")
    halves = np.arange(2 * 128).reshape(2, 1, 128)
    nodes = (
        spec.Node(spec.Index.of("h", halves[0]), ("state",)),
        spec.Node(spec.Index.of("c", halves[1]), ("state",)),
        *_encoder("input"),
        spec.Node(rnn, ("encoded", "h", "c")),
        *_decoder(),
    )
    inputs = (spec.Input("input", (CONTEXT + NEW,)), spec.Input("state", (2, 128), held=True))
    return spec.Graph(inputs, nodes, {"output": "voice"}), _tensors(path)


def of_new_samples(path: Path) -> Model:
    """A row is the new samples only: the context is the end of the row before."""
    new = np.arange(NEW)
    nodes = (
        spec.Node(spec.Index.of("end", new[-CONTEXT:]), ("input",)),
        spec.Node(spec.Delay("context", (CONTEXT,)), ("end",)),
        spec.Node(spec.Index.of("window", np.arange(CONTEXT + NEW)), ("context", "input")),
        *_encoder("window"),
        spec.Node(spec.LSTM("model.decoder.rnn", 128, 128), ("encoded",)),
        *_decoder(),
    )
    graph = spec.Graph((spec.Input("input", (NEW,)),), nodes, {"output": "voice"})
    return graph, _tensors(path)


def of_samples(path: Path) -> Model:
    """A row is one sample: there is a window of them, and a row that is given, every 512 steps."""
    nodes = (
        spec.Node(spec.Window("window", CONTEXT + NEW, stride=NEW, padding=CONTEXT), ("input",)),
        *_encoder("window"),
        spec.Node(spec.LSTM("model.decoder.rnn", 128, 128), ("encoded",)),
        *_decoder(),
    )
    return spec.Graph((spec.Input("input", ()),), nodes, {"output": "voice"}), _tensors(path)


def _encoder(samples: str) -> list[spec.Node]:
    """From rows (576,) to ``"encoded"``, rows (128,)."""
    padded = np.pad(np.arange(CONTEXT + NEW), (0, 64), mode="reflect")
    spectrum = np.arange(2 * BINS * FRAMES).reshape(2, BINS, FRAMES)
    stft = spec.Convolution("model.stft", 1, 2 * BINS, (256,), bias=False, stride=(128,))
    nodes = [
        spec.Node(spec.Index.of("padded", padded[None]), (samples,)),
        spec.Node(stft, ("padded",)),
        spec.Node(spec.Index.of("real", spectrum[0]), ("model.stft",)),
        spec.Node(spec.Index.of("imaginary", spectrum[1]), ("model.stft",)),
        spec.Node(spec.Activation("real.squared", "square"), ("real",)),
        spec.Node(spec.Activation("imaginary.squared", "square"), ("imaginary",)),
        spec.Node(spec.Arithmetic("power", "add"), ("real.squared", "imaginary.squared")),
        spec.Node(spec.Activation("magnitude", "sqrt"), ("power",)),
    ]
    read = "magnitude"
    for n, (channels, out, stride) in enumerate(
        [(BINS, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1)]
    ):
        convolution, relu = f"model.encoder.{n}.reparam_conv", f"model.encoder.{n}.activation"
        layer = spec.Convolution(
            convolution, channels, out, (3,), stride=(stride,), padding=((1, 1),)
        )
        nodes += [
            spec.Node(layer, (read,)),
            spec.Node(spec.Activation(relu, "relu"), (convolution,)),
        ]
        read = relu
    return [*nodes, spec.Node(spec.Index.of("encoded", np.arange(128)), (read,))]


def _decoder() -> list[spec.Node]:
    """From the rows of the recurrence to ``"voice"``, rows (1,)."""
    column = np.arange(128).reshape(128, 1)
    return [
        spec.Node(spec.Activation("model.decoder.decoder.1", "relu"), ("model.decoder.rnn",)),
        spec.Node(spec.Index.of("column", column), ("model.decoder.decoder.1",)),
        spec.Node(spec.Convolution("model.decoder.decoder.2", 128, 1, (1,)), ("column",)),
        spec.Node(spec.Activation("likely", "sigmoid"), ("model.decoder.decoder.2",)),
        spec.Node(spec.Reduce("voice", "mean"), ("likely",)),
    ]


def _tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    return {
        RENAMED.get(tensor.name, tensor.name): numpy_helper.to_array(tensor)
        for tensor in onnx.load(path).graph.initializer
    }
