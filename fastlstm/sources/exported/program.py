"""The graph of an exported program as a program of arrays."""

from __future__ import annotations

import contextlib
import json
import math
import operator as op
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm import document
from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import Builder, Value
from fastlstm.sources.aten import SHARES_MEMORY, Aten
from fastlstm.sources.aten.forward import Input, Ran
from fastlstm.sources.aten.table import Array
from fastlstm.sources.exported.archive import SCALAR_TYPES, Exported
from fastlstm.sources.pytorch.storages import RETRY

__all__ = ["ExportedForward"]

MAX_NODES = 100_000
MAX_SPEC = 1 << 16

# What is computed of sizes, which are plain numbers here.
_OF_NUMBERS: dict[str, Callable[..., Any]] = {
    "_operator.add": op.add, "_operator.sub": op.sub, "_operator.mul": op.mul,
    "_operator.floordiv": op.floordiv, "_operator.truediv": op.truediv, "_operator.mod": op.mod,
    "_operator.neg": op.neg, "_operator.eq": op.eq, "_operator.ne": op.ne, "_operator.lt": op.lt,
    "_operator.le": op.le, "_operator.gt": op.gt, "_operator.ge": op.ge,
    "_operator.and_": op.and_, "_operator.or_": op.or_, "_operator.not_": op.not_,
    "_operator.getitem": lambda x, n: x[n], "math.ceil": math.ceil, "math.floor": math.floor,
    "math.trunc": math.trunc, "torch.sym_max": max, "torch.sym_min": min, "torch.sym_not": op.not_,
    "torch.sym_float": float, "torch.sym_int": int, "math.sqrt": math.sqrt,
    "torch._sym_sqrt": math.sqrt, "torch.sym_ite": lambda c, x, y: x if c else y,
}  # fmt: skip

# Which say of sizes what the exporter assumed, and compute nothing.
_CHECKS = {
    "torch.ops.aten._assert_scalar", "torch.ops.aten._assert_async", "torch._check",
    "torch.ops.aten.sym_constrain_range_for_size", "torch.ops.aten.sym_constrain_range",
    "torch.ops.aten._assert_tensor_metadata", "torch._C._set_grad_enabled",
    "torch.ops.higher_order._guards_fn",
}  # fmt: skip


