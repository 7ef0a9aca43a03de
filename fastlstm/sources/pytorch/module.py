"""A whole module, live or stored in a checkpoint: what its classes tell that weights do not.

Of a live ``torch.nn.Module`` all there is to know is found by following it (:mod:`.trace`). Where
its layers are given instead, it is turned into the record a checkpoint would hold of it, so there
is one description of both. Nothing here imports torch: a module in hand brings its own classes, and
they are recognised by their import paths.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastlstm.sources.pytorch.blocks import Known
from fastlstm.sources.pytorch.checkpoint import StoredModule
from fastlstm.sources.pytorch.order import WEIGHTED, Word

__all__ = [
    "SHELLS",
    "Told",
    "can_follow",
    "class_path",
    "is_module",
    "is_torchs",
    "record",
    "tell",
    "word_of",
]

_NN = "torch.nn.modules."
_BASE = f"{_NN}module.Module"

# Word of ``layers=`` of each class. What has no effect at inference shares the word "dropout".
_KINDS = {
    f"{_NN}rnn.LSTM": "lstm",
    f"{_NN}rnn.LSTMCell": "lstm",
    f"{_NN}rnn.GRU": "gru",
    f"{_NN}rnn.GRUCell": "gru",
    f"{_NN}rnn.RNN": "rnn",
    f"{_NN}rnn.RNNCell": "rnn",
    f"{_NN}sparse.Embedding": "embedding",
    f"{_NN}linear.Linear": "linear",
    f"{_NN}activation.ReLU": "relu",
    f"{_NN}activation.Tanh": "tanh",
    f"{_NN}activation.Sigmoid": "sigmoid",
    f"{_NN}activation.Softmax": "softmax",
    f"{_NN}activation.LogSoftmax": "log_softmax",
    f"{_NN}dropout.Dropout": "dropout",
    f"{_NN}linear.Identity": "dropout",
}
_SEQUENTIAL = f"{_NN}container.Sequential"

# Classes that run the one module inside them, and where they keep it.
SHELLS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
}


@dataclass(frozen=True, slots=True)
class Told:
    """What modules tell.

    Parameters
    ----------
    known : dict of str to Known
        By path, what each module is.
    words : tuple of Word, or None
        The layers in the order in which they run; None where that is code, or not known.
    unsaid : str
        Why the order is not known, or "".
    notes : tuple of str
        What was left out of account.
    """

    known: dict[str, Known]
    words: tuple[Word, ...] | None
    unsaid: str
    notes: tuple[str, ...]


def is_module(source: object) -> bool:
    """Whether it is a live torch module; where torch was never imported, nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module)


def can_follow(source: object, path: str) -> bool:
    """Whether there is a live module at a path of the source, and Python code that it runs."""
    module: Any = source
    if not is_module(source) or not class_path(module):
        return False
    try:
        return class_path(module.get_submodule(path)) != ""
    except AttributeError:
        return False


def record(module: Any) -> tuple[StoredModule, tuple[str, ...]]:
    """A live module as the record a checkpoint would hold of it, and notes on what that leaves out.

    A module of a subclass that inherits ``forward`` counts as one of the class it inherits from.
    """
    # A module used twice appears twice here, as it runs twice in a Sequential.
    parts = dict(module.named_modules(remove_duplicate=False))
    records = {path: StoredModule(class_path(m), _settings(m)) for path, m in parts.items()}
    for name, value in module.state_dict().items():
        path, _, leaf = name.rpartition(".")
        holder, key = (records[path], leaf) if path in records else (records[""], name)
        holder[key] = value
    for path, part in records.items():
        if path:
            parent, _, name = path.rpartition(".")
            records[parent][name] = part
    notes = tuple(
        f"{_called(path, records[path])} has forward hooks, which are not run"
        for path, part in parts.items()
        if getattr(part, "_forward_hooks", None) or getattr(part, "_forward_pre_hooks", None)
    )
    return records[""], notes


def class_path(module: Any) -> str:
    """Import path of the class whose ``forward`` a module runs; "" for a scripted module."""
    cls: Any = type(module)
    own = _path(cls)
    if hasattr(module, "original_name"):
        return ""
    if own in SHELLS:
        return own
    if "forward" in vars(module):
        return f"{own} with a forward of its own"
    if is_torchs(own):
        return own
    owner = next((_path(base) for base in cls.__mro__ if "forward" in vars(base)), own)
    return owner if is_torchs(owner) and owner != _BASE else own


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def is_torchs(path: str) -> bool:
    """Whether the class at an import path is one of torch's own modules."""
    return path.startswith(_NN) and not path.endswith(" with a forward of its own")


