"""All kinds of layers, by the name that a file has for each."""

from __future__ import annotations

from fastlstm.spec.arithmetic import Activation, Arithmetic, Reduce, Softmax
from fastlstm.spec.convolution import Convolution, Pooling
from fastlstm.spec.layer import Layer
from fastlstm.spec.matrices import Constant, Embedding, Linear, MatMul, OneHot
from fastlstm.spec.movement import Index
from fastlstm.spec.norms import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from fastlstm.spec.recurrent import GRU, LSTM, RNN
from fastlstm.spec.time import Attention, Delay, Fold, Repeat, Slice, Spread, Window

__all__ = ["KINDS", "layer_from_dict"]

KINDS: dict[str, type[Layer]] = {
    cls.kind: cls
    for cls in (
        *(LSTM, GRU, RNN),
        *(Constant, Embedding, Linear, MatMul, OneHot),
        *(Convolution, Pooling),
        Index,
        *(Activation, Arithmetic, Reduce, Softmax),
        *(BatchNorm, GroupNorm, LayerNorm, RMSNorm),
        *(Attention, Delay, Fold, Repeat, Slice, Spread, Window),
    )
}


def layer_from_dict(entry: object) -> Layer:
    """The inverse of :meth:`Layer.to_dict`, strict: every field present, no other one.

    Raises
    ------
    ValueError
        If the entry is not a mapping, its kind is unknown, a field is missing, unknown or of the
        wrong type, or its value is out of range.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"a layer is {type(entry).__name__}; expected a mapping with a 'kind'")
    kind = entry.get("kind")
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(f"layer kind {kind!r:.80} is unknown; expected one of {', '.join(KINDS)}")
    return cls.from_dict({k: v for k, v in entry.items() if k != "kind"})
