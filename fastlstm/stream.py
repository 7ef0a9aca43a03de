"""Stream: a model and its state, advanced step by step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastlstm import _engine, format
from fastlstm import chain as spec

if TYPE_CHECKING:
    from fastlstm.model import Model

__all__ = ["Stream", "block_from_state", "state_from_block"]

Array = npt.NDArray[Any]


def _pieces(model: Model) -> list[tuple[str, int, int, slice]]:
    """(name, N * D, size, columns of the block) of every state array, in the block's order."""
    pieces, first = [], 0
    for layer in model.layers:
        for name, (depth, size) in layer.state().items():
            pieces.append((name, depth, size, slice(first, first + depth * size)))
            first += depth * size
    return pieces


def state_from_block(model: Model, block: Array, batched: bool) -> dict[str, Array]:
    """The engine's (B, state_size) block as arrays (N * D, B, size), or its row's (N * D, size)."""
    state = {}
    for name, depth, size, columns in _pieces(model):
        rows = block[:, columns].reshape(len(block), depth, size)
        state[name] = np.ascontiguousarray(rows.transpose(1, 0, 2) if batched else rows[0])
    return state


def block_from_state(
    model: Model, state: Any, batch_size: int | None, *, together: bool = True
) -> Array:
    """The inverse of :func:`state_from_block`; names, dtypes and shapes must be right.

    So must counts of steps: whole numbers, and, of rows that step `together`, the same for every
    row, where the number of outputs of a call depends on them.
    """
    expected = {name: (depth, size) for name, depth, size, _ in _pieces(model)}
    if not isinstance(state, Mapping):
        raise TypeError(
            f"state is a {type(state).__qualname__}; expected a mapping with the arrays "
            f"{_listed(expected)}"
        )
    if set(state) != set(expected):
        raise ValueError(
            f"state has the arrays {_listed(state)}; this model's state is {_listed(expected)}. "
            f"A state belongs to the model that made it"
        )
    B = 1 if batch_size is None else batch_size
    block = np.empty((B, sum(d * s for d, s in expected.values())), model.dtype)
    for name, depth, size, columns in _pieces(model):
        array = _engine.as_plain(
            f"state {name!r}", state[name], f"a plain NumPy array of {model.dtype}, without a mask"
        )
        shape = (depth, size) if batch_size is None else (depth, batch_size, size)
        if array.dtype != model.dtype:
            raise TypeError(
                f"state {name!r} is of {array.dtype}; expected a NumPy array of {model.dtype}"
            )
        if array.shape != shape:
            raise ValueError(f"state {name!r} has shape {array.shape}; expected {shape}")
        rows = array.reshape(depth, B, size).transpose(1, 0, 2)
        block[:, columns] = rows.reshape(B, depth * size)
    _check_counts(model, state, together)
    return block


def _check_counts(model: Model, state: Mapping[str, Array], together: bool) -> None:
    in_step = together and (model.delay > 0 or model.step_stride > 1)
    for layer in model.layers:
        for name, bound in layer.counts().items():
            counts = np.asarray(state[name])
            if not np.all((counts >= 0) & (counts <= bound - 1) & (counts == np.floor(counts))):
                raise ValueError(
                    f"state {name!r} counts steps; expected whole numbers from 0 to {bound - 1}"
                )
            if in_step and counts.ndim == 3 and (counts != counts[:, :1]).any():
                raise ValueError(
                    f"state {name!r} has rows that have read different numbers of steps; expected "
                    f"the same for all, since this model does not give an output for every step"
                )


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"


class Stream(_engine.Stream):
    """One live sequence, or a batch of them that step together: a model plus its state.

    Made by :meth:`fastlstm.Model.stream`. The state starts at zero. A stream belongs to one thread
    at a time; the model behind it can be shared by any number of streams and threads.

    Parameters
    ----------
    model : Model
        Not bidirectional.
    batch_size : int, optional
        Rows that step together. Without it the stream is unbatched and its arrays have no B axis.

    Raises
    ------
    TypeError, ValueError
        If the model is bidirectional, or `batch_size` not an integer of at least 1.

    Attributes
    ----------
    steps : int
        Steps made since the stream was, or since all its rows were reset; a clone counts on from
        what it was made of, and a state that is assigned or loaded changes no count. After a call
        that a signal interrupted, it tells how many of its steps were made.

    Examples
    --------
    >>> stream = model.stream()
    >>> y_t = stream.step(x_t)          # (I,) -> (O,)
    """

    __slots__ = ("_model",)

    _model: Model

    def __new__(cls, model: Model, batch_size: int | None = None) -> Stream:
        if why := spec.looks_ahead(model.layers):
            raise ValueError(
                f"{why}, so there is no output before the whole sequence is known; call "
                f"model(x) with whole sequences instead"
            )
        self: Stream = super().__new__(cls, model._network, batch_size)
        self._model = model
        return self

    @property
    def model(self) -> Model:
        """The model this stream runs."""
        return self._model

    @property
    def state(self) -> dict[str, Array]:
        """A copy of the state: ``{"<layer>.h": (N * D, B, size), "<layer>.c": …}``.

        Without the B axis if the stream is unbatched. Assigning such a mapping replaces the state.

        Raises
        ------
        TypeError, ValueError
            On assignment, if an array is missing, unknown, or of another dtype or shape.
        """
        return state_from_block(self._model, self.read_block(), self.batch_size is not None)

    @state.setter
    def state(self, state: Mapping[str, Array]) -> None:
        self.write_block(block_from_state(self._model, state, self.batch_size))

    def clone(self) -> Stream:
        """A new stream of the same model, in the same state."""
        twin = Stream(self._model, self.batch_size)
        twin.write_block(self.read_block(), self.steps)
        return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file, whole or not at all.

        Raises
        ------
        OSError
            If the file cannot be written; a file that was there before stays whole.
        """
        format.write_state(path, self.state, {"fingerprint": self._model.fingerprint})

    def load(self, path: str | os.PathLike[str]) -> None:
        """Replace the state by one that :meth:`save` wrote for the same model and batch size.

        Raises
        ------
        FormatError
            If the file is not a sound saved state, or was saved by a stream of another model.
        TypeError, ValueError
            If its arrays do not fit, for example for another batch size.
        """
        state, metadata = format.read_state(path)
        if metadata.get("fingerprint") != self._model.fingerprint:
            raise format.FormatError(
                f"{os.fspath(path)!r} is the state of another model; expected one that a stream "
                f"of this model, with these very weights, saved"
            )
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._model, self.batch_size, self.read_block(), self.steps)

    def __repr__(self) -> str:
        batch = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        return f"<fastlstm.Stream of {self._model!r}{batch}>"


def _restore(model: Model, batch_size: int | None, block: Array, steps: int) -> Stream:
    stream = Stream(model, batch_size)
    stream.write_block(block, steps)
    return stream