class ExportedForward:
    """The forward of an exported program.

    Parameters
    ----------
    exported : Exported

    Attributes
    ----------
    inputs, outputs, attributes, dtypes
        As :class:`~fastlstm.sources.aten.forward.Forward` has them.
    """

    def __init__(self, exported: Exported) -> None:
        self.dtypes: Mapping[int, str] = exported.dtypes
        try:
            module = exported.program["graph_module"]
            graph, signature = module["graph"], module["signature"]
            self.nodes: list[dict[str, Any]] = graph["nodes"]
            self.attributes: dict[str, Any] = dict(exported.arrays)
            self._own: dict[str, str] = {}  # a name in the graph -> one of attributes
            self._buffers: set[str] = set()
            self._fixed: dict[str, Any] = {}  # inputs that are a number
            self._names: list[str] = []
            self._of_inputs(signature["input_specs"])
            self._results: list[Any] = []
            self._mutations: dict[str, str] = {}  # a buffer -> the name of what it becomes
            self._of_outputs(signature["output_specs"])
            self.inputs = tuple(
                Input(name, *_shape_of(graph["tensor_values"][name])) for name in self._names
            )
            calls = [c for c in module["module_call_graph"] if c["fqn"] == ""]
            spec = calls[0]["signature"]["out_spec"] if calls and calls[0]["signature"] else None
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ConvertError(f"the exported program has no {error}; {RETRY}") from None
        self._places = _places(spec, len(self._results))
        self.outputs = tuple(place or "output" for place in self._places)
        if len(self.nodes) > MAX_NODES:
            raise ConvertError(f"the exported program has more than {MAX_NODES} nodes")

    def _of_inputs(self, specs: Sequence[Mapping[str, Any]]) -> None:
        for one in specs:
            (kind, spec), *_ = one.items()
            if kind == "user_input":
                argument = spec["arg"]
                if "as_tensor" in argument:
                    self._names.append(argument["as_tensor"]["name"])
                elif "as_none" not in argument:
                    raise ConvertError(
                        f"the program takes an input that is no array ({', '.join(argument):.80})"
                    )
            elif kind == "constant_input":
                self._fixed[spec["name"]] = _constant(spec["value"])
            elif kind in ("parameter", "buffer", "tensor_constant"):
                name = spec[f"{kind}_name"]
                if name not in self.attributes:
                    raise ConvertError(f"the file has no {kind} {name[:200]!r}; {RETRY}")
                self._own[spec["arg"]["name"]] = name
                if kind == "buffer":
                    self._buffers.add(spec["arg"]["name"])
            else:
                raise ConvertError(f"the program takes a {kind[:40]}, which is not supported")

    def _of_outputs(self, specs: Sequence[Mapping[str, Any]]) -> None:
        for one in specs:
            (kind, spec), *_ = one.items()
            if kind == "user_output":
                self._results.append(spec["arg"])
            elif kind == "buffer_mutation":
                self._mutations[spec["buffer_name"]] = spec["arg"]["name"]
            else:
                raise ConvertError(f"the program has an output of kind {kind[:40]}, which is not "
                                   f"supported")  # fmt: skip

    def may_write(self) -> dict[str, Array]:
        """By name, buffers that the program gives anew, or that it may write into."""
        found = set(self._mutations)
        views: dict[str, set[str]] = {}
        for node in self.nodes:
            with _reading("of any kind"):
                used = set(_used(node["inputs"]))
                made = set(_used(node["outputs"]))
                target = str(node["target"])
            own = {self._own[name] for name in used if name in self._buffers}
            own |= set().union(*(views[name] for name in used if name in views))
            operator = target.removeprefix("torch.ops.aten.").partition(".")[0]
            writes = operator.endswith("_") and not operator.startswith("_")
            if writes:
                found |= own
            if own and (writes or operator in SHARES_MEMORY):
                views.update(dict.fromkeys(made, own))
        buffers = {name for name in found if isinstance(self.attributes.get(name), np.ndarray)}
        return {name: self.attributes[name] for name in sorted(buffers)}

    def __call__(
        self, builder: Builder, given: Mapping[str, Any], states: Mapping[str, Any]
    ) -> Ran:
        """Follow it once, with these inputs and what these buffers hold."""
        aten = Aten(builder)
        values: dict[str, Any] = dict(self._fixed)
        before: dict[str, Any] = {}
        for name, path in self._own.items():
            held = states.get(path, self.attributes[path])
            if isinstance(held, Value):
                held = Value(held.places.copy(), held.kind)
            else:
                builder.name(held, path)
            values[name] = before[path] = held
        kept = {path: v.places.copy() for path, v in before.items() if isinstance(v, Value)}
        values |= given
        for node in self.nodes:
            self._follow(aten, node, values)
        written = {}
        for path, old in before.items():
            now = aten.memory.current(old)
            if path in self._mutations:
                now = aten.memory.current(_named(values, self._mutations[path]))
            if isinstance(now, Value):
                if now is not old or not np.array_equal(now.places, kept[path]):
                    written[path] = now
            elif now is not old and not np.array_equal(now, self.attributes[path]):
                written[path] = now
        with _reading("output"):
            returned = {
                place: aten.memory.current(self._argument(argument, values))
                for place, argument in zip(self._places, self._results, strict=True)
            }
        return Ran({p: v for p, v in returned.items() if v is not None}, written)

    def _follow(self, aten: Aten, node: Mapping[str, Any], values: dict[str, Any]) -> None:
        target = str(node.get("target"))
        name = target.rpartition(".")[0] if target.startswith("torch.ops.") else target
        if name in _CHECKS:
            return
        args: list[Any] = []
        named: dict[str, Any] = {}
        with _reading(target):
            for one in node["inputs"]:
                value = self._argument(one["arg"], values)
                if one["name"] == "dtype" and isinstance(value, int):
                    value = SCALAR_TYPES.get(value, value)
                # Before version 8 of the schema, what is positional was not told.
                if one["name"] and (one.get("kind") == 2 or named or "kind" not in one):
                    named[str(one["name"])] = value
                else:
                    args.append(value)
        path = _module(node)
        with aten.builder.at(path or name.rpartition(".")[2], path and f"module {path!r:.200}"):
            if name in _OF_NUMBERS:
                made = _number(target, args, named)
            elif name.startswith("torch.ops.aten."):
                made = aten(name.removeprefix("torch.ops.aten."), args, named)
            else:
                raise ConvertError(f"{target:.200}: this operator of torch is not supported")
        with _reading(target):
            _keep(values, node["outputs"], made, target)

    def _argument(self, argument: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
        """The value of an argument of a node."""
        if len(argument) != 1:
            raise ConvertError(f"an argument of the exported program is not read; {RETRY}")
        ((kind, value),) = argument.items()
        if kind in ("as_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"):
            return _symbol(value, values)
        if kind in ("as_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"):
            return [_symbol(one, values) for one in value]
        if kind == "as_optional_tensors":
            return [
                None if "as_none" in one else _symbol(one["as_tensor"], values) for one in value
            ]
        if kind == "as_optional_tensor":
            return None if "as_none" in value else _symbol(value["as_tensor"], values)
        return _constant(argument)


@contextlib.contextmanager
def _reading(target: str) -> Iterator[None]:
    """What is not as the schema says is a file that is damaged."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConvertError(
            f"a node {target[:80]!r} of the exported program is not read ({error}); {RETRY}"
        ) from None


def _constant(argument: Mapping[str, Any]) -> Any:
    """The value of an argument that is written in the graph itself."""
    ((kind, value),) = argument.items()
    if kind == "as_none":
        return None
    if kind in ("as_int", "as_float", "as_bool", "as_string", "as_scalar_type"):
        plain = float(value) if kind == "as_float" else value  # "Infinity" is a string
        return plain if kind != "as_scalar_type" else int(value)
    if kind in ("as_ints", "as_floats", "as_bools", "as_strings"):
        return list(value)
    if kind in ("as_device", "as_layout", "as_memory_format"):
        return "cpu" if kind == "as_device" else None
    raise ConvertError(f"an argument of kind {kind[:40]!r} is not supported")


def _named(values: Mapping[str, Any], name: str) -> Any:
    if name not in values:
        raise ConvertError(f"the exported program uses {name[:80]!r} before it is made; {RETRY}")
    return values[name]


def _symbol(value: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    """A value by name, or a number that is written in place of one."""
    for key in ("name", "as_name"):
        if key in value:
            return _named(values, value[key])
    for key in ("as_int", "as_float", "as_bool"):
        if key in value:
            return value[key]
    raise ConvertError(f"a value of the exported program is not read; {RETRY}")


def _number(target: str, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    given = [*args, *named.values()]
    try:
        return _OF_NUMBERS[target](*given)
    except (TypeError, ValueError, ArithmeticError, IndexError) as error:
        raise ConvertError(f"{target}: {error}") from None


def _keep(values: dict[str, Any], outputs: Sequence[Any], made: Any, target: str) -> None:
    """Enter what a node makes under the names of its outputs."""
    parts: list[Any] = list(made) if isinstance(made, list | tuple) else [made]
    names: list[str | None] = []
    for one in outputs:
        if "as_tensors" in one:
            names += [t["name"] for t in one["as_tensors"]]
        elif "as_none" in one:
            names.append(None)
        else:
            ((_, value),) = one.items()
            names.append(value.get("name", value.get("as_name")))
    if len(names) > len(parts):
        raise ConvertError(f"{target:.200} gives {len(parts)} values; expected {len(names)}")
    values.update({n: v for n, v in zip(names, parts, strict=False) if n is not None})


def _used(value: Any) -> Iterator[str]:
    """Names of values that arguments hold."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            if isinstance(name := one.get("name"), str) and "arg" not in one:
                yield name
            waiting += one.values()


def _shape_of(meta: Mapping[str, Any]) -> tuple[tuple[int | None, ...], str]:
    """The shape of an input, None for each size that is symbolic, and its kind."""
    shape = tuple(size.get("as_int") for size in meta["sizes"])
    if any(n is not None and type(n) is not int for n in shape):
        raise KeyError("sizes")
    dtype = meta["dtype"]
    kind = "bool" if dtype == 12 else "int" if dtype in (1, 2, 3, 4, 5) else "float"
    return shape, kind


def _module(node: Mapping[str, Any]) -> str:
    """The path of the module that a node was made in."""
    metadata = node.get("metadata")
    stack = metadata.get("nn_module_stack") if isinstance(metadata, dict) else None
    if not isinstance(stack, str) or not stack:
        return ""
    # "L__self__,,__main__.Net;L__self___lstm,lstm,torch.nn.modules.rnn.LSTM"
    parts = stack.rpartition(";")[2].split(",")
    path = parts[1] if len(parts) > 2 else ""
    return path if path.isprintable() and len(path) < 200 else ""


def _places(spec: str | None, count: int) -> list[str]:
    """Where each output is in what was returned: ``"[1][0]"``, ``"['y']"``; "" if it is alone."""
    plain = [""] if count == 1 else [f"[{n}]" for n in range(count)]
    if spec is None or len(spec) > MAX_SPEC:
        return plain
    try:
        document.judge(spec, 1 << 24)
        _, tree = json.loads(spec)
        places = list(_leaves(tree, "", 0))
    except (ValueError, TypeError, KeyError, RecursionError):
        return plain
    return places if len(places) == count else plain


def _leaves(tree: Mapping[str, Any], place: str, depth: int) -> Iterator[str]:
    children = tree["children_spec"]
    if tree["type"] is None:
        yield place
        return
    keys: Sequence[Any] = range(len(children))
    if tree["type"].endswith(("dict", "Dict")):
        keys = json.loads(tree["context"])
    for key, child in zip(keys, children, strict=True):
        yield from _leaves(child, f"{place}[{key!r:.80}]", depth + 1)
