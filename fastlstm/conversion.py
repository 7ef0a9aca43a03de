"""Models from checkpoints: what a source gives, written to a file or run as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from fastlstm import format, spec
from fastlstm.errors import ConvertError
from fastlstm.model import Model
from fastlstm.options import Options, taking_options
from fastlstm.paths import Path, at_path, name_of
from fastlstm.quantisation import quantize

__all__ = ["convert", "from_torch"]


@taking_options
def convert(
    source: Any,
    destination: Path,
    *,
    outputs: Sequence[str] = (),
    precision: str | Mapping[str, str] | None = None,
    calibrate: Any = None,
    target_error: float | None = None,
    **options: Unpack[Options],
) -> Model:
    """Convert a trained checkpoint to a model file.

    Parameters
    ----------
    source : path, binary file, torch.nn.Module, or mapping of str to array
        A ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file (read without torch), a ``.safetensors``,
        ``.npz``, ``.onnx``, ``.keras`` or ``.h5`` file, a live module, or a state dict.
    destination : path
        The file to write; replaced whole or left as it was.
    layers : str or sequence of str, optional
        The order of the layers, which a file does not tell:
        ``"embedding, lstm, linear"``, or with the prefix of each one's tensors,
        ``"lstm:encoder.rnn, relu, linear:head"``; ``docs/layers.md`` has all words. Not needed
        for one recurrent block alone, nor for a live module, whose forward tells.
    prefix : str, optional
        Take only the tensors whose names start with it.
    nonlinearity : {"tanh", "relu"}, optional
        Of an RNN, which a file does not tell.
    ignore : sequence of str, optional
        Patterns (``fnmatch``) of tensor names that may stay unused; of a Keras file also of layers
        that are left out on your word, as a custom head, each handing on what it reads.
    dtype : {"float32", "float64"}, default "float32"
        What the model is stored and computed in.
    vocabulary : sequence of str, optional
        The text of each token of a token model, if the checkpoint holds none.
    recipe : str or path, optional
        Of cells written by hand, which tensor is which gate: a built-in recipe, as ``"keras"``,
        ``"tf1"``, ``"gluon"``, ``"d2l"`` or ``"two-linear"``, or a TOML file; ``docs/recipes.md``
        lists the first and says what is in the second. Layers that it does not name are added with
        `layers`.
    input_size : int, optional
        Features of a step, where the forward of a live module does not tell: the samples of a frame
        that convolutions see.
    inputs : mapping of str to number, array, tuple or str, optional
        Of an ONNX model, by their names, inputs that are the same in every call, as
        ``{"sr": 16000}``, and the sizes of others, as ``{"x": (1, 576)}`` or ``"1x576"``, None or
        ``?`` for what stays open. Of a live module, the shapes of what forward takes, where none
        that is tried fits.
    outputs : sequence of str, optional
        Names of the values that the model gives instead of what the source gives: layers of
        ``model.graph``, as a layer whose rows an application wants beside the last one's.
    precision, calibrate, target_error
        What to store the matrices in, as :func:`quantize` takes it; float32 if none is given.

    Returns
    -------
    Model
        The model that was written, ready to run. ``model.source["report"]`` tells what became of
        every tensor.

    Raises
    ------
    ConvertError
        If the source cannot be mapped; the message lists what was seen and what to pass.
    OSError
        If a file cannot be read or written.
    TypeError, ValueError
        If the matrices cannot be stored in that precision.
    """
    model = from_torch(source, outputs=outputs, **options)
    if precision is not None or target_error is not None:
        model = quantize(model, precision, calibrate=calibrate, target_error=target_error)
    elif calibrate is not None:
        raise ValueError("calibrate is given; expected a precision or a target_error with it")
    model.check()
    model.save(destination)
    return model


@taking_options
def from_torch(
    source: Any,
    *,
    outputs: Sequence[str] = (),
    threads: int = 1,
    isa: str | None = None,
    reproducible: bool = False,
    **options: Unpack[Options],
) -> Model:
    """A model of a live ``torch.nn.Module``, or of any other source; nothing is written.

    Parameters and errors are those of :func:`convert`, without its destination, and `threads`,
    `isa` and `reproducible` those of :func:`load`.
    """
    from fastlstm import sources  # a third of the package, which running a model does not need

    with at_path(source) as found:
        made = sources.read(found, **options)
    name = name_of(source) or type(source).__qualname__
    return Model(
        format.ModelFile(
            graph=_giving(made.graph, outputs),
            tensors=made.tensors,
            vocabulary=made.vocabulary,
            source={"from": name, "report": _report_text(made.report)} | _note_of(made.call),
        ),
        threads=threads,
        isa=isa,
        reproducible=reproducible,
    )


def _giving(graph: spec.Graph, outputs: Sequence[str]) -> spec.Graph:
    """The graph with the values of these names as its outputs; as it is, if there are none."""
    if isinstance(outputs, str):
        raise TypeError(f"outputs is the text {outputs!r:.80}; expected a list of names")
    if not outputs:
        return graph
    known = [node.name for node in graph.nodes]
    for name in outputs:
        if name not in known:
            raise ConvertError(
                f"outputs names {name!r:.80}, which is no layer; expected some of "
                f"{', '.join(map(repr, known[:16]))}{' ...' if len(known) > 16 else ''}"
            )
    if len(set(outputs)) < len(outputs):
        raise ConvertError(f"outputs names a layer twice: {', '.join(map(repr, outputs)):.200}")
    return dataclasses.replace(graph, outputs={name: name for name in outputs})


def _note_of(call: Any) -> dict[str, str]:
    """How the source is called, as a note of a model file, where it fits into one."""
    text = "" if call is None else call.to_json()
    return {"call": text} if 0 < len(text) <= format.MAX_NOTE_CHARS else {}


def _report_text(report: Sequence[str]) -> str:
    """The report as one note of a model file; what does not fit is counted."""
    kept = sorted(report, key=lambda line: line.startswith("not verified:"))
    while len(text := "\n".join(kept)) > format.MAX_NOTE_CHARS - 40:
        # What was not verified stands last, and stays longest.
        said = [n for n, line in enumerate(kept) if not line.startswith("not verified:")]
        kept.pop(said[-1] if said else -1)
    left = len(report) - len(kept)
    return text + (f"\n(and {left} more lines)" if left else "")
