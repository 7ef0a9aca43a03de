"""A file of Keras as a program, run by Keras itself."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MISSING", "KerasProgram"]

Array = npt.NDArray[Any]

MISSING = "running a Keras file needs keras, and torch or another backend: pip install keras torch"

_BACKENDS = ("torch", "tensorflow", "jax")


class KerasProgram:
    """A model of Keras, loaded from its file.

    What it is called with, and what it gives, has the names and the order that the conversion of
    the file found. Loading a file is left to Keras: it runs no code that the file holds.

    Parameters
    ----------
    path : path
        A ``.keras`` or ``.h5`` file.
    arguments, outputs : sequence of str
        Names of all inputs and outputs, in the file's order: those of a
        :class:`~fastlstm.sources.conversion.Call`.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
        Of its arithmetic.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If Keras is missing or cannot load the file, or computes something else of it than the
        version that wrote it; or if it has other inputs or outputs.
    """

    def __init__(
        self, path: str | os.PathLike[str], arguments: Sequence[str], outputs: Sequence[str]
    ) -> None:
        with open(path, "rb"):
            pass  # the message for a missing file is the system's
        keras = _keras()
        _refuse_other_version(path, keras.__version__)
        file = Path(path).name
        try:
            # It warns of .h5 files, and of what a model was trained with.
            with contextlib.redirect_stderr(io.StringIO()):
                self._model = keras.saving.load_model(os.fspath(path), compile=False)
        except Exception as error:  # whatever the classes in the file raise
            raise ValueError(f"keras cannot load {file!r:.200}: {error!s:.300}") from None
        self._keras = keras
        self._arguments, self._outputs = tuple(arguments), tuple(outputs)
        for what, names, own in (
            ("inputs", self._arguments, self._model.inputs),
            ("outputs", self._outputs, self._model.outputs),
        ):
            if len(names) != len(own):
                raise ValueError(
                    f"{file!r:.200} has {len(own)} {what}; expected {len(names)}: "
                    f"{', '.join(names)}"
                )
        self.name = f"keras {keras.__version__} with {keras.backend.backend()}"
        self.dtype = np.dtype(str(self._model.compute_dtype))

    def start(self) -> None:
        """Forget what stateful layers remember."""
        for layer in self._model._flatten_layers():
            if getattr(layer, "stateful", False) and hasattr(layer, "reset_states"):
                layer.reset_states()

    def size_of(self, argument: str, axis: int) -> int | None:
        """The only size that an axis of an input can have, where the file says so."""
        shape = self._inputs()[argument].shape
        size = shape[axis] if axis < len(shape) else None
        return int(size) if size is not None else None

    def _inputs(self) -> dict[str, Any]:
        """The symbolic tensors of its inputs by the conversion's names."""
        return dict(zip(self._arguments, self._in_order(self._model.inputs), strict=True))

    def _in_order(self, tensors: Sequence[Any]) -> list[Any]:
        """Inputs in the file's order: Keras sorts those of a mapping by name."""
        struct = getattr(self._model, "_inputs_struct", None)
        if isinstance(struct, dict):
            return [struct[name] for name in self._arguments]
        return list(tensors)

    def call(self, session: None, arguments: Mapping[str, Any]) -> dict[str, Array]:
        """All outputs by name, of the inputs by name."""
        given = {
            name: np.asarray(arguments[name]).astype(str(tensor.dtype))
            for name, tensor in self._inputs().items()
        }
        struct = getattr(self._model, "_inputs_struct", None)
        values: Any = given if isinstance(struct, dict) else list(given.values())
        if not isinstance(struct, dict | list | tuple):
            (values,) = given.values()
        made = self._model(values, training=False)
        if isinstance(made, dict):
            listed = [made[name] for name in self._outputs]
        else:
            listed = self._keras.tree.flatten(made)
        return {
            name: np.array(self._keras.ops.convert_to_numpy(y))
            for name, y in zip(self._outputs, listed, strict=True)
        }


def _keras() -> Any:
    """Keras with a backend that is installed."""
    if importlib.util.find_spec("keras") is None:
        raise ValueError(MISSING)
    if "keras" not in sys.modules and "KERAS_BACKEND" not in os.environ:
        for backend in _BACKENDS:
            if importlib.util.find_spec(backend) is not None:
                os.environ["KERAS_BACKEND"] = backend
                break
    try:
        import keras
    except ImportError as error:
        raise ValueError(f"{MISSING} ({error})") from None
    return keras


# Names of functions that Keras 2 and 3 compute otherwise.
_DIFFERS = b"hard_sigmoid"


def _refuse_other_version(path: str | os.PathLike[str], installed: str) -> None:
    """Refuse a file of Keras 2 whose numbers Keras 3 does not give."""
    with open(path, "rb") as file:
        if file.read(2) == b"PK":
            with zipfile.ZipFile(path) as archive:
                version = archive.read("metadata.json")
                text = archive.read("config.json")
        else:
            import h5py

            with h5py.File(os.fspath(path), "r") as root:
                text = _bytes(root.attrs.get("model_config", b""))
                groups = (root, root.get("model_weights", root))
                versions = [_bytes(group.attrs.get("keras_version", b"")) for group in groups]
                version = max(versions)
    old = b'"keras_version": "2' in version or version.startswith(b"2")
    if old and installed.startswith("3") and _DIFFERS in text:
        raise ValueError(
            f"the file was written by Keras 2, whose hard_sigmoid is another one than that of "
            f"keras {installed}, which is installed; expected tf_keras, which is Keras 2, or "
            f"numbers that were recorded"
        )


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
