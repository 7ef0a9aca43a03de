"""A graph packed for an instruction set: what streams, pools and whole sequences run."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastlstm import _engine, processors, spec
from fastlstm.arrays import Network, offered
from fastlstm.reduced import Tensors, computed_in, kept

if TYPE_CHECKING:
    from fastlstm.plan.operations import Part

__all__ = ["PackedGraph"]

Array = npt.NDArray[Any]

# An instruction set for which a model would mostly be padding (hidden sizes far below its lanes) is
# passed over if it would take more memory than this many times what the model takes without lanes,
# plus a floor.
MOST_PADDING = 1.5
FREE_PADDING_BYTES = 4 * 2**20


class PackedGraph:
    """A graph with its tensors, packed for one instruction set: immutable, shareable.

    Parameters
    ----------
    graph : spec.Graph
    tensors : mapping of str to array or Reduced
        Exactly those of the graph, checked, all of one float dtype; those that are stored in
        another precision stand among float32.
    facts : spec.Facts, optional
        What ``spec.check`` finds of the graph, if it was asked already.
    threads, isa, reproducible
        As of :func:`fastlstm.load`.
    constant : bool, default False
        Whether nobody ever changes the tensors, so that a table can be read where it lies.

    Attributes
    ----------
    graph : spec.Graph
        The model: its inputs, nodes and outputs.
    dtype : numpy.dtype
        float32 or float64: what it computes in.
    threads : int
        Threads a call may use, as asked for; never more than the processors the process may use.
    reproducible : bool
        Whether no bit of a result depends on how a sequence is cut into calls.
    """

    def __init__(
        self,
        graph: spec.Graph,
        tensors: Tensors,
        facts: spec.Facts | None = None,
        *,
        threads: int = 1,
        isa: str | None = None,
        reproducible: bool = False,
        constant: bool = False,
    ) -> None:
        # The planner is imported with the first model, not with the package.
        from fastlstm.plan.lowering import plan

        self.threads = _engine.as_count("threads", threads, 1)
        self.dtype = _dtype_of(tensors)
        self.graph, self.facts = graph, facts or spec.check(graph)
        self.reproducible = reproducible
        _check_vocabulary()
        with np.errstate(all="ignore"):  # weights that are not finite stay what they are
            program = plan(graph, tensors, self.facts)
        decoded = _engine.Program(program.to_bytes())
        self._parts = {
            name: self.facts.state.get(name, _shape_of(part))
            for name, part in zip(program.part_names, program.parts, strict=True)
        }
        self._layout = program.state_size, *program.parts
        self._network = Network(
            decoded,
            [kept(tensors[name]) for name in program.tensor_names],
            self.dtype,
            _choose_isa(decoded, self.dtype, isa),
            [_engine.Port(given.name, given.shape) for given in graph.inputs],
            [
                _engine.Port(name, self.facts.rows[value].shape, self._step_rows(value))
                for name, value in graph.outputs.items()
            ],
            constant=constant,
            work=self.facts.work,
            keeps_steps=all(self._keeps_steps(value) for value in graph.outputs.values()),
            folds=any(self.facts.rows[value].folded for value in graph.outputs.values()),
            reproducible=reproducible,
            threads=min(self.threads, processors.available()) if self.threads > 1 else 1,
        )

    def _keeps_steps(self, value: str) -> bool:
        return self.facts.rows[value].timing == spec.Timing()

    def _step_rows(self, value: str) -> int:
        """Rows that a step gives of a value at most; 0 if it may give several, at no whole rate."""
        timing = self.facts.rows[value].timing
        if timing is None or timing.burst <= 1:
            return 1
        rows, steps = timing.rate
        return rows if rows > 1 and steps == 1 else 0

    @property
    def isa(self) -> str:
        """The instruction set that runs it."""
        isa: str = self._network.isa
        return isa

    @property
    def nbytes(self) -> int:
        """Bytes of its packed weights, without tables that are read where the tensors lie."""
        return int(self._network.nbytes)

    @property
    def state_nbytes(self) -> int:
        """Bytes of the state of one stream."""
        return int(self._network.state_size * self.dtype.itemsize)

    @property
    def looks_ahead(self) -> str:
        """Why the model takes whole sequences only and cannot be streamed; "" if it can."""
        return self.facts.looks_ahead

    @property
    def pools_over_time(self) -> bool:
        """Whether a whole sequence gives one row: a stream then gives it anew after each step."""
        return bool(self._network.folds)

    @functools.cached_property
    def delay(self) -> int:
        """Steps that a stream reads without an output before its first one."""
        rows = (self.facts.rows[value] for value in self.graph.outputs.values())
        return max((row.timing.delay for row in rows if row.timing), default=0)

    @property
    def step_stride(self) -> int:
        """Steps that a stream reads for each further output: 1, but where rows are dropped."""
        rows = (self.facts.rows[value] for value in self.graph.outputs.values())
        rates = [row.timing.rate for row in rows if row.timing]
        return max((rate.steps for rate in rates if rate.rows < rate.steps), default=1)

    @property
    def fingerprint(self) -> str:
        """What tells this model, with these very weights, from every other one."""
        raise NotImplementedError

    def check_weights(self, graph: spec.Graph, tensors: Tensors) -> None:
        """Raise ValueError unless tensors are those of a model that could take this one's place."""
        if self.graph != graph:
            raise ValueError(
                f"the weights are those of another graph, which differs in "
                f"{_difference(self.graph, graph)}; expected the same, as after further training: "
                f"load it as a model of its own"
            )
        if self.dtype != _dtype_of(tensors):
            raise ValueError(f"the weights are {_dtype_of(tensors)}; expected {self.dtype}")

    def take_weights(self, other: PackedGraph) -> None:
        """Compute from now on with the weights of another, of the same graph, dtype and kernel.

        Raises
        ------
        ValueError
            If its states lie otherwise, which no plan of the same graph has them do.
        """
        if self._layout != other._layout:
            raise ValueError("its states lie otherwise; load it as a model of its own")
        self._network.take(other._network)

    def check_streams(self) -> None:
        """Raise ValueError unless the model can be streamed."""
        if self.looks_ahead:
            raise ValueError(
                f"{self.looks_ahead}, so there is no output before the whole sequence is known; "
                f"call model(x) with whole sequences instead"
            )

    # States

    def start_block(self, batch_size: int, held: list[Array]) -> Array:
        """States (B, state_size) where a sequence starts; `held` as the network has it."""
        block = np.empty((batch_size, self._network.state_size), self.dtype)
        made: Array = self._network.begin(block, held)
        return made

    def holds(self, block: Array, held: list[Array]) -> bool:
        """Whether states (B, state_size) hold what a sequence that starts with `held` would."""
        names = {f"{name}.held" for name, row in self.facts.rows.items() if row.held}
        started = self.state_arrays(self.start_block(len(block), held), True)
        now = self.state_arrays(block, True)
        return all(np.array_equal(started[n], now[n]) for n in names & now.keys())

    def state_arrays(self, block: Array, batched: bool) -> dict[str, Array]:
        """States (B, state_size) as arrays (n, B, ...) by name, or of one without its B."""
        state = {}
        for (name, shape), rows in zip(
            self._parts.items(), _engine.read_parts(self._network, block), strict=True
        ):
            first, *axes = shape
            array = rows.reshape(first, len(block), *axes)
            state[name] = array if batched else array[:, 0].copy()
        return state

    def state_shapes(
        self, batch_size: int | None
    ) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Types and shapes of the arrays of a state."""
        rows = () if batch_size is None else (batch_size,)
        return {
            name: (np.dtype(np.int64) if counts else self.dtype, (shape[0], *rows, *shape[1:]))
            for (name, shape), counts in zip(
                self._parts.items(), _engine.part_counts(self._network), strict=True
            )
        }

    def state_block(self, state: Any, batch_size: int | None, *, together: bool = True) -> Array:
        """The inverse of :meth:`state_arrays`; names, dtypes and shapes must be right.

        So must counts of steps: of rows that step `together` the same, where the number of outputs
        of a call depends on them.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"state is a {type(state).__qualname__}; expected a mapping with the arrays "
                f"{_listed(self._parts)}"
            )
        if set(state) != set(self._parts):
            raise ValueError(
                f"state has the arrays {_listed(state)}; this model's state is "
                f"{_listed(self._parts)}. A state belongs to the model that made it"
            )
        parts = {
            name: self._checked_part(name, state[name], batch_size, counts, together)
            for name, counts in zip(self._parts, _engine.part_counts(self._network), strict=True)
        }
        rows = 1 if batch_size is None else batch_size
        block = np.zeros((rows, self._network.state_size), self.dtype)
        made: Array = _engine.write_parts(self._network, block, parts)
        return made

    def _checked_part(
        self, name: str, given: Any, batch_size: int | None, counts: bool, together: bool
    ) -> Array:
        """A part of a state as the network has it: (rows, B, count)."""
        first, *axes = self._parts[name]
        dtype = np.dtype(np.int64) if counts else self.dtype
        given = offered(f"state {name!r}", given)
        array: Array = _engine.as_plain(
            f"state {name!r}", given, f"a plain NumPy array of {dtype}, without a mask"
        )
        shape = (first, *axes) if batch_size is None else (first, batch_size, *axes)
        if array.dtype != dtype:
            raise TypeError(
                f"state {name!r} is of {array.dtype}; expected a NumPy array of {dtype}"
            )
        if array.shape != shape:
            raise ValueError(f"state {name!r} has shape {array.shape}; expected {shape}")
        if counts and together and not self._network.keeps_steps and len(np.unique(array)) > 1:
            raise ValueError(
                f"state {name!r} has rows that have read different numbers of steps; expected the "
                f"same for all, since this model does not give an output for every step"
            )
        rows = 1 if batch_size is None else batch_size
        return array.reshape(first, rows, math.prod(axes))