def word_of(module: Any) -> str:
    """The word of ``layers=`` for a module with weights; "" if there is none."""
    kind = _KINDS.get(class_path(module), "")
    return kind if kind in WEIGHTED else ""


def _settings(module: Any) -> dict[str, object]:
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and isinstance(value, int | float | str | None)
    }


def tell(modules: Mapping[str, StoredModule], root: str) -> Told:
    """Describe the modules of a model.

    Parameters
    ----------
    modules : mapping of str to StoredModule
        By path.
    root : str
        The path of the module that is the whole model, if there is one there.
    """
    modules = {path: module for path, module in modules.items() if module.class_name}
    known = {path: _known(path, module) for path, module in modules.items()}
    words: list[Word] | None = None
    reasons: list[str] = []
    if root in modules:
        words = list(_order(root, modules[root], reasons))
    notes = [note for path, module in modules.items() for note in _notes(path, module)]
    if words is None or reasons:
        silent = [_called(path, module) for path, module in modules.items() if not module]
        if silent:
            named = ", ".join(silent[:20]) + (", ..." if len(silent) > 20 else "")
            notes.append(f"without weights, running only where layers= says: {named}")
        return Told(known, None, "; ".join(reasons[:10]), tuple(notes))
    for position, word in enumerate(words):
        if word.kind == "dropout":
            called = _called(word.path or "", modules[word.path or ""])
            notes.append(f"{called} has no effect at inference and was left out")
        elif word.kind in ("lstm", "gru", "rnn") and position < len(words) - 1:
            called = _called(word.path or "", modules[word.path or ""])
            notes.append(f"{called} passes its output, without its state, to the next layer")
    return Told(known, tuple(words), "", tuple(notes))


def _known(path: str, module: StoredModule) -> Known:
    kind = _KINDS.get(module.class_name)
    called = _called(path, module)
    if kind is None:
        return Known(
            None,
            refusal=f"{called} holds weights, but it is not one of torch's plain LSTM, GRU, RNN, "
            f"their cells, Linear or Embedding; allow its weights to be unused with ignore=, or, "
            f"if it computes the same, convert the module's state_dict()",
        )
    if module.settings.get("max_norm") is not None:
        return Known(
            None,
            refusal=f"{called} has max_norm={module.settings['max_norm']}, which scales rows when "
            f"they are looked up; scale the rows of its weight once and set max_norm=None",
        )
    mode = module.settings.get("nonlinearity") or module.settings.get("mode")
    nonlinearity = str(mode).lower().removeprefix("rnn_") if kind == "rnn" and mode else None
    return Known(kind, nonlinearity)


def _order(path: str, module: StoredModule, reasons: list[str]) -> Iterator[Word]:
    """The words of a module whose order is known, else reasons why it is not."""
    name = module.class_name
    if name == _SEQUENTIAL or name in SHELLS:
        for key, child in module.items():
            if isinstance(child, StoredModule) and key == SHELLS.get(name, key):
                yield from _order(f"{path}.{key}".removeprefix("."), child, reasons)
    elif name not in _KINDS:
        reasons.append(f"{_called(path, module)} runs code of its own")
    elif "softmax" in _KINDS[name] and module.settings.get("dim") not in (-1, 2):
        # Sequences have three dimensions here, so 2 is the last one; 1 would be the batch.
        reasons.append(
            f"{_called(path, module)} has dim={module.settings.get('dim')}; expected dim=-1"
        )
    else:
        yield Word(_KINDS[name], path)


def _notes(path: str, module: StoredModule) -> Iterator[str]:
    if _KINDS.get(module.class_name) in ("lstm", "gru", "rnn"):
        if module.settings.get("batch_first"):
            yield f"{_called(path, module)}: batch_first changes no weight and is not stored"
        if module.settings.get("dropout"):
            yield f"{_called(path, module)}: dropout has no effect at inference"


def _called(path: str, module: StoredModule) -> str:
    kind = module.class_name.rpartition(".")[2] or "scripted"
    return f"{path!r:.200} ({kind:.100})" if path else f"the module ({kind:.100})"
