"""Attention layers of Keras between the positions of sequences whose lengths are known.

Attention, AdditiveAttention and MultiHeadAttention (keras/src/layers/attention): each position of
the query weighs all positions of the key, so that a sequence is one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.keras.builder import (
    FIXED,
    Axes,
    Builder,
    Site,
    Value,
    WholeSequenceError,
    shown,
    take,
)

__all__ = ["ATTENTION", "ATTENTION_ARGUMENTS"]

ATTENTION_ARGUMENTS = {"use_causal_mask", "value", "key"}

# What Keras takes from the scores of positions that do not count.
_AWAY = 1e9


def _sequences(site: Site) -> tuple[Value, Value, Value]:
    """Query, key and value, (positions, features) each; by default the key is the value."""
    values = [*site.inputs, *(site.named[name] for name in ("value", "key") if name in site.named)]
    if len(values) not in (2, 3) or not all(isinstance(value, Value) for value in values):
        raise ConvertError(
            f"{site.what} is called with {len(values)} tensors; expected a query, a value and, if "
            f"it is another one, a key"
        )
    for value in values:
        if value.timed:
            raise WholeSequenceError(
                f"{site.what} weighs all steps of {shown(value.axes)} at once; {FIXED}"
            )
        if value.mask:
            raise ConvertError(
                f"{site.what} reads what a Masking or an Embedding with mask_zero marks, which is "
                f"not supported"
            )
        if len(value.own) != 2 or value.lead:
            raise ConvertError(
                f"{site.what} reads {shown(value.axes)}; expected (positions, features)"
            )
    return values[0], values[-1], values[1]


def _weighed(model: Builder, site: Site, scores: Value, values: Value) -> Value:
    """softmax(scores) @ values; without those behind each position, if the call says so."""
    if site.named.get("use_causal_mask", False) is not False:
        *_, n, m = scores.own
        model.room(site.what, n, m)
        behind = np.where(np.tri(n, m, dtype=bool), 0, -_AWAY).astype(np.float32)
        away = model.constant(f"{site.name}.causal", behind)
        scores = model.arithmetic(f"{site.name}.before", "add", scores, away)
    weights = model.activate(f"{site.name}.weights", scores, ("softmax",))
    return _product(model, site.name, weights, values)


def _product(
    model: Builder, name: str, first: Value, second: Value, transposed: bool = False
) -> Value:
    name = model.add(spec.MatMul(model.unique(name), transposed=transposed), first, second)
    columns = second.own[-2] if transposed else second.own[-1]
    return first.of_row(name, (*first.own[:-1], columns), mask=None)


def _attention(model: Builder, site: Site) -> Value:
    options = site.options
    query, key, value = _sequences(site)
    if query.own[-1] != key.own[-1]:
        raise ConvertError(
            f"{site.what} weighs {shown(key.axes)} by {shown(query.axes)}; expected as many "
            f"features"
        )
    additive = site.entry.class_name == "AdditiveAttention"
    mode = "additive" if additive else options.take("score_mode", "dot")
    if mode not in ("additive", "dot", "concat"):
        raise options.refused("score_mode", mode, "'dot' or 'concat'")
    shapes: dict[str, Axes] = {}
    if options.flag("use_scale", additive):
        shapes["scale"] = query.own[-1:] if additive else ()
    if mode == "concat":
        shapes["concat_score_weight"] = ()
    numbers = {
        name: model.constant(f"{site.tensors}.{name}", array)
        for name, array in site.take(shapes).items()
    }
    scale = numbers.get("scale")
    if mode == "dot":
        scores = _product(model, f"{site.name}.scores", query, key, transposed=True)
        if scale:
            scores = model.arithmetic(f"{site.name}.scaled", "multiply", scores, scale)
        return _weighed(model, site, scores, value)
    n, size = query.own
    model.room(site.what, n, *key.own)
    rows = model.reshaped(f"{site.name}.rows", query, (n, 1, size))
    pairs = model.arithmetic(f"{site.name}.pairs", "add", rows, key)
    if scale and mode == "concat":
        pairs = model.arithmetic(f"{site.name}.scaled", "multiply", pairs, scale)
    pairs = model.activate(f"{site.name}.tanh", pairs, ("tanh",))
    if scale and additive:
        pairs = model.arithmetic(f"{site.name}.scaled", "multiply", pairs, scale)
    name = model.unique(f"{site.name}.scores")
    model.add(spec.Reduce(name, "sum"), pairs)
    scores = pairs.of_row(name, pairs.own[:-1])
    if weight := numbers.get("concat_score_weight"):
        scores = model.arithmetic(f"{site.name}.weighted", "multiply", scores, weight)
    return _weighed(model, site, scores, value)


def _multi_head(model: Builder, site: Site) -> Value:
    options = site.options
    query, key, value = _sequences(site)
    heads, key_size = options.size("num_heads"), options.size("key_dim")
    value_size = options.size("value_dim") if options.has("value_dim") else key_size
    options.take("value_dim", None)
    bias = options.flag("use_bias", True)
    for name in ("use_gate", "sliding_window", "output_shape"):
        if options.take(name, None) not in (None, False):
            raise options.refused(name, site.entry.config[name], "none")
    if (axes := options.take("attention_axes", None)) not in (None, 1, [1]):
        raise options.refused("attention_axes", axes, "[1], the positions")

    def of_heads(part: str, rows: Value, size: int) -> Value:
        """(heads, positions, size) of (positions, features)."""
        n, inputs = rows.own
        shapes: dict[str, Axes] = {"kernel": (inputs, heads, size)}
        arrays = take(
            f"{part} of {site.what}",
            site.weights.inside(f"{part}_dense", part),
            shapes | ({"bias": (heads, size)} if bias else {}),
        )
        weight = arrays["kernel"].reshape(inputs, heads * size).T
        given = {"bias": arrays["bias"].reshape(-1)} if bias else {}
        layer = spec.Linear(
            *(model.unique(f"{site.name}.{part}"), inputs, heads * size, bias),
            weights=f"{site.tensors}.{part}",
        )
        made = rows.of_row(model.add(layer, rows, weight=weight, **given), (n, heads * size))
        split = model.reshaped(f"{site.name}.{part}.split", made, (n, heads, size))
        return model.transposed(f"{site.name}.{part}.heads", split, [1, 0, 2])

    q, k = of_heads("query", query, key_size), of_heads("key", key, key_size)
    v = of_heads("value", value, value_size)
    scores = _product(model, f"{site.name}.scores", q, k, transposed=True)
    scores = model.activate(
        f"{site.name}.scaled", scores, (f"affine({1 / math.sqrt(key_size)!r}, 0.0)",)
    )
    seen = model.transposed(f"{site.name}.seen", _weighed(model, site, scores, v), [1, 0, 2])
    n, size, outputs = seen.own[0], heads * value_size, query.own[-1]
    joined = model.reshaped(f"{site.name}.joined", seen, (n, size))
    shapes: dict[str, Axes] = {"kernel": (heads, value_size, outputs)}
    arrays = take(
        f"output of {site.what}",
        site.weights.inside("output_dense", "attention_output"),
        shapes | ({"bias": (outputs,)} if bias else {}),
    )
    layer = spec.Linear(
        *(model.unique(f"{site.name}.output"), size, outputs, bias),
        weights=f"{site.tensors}.output",
    )
    weight = arrays.pop("kernel").reshape(size, outputs).T
    return joined.of_row(model.add(layer, joined, weight=weight, **arrays), (n, outputs))


ATTENTION: dict[str, Callable[[Builder, Site], Value]] = {
    "Attention": _attention,
    "AdditiveAttention": _attention,
    "MultiHeadAttention": _multi_head,
}