@functools.cache
def _check_vocabulary() -> None:
    """Refuse, as the first model is packed, an engine that reads programs of another vocabulary."""
    from fastlstm.plan import operations

    written, read = operations.vocabulary(), _engine.vocabulary()
    if written != read:
        lines = set(written.splitlines()) ^ set(read.splitlines())
        raise ImportError(
            f"the engine was built from other sources than the package that loads it: they differ "
            f"in {min(lines, default='the order of their operations')!r:.200}; build it again "
            f"(pip install ., or python setup.py build_ext --inplace)"
        )


def _shape_of(part: Part) -> tuple[int, ...]:
    """The shape of a part of the state that the vocabulary does not list."""
    return (1,) if part.part == "count" else (part.rows, part.count)


def _dtype_of(tensors: Tensors) -> np.dtype[Any]:
    (dtype,) = {*map(computed_in, tensors.values())} or {np.dtype(np.float32)}
    return dtype


def _difference(one: spec.Graph, other: spec.Graph) -> str:
    """Where two graphs first differ, in words."""
    for what in ("inputs", "outputs"):
        if getattr(one, what) != getattr(other, what):
            return f"its {what}"
    nodes = {node.name: node for node in one.nodes}
    for node in other.nodes:
        if nodes.pop(node.name, None) != node:
            return f"node {node.name!r:.80}"
    return f"node {next(iter(nodes))!r:.80}" if nodes else "the order of its nodes"


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def _choose_isa(program: _engine.Program, dtype: np.dtype[Any], isa: str | None) -> str:
    """The instruction set asked for by argument or FASTLSTM_ISA, else the best one."""
    if isa is not None and not isinstance(isa, str):
        raise TypeError(f"isa is {isa!r}; expected the name of an instruction set or None")
    here = [name for name, _ in _engine.kernels(dtype.itemsize)]
    asked, by = isa, "isa="
    # The environment speaks for float32, where there is a choice; float64 has one kernel.
    if asked is None and dtype == np.float32:
        asked, by = os.environ.get("FASTLSTM_ISA") or None, "FASTLSTM_ISA="
    if asked is not None:
        if asked not in here:
            known = asked in _engine.known_isas()
            why = "this processor does not have it" if known else "there is no such instruction set"
            if known and dtype == np.float64:
                why = "float64 models have the plain kernel only"
            raise ValueError(f"{by}{asked!r}: {why}; expected one of {', '.join(here)}")
        return asked
    plain = program.packed_bytes(dtype, here[-1])
    for name in here[:-1]:
        packed = program.packed_bytes(dtype, name)
        if packed <= MOST_PADDING * plain + FREE_PADDING_BYTES:
            return name
    return here[-1]
