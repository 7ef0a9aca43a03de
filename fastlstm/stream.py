"""Stream: a model and its state, advanced step by step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from fastlstm import _engine, format
from fastlstm.arrays import offered
from fastlstm.packed import PackedGraph
from fastlstm.paths import Path
from fastlstm.stream_bytes import dumped, loaded

__all__ = ["Stream"]

Array = npt.NDArray[Any]


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
    held : mapping of str to array (B, ...) or (...), optional
        Of every input that is held for a sequence, if the model has some.

    Raises
    ------
    TypeError, ValueError
        If the model is bidirectional, `batch_size` not an integer of at least 1, or `held` lacks
        an input or does not fit.

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

    _model: PackedGraph

    def __new__(
        cls,
        model: PackedGraph,
        batch_size: int | None = None,
        held: Mapping[str, Array] | None = None,
    ) -> Stream:
        model.check_streams()
        self: Stream = super().__new__(cls, model._network, batch_size, held)
        self._model = model
        return self

    @property
    def model(self) -> Any:
        """The :class:`fastlstm.Model` that this stream runs."""
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
        return self._model.state_arrays(self.read_block(), self.batch_size is not None)

    @state.setter
    def state(self, state: Mapping[str, Array]) -> None:
        self.write_block(self._model.state_block(state, self.batch_size))

    def reset(self, rows: Any = None, *, held: Mapping[str, Array] | None = None) -> None:
        super().reset(offered("rows", rows), held=held)

    reset.__doc__ = _engine.Stream.reset.__doc__

    def clone(self) -> Stream:
        """A new stream of the same model, in the same state."""
        twin = Stream(self._model, self.batch_size, self.held_values())
        twin.write_block(self.read_block(), self.steps)
        return twin

    def save(self, path: Path) -> None:
        """Write the state to a file, whole or not at all.

        Raises
        ------
        OSError
            If the file cannot be written; a file that was there before stays whole.
        """
        format.write_state(path, self.state, {"fingerprint": self._model.fingerprint})

    def load(self, path: Path) -> None:
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
                f"{os.fsdecode(path)!r} is the state of another model; expected one that a stream "
                f"of this model, with these very weights, saved"
            )
        self.state = state

    def dumps(self) -> bytes:
        """The stream as bytes: its state and the steps that it has made.

        They are 68 bytes more than the arrays of :attr:`state`, name the model by its fingerprint,
        and are the same on every machine; docs/state_formats.md has the layout.
        """
        return dumped(self._model, self.read_block(), self.steps, self.batch_size)

    def loads(self, data: Any) -> None:
        """Go on from what :meth:`dumps` gave, of this stream or of another of the same model.

        What is held for the sequence comes with it, as with :attr:`state`: :meth:`reset` puts back
        what was held here.

        Parameters
        ----------
        data : bytes-like
            Untrusted: all of it is checked first.

        Raises
        ------
        TypeError
            If it is not bytes.
        FormatError
            If the bytes are damaged, of another model, or of another number of rows. Nothing has
            changed then.
        """
        self.write_block(*loaded(self._model, data, self.batch_size))

    def __reduce__(self) -> tuple[Any, ...]:
        held = self.held_values()
        return _restore, (self._model, self.batch_size, held, self.read_block(), self.steps)

    def __repr__(self) -> str:
        batch = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        return f"<fastlstm.Stream of {self._model!r}{batch}>"


def _restore(
    model: PackedGraph,
    batch_size: int | None,
    held: Mapping[str, Array],
    block: Array,
    steps: int,
) -> Stream:
    stream = Stream(model, batch_size, held)
    stream.write_block(block, steps)
    return stream
