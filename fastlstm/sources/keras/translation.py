"""A Keras model as a graph: its inputs, the calls of its layers in order, and its outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.conversion import BATCH, TIME, Argument
from fastlstm.sources.conversion import Call as SourceCall
from fastlstm.sources.keras.attention import ATTENTION, ATTENTION_ARGUMENTS
from fastlstm.sources.keras.builder import FIXED, Builder, Mask, Site, Value, WholeSequenceError
from fastlstm.sources.keras.config import Entry
from fastlstm.sources.keras.file import SavedModel, Weights
from fastlstm.sources.keras.inputs import given_inputs
from fastlstm.sources.keras.joins import JOINS
from fastlstm.sources.keras.movement import MOVEMENT
from fastlstm.sources.keras.network import MODELS, Call, Network, Tensor, inner_network, tensors_in
from fastlstm.sources.keras.ops import OPS, is_op
from fastlstm.sources.keras.recurrent import RECURRENT
from fastlstm.sources.keras.rows import ROWS
from fastlstm.sources.keras.sliding import SLIDING
from fastlstm.sources.keras.states import paired_states

__all__ = ["Translation"]

# Calls of layers and tensors that they read, those of models within models each time they are
# called.
MAX_CALLS = 2**13

_WITHOUT_EFFECT = (
    *("InputLayer", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
    *("GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization", "Identity"),
)
_LAYERS: dict[str, Callable[[Builder, Site], Value | tuple[Value, ...]]] = {
    **ROWS,
    **JOINS,
    **MOVEMENT,
    **SLIDING,
    **RECURRENT,
    **ATTENTION,
}
_READ_MASKS = (*MODELS, "GlobalAveragePooling1D", "Softmax")
_PADDED = {*SLIDING, *(name for name in MOVEMENT if name.startswith("ZeroPadding"))}


class Translation:
    """A model, read with time or, where the number of steps is known, without.

    Parameters
    ----------
    saved : SavedModel
    network : Network
    ignore : tuple of str
        Patterns of layers that are left out on the user's word, and of weights.
    over_time : bool
        Whether the first axis of a sequence is time, or one of a row.

    Attributes
    ----------
    fixed : bool
        Whether the file says all sizes of all inputs.
    graph : spec.Graph
    call : conversion.Call
    report, on_your_word : list of str
        What each layer became; what was left out and not verified.
    """

    graph: spec.Graph
    call: SourceCall

    def __init__(
        self, saved: SavedModel, network: Network, ignore: tuple[str, ...], over_time: bool
    ) -> None:
        self.saved, self.network, self.ignore = saved, network, ignore
        self.model = Builder(saved.version)
        self.on_your_word: list[str] = []
        self._calls = 0
        self._why = ""
        self._matched: set[str] = set()
        saved.taken.clear()
        self.given = given_inputs(saved, network, over_time)
        self.over_time = any(one.timed for one in self.given)
        self.fixed = all(one.fixed for one in self.given)
        self.states = paired_states(network)

    def run(self) -> spec.Facts:
        """Make the graph, and check it."""
        model = self.model
        single = len(self.given) - len(self.states) == 1
        lengths = {one.steps for one in self.given if one.timed}
        model.steps = lengths.pop() if len(lengths) == 1 else None
        values = []
        for one in self.given:
            name = model.unique("input" if single and one.tensor not in self.states else one.name)
            if one.tokens:
                model.tokens[name] = (one.tokens, "")
            values.append(Value(name, one.axes, steps=one.steps, source=name))
        made = self._outputs(self._network(self.network, self.saved.weights, values, ""))
        self._check_all_used()
        inputs = [
            spec.Input(
                value.name,
                value.row,
                model.tokens.get(value.name, (0, ""))[0],
                held=self.over_time and not value.timed,
            )
            for one, value in zip(self.given, values, strict=True)
            if one.tensor not in self.states
        ]
        if not inputs:
            raise ConvertError("the model has no input but its states; expected rows to go on with")
        self._loops(values)
        outputs = {"output" if len(made) == 1 else name: value.name for name, value in made.items()}
        if not outputs:
            raise ConvertError("the model gives nothing but its states; expected an output")
        self._describe_call(values, made, outputs)
        try:
            self.graph = spec.Graph(tuple(inputs), tuple(model.nodes), outputs)
            facts = spec.check(self.graph)
            spec.check_tensors(facts, {name: a.shape for name, a in model.tensors.items()})
        except ValueError as error:
            raise WholeSequenceError(f"the layers make no model: {error}") from None
        return facts

    @property
    def report(self) -> list[str]:
        return [*self.model.report, *self.model.notes]

    # --- inputs, outputs and states of the whole model

    def _outputs(self, found: dict[Tensor, Value]) -> dict[str, Value]:
        """The outputs but for states that the model keeps, by name."""
        model, ends = self.model, {end for _, end in self.states.values()}
        self._ends = {end: found[end] for end in ends if end in found}
        made = {}
        for name, tensor in self.network.outputs:
            if tensor in ends:
                continue
            value = found[tensor]
            if value.backwards:
                raise WholeSequenceError(
                    f"the output {name!r:.80} has the last step first, as go_backwards=True gives "
                    f"it; {FIXED}"
                )
            made[name] = model.padded(value)
        return made

    def _loops(self, values: Sequence[Value]) -> None:
        """States that go from call to call, and that no recurrence keeps itself."""
        reads = {name for node in self.model.nodes for name in node.reads}
        for one, value in zip(self.given, values, strict=True):
            if one.tensor in self.states and value.name in reads:
                last = self._ends[self.states[one.tensor][1]]
                self.model.nodes.append(spec.Delay(value.name, value.row)(last.name))

    def _describe_call(
        self, values: Sequence[Value], made: dict[str, Value], outputs: dict[str, str]
    ) -> None:
        def axes(value: Value) -> tuple[str | int, ...]:
            return (BATCH, *([TIME] if value.timed else []), *value.row)

        names = {tensor: name for name, tensor in self.network.outputs}
        arguments = []
        for one, value in zip(self.given, values, strict=True):
            if one.tensor in self.states:
                end = names[self.states[one.tensor][1]]
                arguments.append(Argument(one.name, axes(value), "state", end))
            else:
                arguments.append(Argument(one.name, axes(value), "rows", value.name))
        starts = {
            self.states[one.tensor][1]: (one.name, axes(value))
            for one, value in zip(self.given, values, strict=True)
            if one.tensor in self.states
        }
        own = dict(zip(made, outputs, strict=True))
        results = []
        for name, tensor in self.network.outputs:
            if tensor in starts:
                start, state_axes = starts[tensor]
                results.append(Argument(name, state_axes, "state", start))
            else:
                results.append(Argument(name, axes(made[name]), "rows", own[name]))
        self.call = SourceCall(tuple(arguments), tuple(results))

    def _check_all_used(self) -> None:
        unused = []
        for path in self.saved.unused():
            matching = [pattern for pattern in self.ignore if fnmatchcase(path, pattern)]
            self._matched.update(matching)
            if matching:
                self.on_your_word.append(
                    f"not verified: weight {path!r:.200} was left out, as ignore= allows"
                )
            else:
                unused.append(path)
        if unused:
            raise ConvertError(
                f"no layer uses {len(unused)} of the weights, among them {unused[0]!r:.200}; "
                f"expected those of the layers and no others: load the model with Keras and save "
                f"it again"
            )
        for pattern in self.ignore:
            if pattern not in self._matched:
                raise ConvertError(
                    f"ignore= has {pattern!r:.80}, which is the name of no layer, nor of a weight "
                    f"that no layer uses; leave it out"
                )

    # --- calls

    def _network(
        self, network: Network, weights: Weights, inputs: Sequence[Value], scope: str
    ) -> dict[Tensor, Value]:
        """What all calls of a model give."""
        found = {tensor: value for (_, tensor), value in zip(network.inputs, inputs, strict=True)}
        parts = weights.parts([(entry.class_name, entry.name) for entry in network.entries])
        where = {entry.name: own for entry, own in zip(network.entries, parts, strict=True)}
        used: dict[tuple[str, int], set[int]] = {}
        # A state that goes on from call to call is made where a recurrence does not keep it itself.
        ends = {end for _, end in self.states.values()} if not scope else set()
        wanted = [tensor for _, tensor in network.outputs if tensor not in ends]
        for tensor in (*wanted, *(t for call in network.calls for t in call.reads)):
            used.setdefault(tensor[:2], {0}).add(tensor.place)
        for call in network.calls:
            key = (call.entry.name, call.number)
            number = f".{call.number + 1}" if call.number else ""
            site = Site(
                call.entry,
                call.entry.options(),
                f"{scope}{call.entry.name}{number}",
                f"{scope}{call.entry.name}",
                where[call.entry.name],
                [_value(found, call, tensor) for tensor in tensors_in(call.arguments)],
                {name: _with_values(found, call, tree) for name, tree in call.named.items()},
                [_with_values(found, call, tree) for tree in call.arguments],
                frozenset(used.get(key, {0})),
                not scope and any(k[:2] == key for k, _ in self.states.values()),
            )
            for place, value in enumerate(self._call(site)):
                found[Tensor(*key, place)] = value
        for tensor in wanted:
            if tensor not in found:
                raise ConvertError(
                    f"{network.what} gives tensor {tensor.place} of {tensor.layer!r:.80}, which "
                    f"gives no such tensor"
                )
        return found

    def _call(self, site: Site) -> tuple[Value, ...]:
        self._calls += 1 + len(site.inputs)
        if self._calls > MAX_CALLS:
            raise ConvertError(
                f"layers are called, or read tensors, more than {MAX_CALLS} times in all"
            )
        entry, model = site.entry, self.model
        if self._is_ignored(site):
            return (site.inputs[0],)
        entry.refuse_foreign()
        if not site.inputs:
            raise ConvertError(f"{site.what} is called with no tensor; expected one or more")
        if not is_op(entry):
            site = self._masked(site)
            allowed: set[str] = {"initial_state"} if entry.class_name in RECURRENT else set()
            allowed = ATTENTION_ARGUMENTS if entry.class_name in ATTENTION else allowed
            for key in sorted(site.named.keys() - allowed):
                raise ConvertError(
                    f"{site.what} is called with {key!r:.80}; expected the outputs of layers and "
                    f"nothing else"
                )
        if entry.class_name not in _PADDED:
            site = dataclasses.replace(site, inputs=[model.padded(v) for v in site.inputs])
        made = len(model.nodes)
        values = self._layer(site)
        nodes = [f"{node.layer.kind} {node.name!r}" for node in model.nodes[made : made + 8]] + [
            "..."
        ] * (len(model.nodes) > made + 8)
        if entry.class_name not in MODELS:
            became = (
                f"is {', '.join(nodes)}"
                if nodes
                else ("has no effect at inference and was left out")
            )
            model.report.append(f"{site.what} {became}")
        return values

    def _masked(self, site: Site) -> Site:
        """The call, its inputs marked by the mask that it is given."""
        named = dict(site.named)
        mask, value = named.pop("mask", None), site.inputs[0]
        if isinstance(mask, list) and len(mask) == 1:
            (mask,) = mask
        if mask is None:
            return site
        if not isinstance(mask, Value) or mask.axes != value.axes[: len(mask.axes)]:
            raise ConvertError(
                f"{site.what} is called with the mask {str(mask)[:80]}; expected one number for "
                f"each step"
            )
        name = f"{site.name}.counts"
        made = Mask(lambda: self.model.reshaped(name, mask, (*mask.own, 1)))
        inputs = [value.but(value.name, mask=made, source=value.source), *site.inputs[1:]]
        return dataclasses.replace(site, inputs=inputs, named=named)

    def _is_ignored(self, site: Site) -> bool:
        matching = [p for p in self.ignore if fnmatchcase(site.entry.name, p)]
        if not matching:
            return False
        self._matched.update(matching)
        if not site.inputs:
            raise ConvertError(f"{site.what} reads nothing, so that it cannot be left out")
        site.weights.leave()
        self.on_your_word.append(
            f"not verified: {site.what} was left out on your word (ignore={matching[0]!r:.80}); "
            f"what reads it is given what it was given"
        )
        return True

    def _layer(self, site: Site) -> tuple[Value, ...]:
        entry, model = site.entry, self.model
        kind = entry.class_name
        if is_op(entry):
            if kind not in OPS:
                raise ConvertError(
                    f"{entry.what}, an operation of keras.ops, is not supported; expected one of "
                    f"{', '.join(sorted(OPS))}"
                )
            result = OPS[kind](model, site)
            site.options.finish()
            results = result if isinstance(result, tuple) else (result,)
            return tuple(dataclasses.replace(one, mask=None) for one in results)
        if kind in MODELS:
            return self._model(site)
        if kind in _WITHOUT_EFFECT:
            values: Value | tuple[Value, ...] = site.value
        elif kind == "TimeDistributed":
            values = self._time_distributed(site)
        elif kind in _LAYERS:
            values = _LAYERS[kind](model, site)
        else:
            known = sorted((*_LAYERS, *_WITHOUT_EFFECT, "TimeDistributed", *MODELS[:2]))
            does = entry.config.get("function")  # of an operation of TensorFlow
            computes = f", which computes {does:.80}," if isinstance(does, str) else ""
            raise ConvertError(
                f"{entry.what}{computes} is not supported; expected one of {', '.join(known)}"
            )
        site.options.finish()
        if "float16" in (policy := site.options.computed_in()):
            model.notes.append(f"{entry.what} computes in {policy} in Keras, but not here")
        return values if isinstance(values, tuple) else (values,)

    def _model(self, site: Site) -> tuple[Value, ...]:
        """A model that is a layer."""
        network = inner_network(site.entry)
        if len(site.inputs) != len(network.inputs):
            raise ConvertError(
                f"{site.what} is called with {len(site.inputs)} tensors; expected "
                f"{len(network.inputs)}"
            )
        found = self._network(network, site.weights, site.inputs, f"{site.name}.")
        return tuple(found[tensor] for _, tensor in network.outputs)

    def _time_distributed(self, site: Site) -> tuple[Value, ...]:
        """A layer that sees one step, or one position of the first axis, at a time."""
        value = site.value
        site.options.take("layer")
        if site.entry.inner is None:
            site.entry.inner = Entry(site.entry.config["layer"], site.entry.version)
        entry: Entry = site.entry.inner
        if len(value.axes) < 2:
            raise ConvertError(
                f"{site.what} reads {value.axes}; expected (steps, features) or more axes"
            )
        if value.mask and (entry.class_name in RECURRENT or entry.class_name in _READ_MASKS):
            raise ConvertError(
                f"{site.what} is around {entry.what}, and reads steps of which a Masking or an "
                f"Embedding with mask_zero marks some, which is not supported"
            )
        first, *axes = value.axes
        inside = dataclasses.replace(
            value,
            axes=tuple(axes),
            lead=value.lead if first is None else (*value.lead, first),
            mask=None,
        )
        inner = dataclasses.replace(
            site,
            entry=entry,
            options=entry.options() if entry.class_name not in MODELS else site.options,
            weights=site.weights.inside("layer"),
            inputs=[inside],
        )
        entry.refuse_foreign()
        return tuple(
            dataclasses.replace(
                one,
                axes=(first, *one.axes),
                lead=value.lead,
                mask=value.mask,
                steps=value.steps,
                backwards=value.backwards,
            )
            for one in self._layer(inner)
        )


def _value(found: dict[Tensor, Value], call: Call, tensor: Tensor) -> Value:
    if tensor not in found:
        raise ConvertError(
            f"{call.entry.what} reads tensor {tensor.place} of {tensor.layer!r:.80}, which gives "
            f"no such tensor"
        )
    return found[tensor]


def _with_values(found: dict[Tensor, Value], call: Call, tree: Any) -> Any:
    """A tree of arguments with values for tensors."""
    if isinstance(tree, Tensor):
        return _value(found, call, tree)
    if isinstance(tree, list):
        return [_with_values(found, call, part) for part in tree]
    if isinstance(tree, dict):
        return {key: _with_values(found, call, part) for key, part in tree.items()}
    return tree
