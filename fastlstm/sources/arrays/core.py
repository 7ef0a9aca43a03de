"""What every operation of a builder needs: names, inputs, movement, and rows read and given."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import places as at
from fastlstm.sources.arrays.loops import Loops
from fastlstm.sources.arrays.places import ANY, FILL, Columns, Frame
from fastlstm.sources.arrays.rows import Made, Rows

__all__ = ["Core", "Operand", "ShortError", "SizeError", "Value", "check_size"]

Array = npt.NDArray[Any]

MAX_NUMBERS = 2**25  # in an array of places
MAX_OPERATIONS = 2**16


class SizeError(ConvertError):
    """An axis has a size that weights contradict; of an input whose size is not known, it tells."""

    def __init__(self, message: str, got: int, needed: int) -> None:
        super().__init__(message)
        self.got, self.needed = got, needed


class ShortError(ConvertError):
    """A kernel reaches further than the steps of the run: a run of more steps may do."""

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


@dataclass(eq=False)
class Value:
    """An array of a program that depends on its inputs.

    Parameters
    ----------
    places : int64 array
        Of the shape the array has in this run.
    kind : {"float", "int", "bool"}
    """

    places: Array
    kind: str = "float"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.places.shape

    @property
    def ndim(self) -> int:
        return self.places.ndim


Operand = Any  # a Value, or what NumPy takes as an array


class Core:
    """What operations share.

    Parameters
    ----------
    batch, steps : int
        Sizes of this run; `steps` is 0 where a call of the program is one step.
    before : Core, optional
        A run before of the same program, whose rows may be read before they are made.
    may_be_longer : bool
        Whether a run of more steps can be had.
    """

    def __init__(
        self,
        batch: int,
        steps: int,
        before: Core | None = None,
        *,
        may_be_longer: bool = False,
    ) -> None:
        self.batch, self.steps, self.may_be_longer = batch, steps, may_be_longer
        self.rows: Rows = Rows(before.rows if before else None)
        self.loops = Loops(self.rows)
        self.notes: dict[str, None] = {}
        # Places of what whole recurrences leave, beside their outputs.
        self.last_states: list[Array] = []
        self._at: list[tuple[str, str]] = []
        self.derived_arrays: dict[Any, tuple[Array, Array]] = {}  # may be shared by runs
        self.operations = 0
        self.flattens = False  # whether all steps of a sequence were taken into one row

    # Names

    @contextlib.contextmanager
    def at(self, name: str, label: str = "") -> Iterator[None]:
        """Layers that are made inside are called so, and errors say where they come from."""
        self._at.append((name, label or name))
        try:
            yield
        except ConvertError as error:
            if not getattr(error, "placed", False):
                error.args = (f"{label or name} is not converted: {error}",)
                error.placed = True  # type: ignore[attr-defined]
            raise
        finally:
            self._at.pop()

    def name(self, array: Array, name: str) -> Array:
        """Tell what the source calls an array; the same array."""
        self.rows.names[id(array)] = (array, name)
        return array

    def note(self, text: str) -> None:
        """A sentence for the report."""
        self.notes[text] = None

    @property
    def layer_name(self) -> str:
        """What the next layer is called."""
        return self._at[-1][0] if self._at else "row"

    def derived(self, array: Array, how: str, function: Callable[[Array], Array]) -> Array:
        """An array made of another one; the same array each time."""
        key = (id(array), how)
        if key not in self.derived_arrays:
            self.derived_arrays[key] = (array, np.ascontiguousarray(function(array)))
        return self.derived_arrays[key][1]

    # Inputs

    def input(
        self, name: str, axes: Sequence[str | int], *, kind: str = "float", held: bool = False
    ) -> Value:
        """An array (axes), each of them "batch", "time", or the size of an axis of a row."""
        sizes = [n for n in axes if isinstance(n, int)]
        shape = tuple(n for n in sizes if n != 1) or ((1,) if kind == "float" else ())
        made = self.rows.add(Made(name, shape, 0 if held else max(self.steps, 1)))
        made.tokens = None if kind == "float" else 0
        roles = {"batch": self.batch, "time": self.steps}
        full = [roles[n] if isinstance(n, str) else n for n in axes]
        check_size(full)
        first: dict[str | int, int] = {"batch": 0, "time": 1}
        order = sorted(range(len(axes)), key=lambda n: first.get(axes[n], 2))
        b = np.arange(self.batch if "batch" in axes else 1).reshape(-1, 1, 1)
        t = np.full((1, 1, 1), ANY)
        if not held:
            t = np.arange(self.steps if "time" in axes else 1).reshape(1, -1, 1)
        offset = np.arange(math.prod(sizes)).reshape(1, 1, -1)
        of_batch = b if "batch" in axes or self.batch == 1 else None
        places = at.packed(self.rows.number(made.name), offset, of_batch, t)
        places = places.reshape([full[n] for n in order]).transpose(np.argsort(order))
        return Value(np.ascontiguousarray(places), kind)

    def state(self, name: str, axes: Sequence[str | int]) -> Value:
        """An array that the call before has left, of which the batch may be an axis."""
        sizes = [n for n in axes if isinstance(n, int)]
        full = [n if isinstance(n, int) else self.batch for n in axes]
        check_size(full)
        size = max(math.prod(sizes), 1)
        self.rows.add(Made(name, (size,), max(self.steps, 1), is_state=True))
        offset = np.arange(math.prod(sizes)).reshape([n if isinstance(n, int) else 1 for n in axes])
        batch = None
        if "batch" in axes:
            ones = [self.batch if n == "batch" else 1 for n in axes]
            batch = np.arange(self.batch).reshape(ones)
        places = at.packed(self.rows.number(name), offset, batch, 0)
        return Value(np.ascontiguousarray(np.broadcast_to(places, full)))

    # Movement

    def move(self, function: Callable[..., Any], *arrays: Operand) -> Any:
        """What a movement of numbers makes of arrays: one array, or a list of them.

        A number that comes from nowhere has to be `FILL`, where one of the arrays is a `Value`.
        """
        self.count()
        values = [array for array in arrays if isinstance(array, Value)]
        if not values:
            return function(*arrays)
        kinds = {value.kind for value in values}
        kind = kinds.pop() if len(kinds) == 1 else "float"
        try:
            moved = function(*(self.places(array) for array in arrays))
        except (ValueError, IndexError) as error:  # of NumPy: shapes that do not fit
            raise ConvertError(str(error)) from None
        if isinstance(moved, list | tuple):
            return [Value(one, kind) for one in moved]
        check_size(moved.shape)
        return Value(moved, kind)

    def places(self, array: Operand) -> Array:
        """The places of an array; those of a constant are rows of their own."""
        if isinstance(array, Value):
            return array.places
        array = np.asarray(array)
        check_size(array.shape)
        if not array.any():
            return np.full(array.shape, FILL)
        if array.dtype == bool:
            array = array.astype(np.float32)
        if array.ndim == 1 and self.batch > 1 and array.size % self.batch == 0:
            # Memory that holds the same for each row of the batch, one behind the other.
            rows = array.reshape(self.batch, -1)
            if rows.shape[1] and _is_same(rows, 0):
                return self.places(rows).reshape(-1)
        # An axis along which nothing changes, as that of the batch, is none of the row.
        same = [n for n in range(array.ndim) if array.shape[n] > 1 and _is_same(array, n)]
        kept = array
        if same:
            first = tuple(slice(0, 1) if n in same else slice(None) for n in range(array.ndim))
            kept = self.derived(array, f"without {same}", lambda a: a[first])
        row = self.rows.constant(kept, f"{self.layer_name}.constant")
        offset = np.arange(kept.size).reshape(kept.shape)
        made = at.packed(self.rows.number(row.name), offset, None, ANY)
        return np.broadcast_to(np.where(kept == 0, FILL, made), array.shape)

    # Reading rows and giving them

    def frame(self, arrays: Sequence[Array], core: int = 0) -> Frame:
        """What the axes of arrays are, but for the last `core`."""
        arrays = [self.rolled(array) for array in arrays]
        counts = self.rows.counts if self.steps else None
        return at.frame(arrays, batch=self.batch, counts=counts, core=core)

    def layer(
        self,
        layer: spec.Layer,
        arrays: Sequence[Array],
        tensors: Mapping[str, Array] | None = None,
        *,
        core: int = 0,
        gives: Sequence[int] = (),
    ) -> Value:
        """What a layer of one step makes of arrays of places that broadcast.

        Parameters
        ----------
        layer : spec.Layer
            That works on the last `core` axes of a row, whatever is before them.
        arrays : sequence of int array
            With as many axes.
        tensors : mapping of str to array, optional
            By suffix.
        core : int
            The last axes, which the layer takes as axes of a row.
        gives : sequence of int
            The axes that it gives in their place.
        """
        self.count()
        given = self.frame(arrays, core)
        reads, moment = self.reads(given, arrays, core)
        made = self.rows.node(layer, reads, tensors)
        if moment is not None and self.steps:
            made = self.loops.row(made, moment)
        return Value(self.back(given, made, gives, moment))

    def reads(
        self, given: Frame, arrays: Sequence[Array], core: int = 0
    ) -> tuple[list[str], int | None]:
        """The rows that an operation reads, and the moment they are read at, where it is one.

        Axes of size 1 before the last `core` go where all of the arrays have them.
        """
        aparts = [given.apart(self.rolled(array)) for array in arrays]
        wanted = [at.columns(a, batch=self.batch, counts=self.rows.counts) for a in aparts]
        timed = [w for w in wanted if (w.lag != ANY).any()]
        if len({bool(w.steps) for w in timed}) > 1:
            raise ConvertError("one step of an array meets every step of another")
        moment = None
        if timed and not timed[0].steps:
            if self.steps and self._both_ends(timed):
                wanted = [self.folded(w) for w in wanted]
            else:
                moment = max(0, *(int(w.lag[w.lag != ANY].max()) for w in timed))
        names = []
        for array, columns in zip(aparts, wanted, strict=True):
            free, known = array.shape[2 : array.ndim - core], array.shape[array.ndim - core :]
            kept = [n for n, most in zip(free, given.row, strict=True) if most != 1]
            if moment is not None:
                columns = self._at_moment(columns, moment)
            names.append(self.rows.read(columns, (*kept, *known), self.layer_name))
        counts = {self.rows.row(name).steps for name in names} - {0}
        if len(counts) > 1:
            raise ConvertError(
                f"arrays of {' and '.join(map(str, sorted(counts)))} steps meet; expected as many"
            )
        return names, moment

    def rolled(self, places: Array) -> Array:
        """Places with rows of every step in place of those of turns of a loop."""
        if not self.loops.same:
            return places
        rows, steps = at.row_of(places), at.steps_of(places)
        made = places.copy()
        for (name, step), every in self.loops.same.items():
            here = (rows == self.rows.number(name)) & (steps == step)
            made[here] += (self.rows.number(every) - self.rows.number(name)) << at.ROW_SHIFT
        present = {*np.unique(at.row_of(made)).tolist()}
        for (name, step), every in self.loops.begins.items():
            old, new = self.rows.number(name), self.rows.number(every)
            here = rows == old
            # A row that is there with all its steps is meant itself.
            if new in present and old in present and (steps[here] == step).all():
                made[here] += (new - old) << at.ROW_SHIFT
        return made

    def _both_ends(self, timed: Sequence[Columns]) -> bool:
        """Whether single steps are taken at the beginning and at the end of a sequence."""
        lags = np.concatenate([w.lag[w.lag != ANY] for w in timed])
        rows = np.concatenate([w.row[w.lag != ANY] for w in timed])
        counts = self.rows.counts(rows)
        uneven = bool((counts != counts[0]).any() and (2 * lags >= counts).any())
        return uneven or 2 * int(lags.max() - lags.min()) >= int(counts.max())

    def folded(self, wanted: Columns) -> Columns:
        """Rows of whole sequences in place of single steps."""
        raise NotImplementedError

    def _at_moment(self, columns: Columns, moment: int) -> Columns:
        """Columns of one step as those of every step, of which that one is asked."""
        lag = np.where(columns.lag != ANY, columns.lag - moment, ANY)
        numbers = columns.row[(columns.row >= 0) & (columns.lag != ANY)]
        return columns._replace(lag=lag, steps=int(self.rows.counts(numbers).max(initial=0)))

    def back(
        self, given: Frame, made: Made, core: Sequence[int] = (), moment: int | None = None
    ) -> Array:
        """The places of a row, as an array with the axes of a frame, and `core` behind them."""
        nb, nt = given.size("batch"), given.size("time")
        b: Any = np.arange(nb).reshape(-1, 1, 1) if nb == self.batch else None
        if made.steps == 0:
            t: Any = np.full((1, 1, 1), ANY)
        elif moment is not None:
            t = np.full((1, 1, 1), moment)
        else:
            t = np.arange(nt).reshape(1, -1, 1)
        row = (*given.row, *core)
        check_size((nb, nt, *row))
        offset = np.arange(math.prod(row)).reshape(1, 1, -1)
        places = at.packed(self.rows.number(made.name), offset, b, t)
        full = np.broadcast_to(places, (nb, nt, math.prod(row))).reshape(nb, nt, *row)
        return np.ascontiguousarray(given.together(full, len(core)))

    def count(self) -> None:
        """Count an operation: there are bounds, whatever a program says."""
        self.operations += 1
        if self.operations > MAX_OPERATIONS:
            raise ConvertError(f"the program has more than {MAX_OPERATIONS} operations")


def _is_same(array: Array, axis: int) -> bool:
    first = array[(slice(None),) * axis + (slice(0, 1),)]
    return bool((array == first).all())


def check_size(shape: Sequence[int]) -> None:
    """Check that an array is not larger than what a program may make."""
    if math.prod(shape) > MAX_NUMBERS:
        raise ConvertError(
            f"an array of shape {tuple(shape)} has more numbers than the {MAX_NUMBERS} that are "
            f"supported"
        )
