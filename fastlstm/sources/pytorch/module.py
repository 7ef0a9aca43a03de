"""A whole module, live or stored in a checkpoint: what its classes tell that weights do not.

Of a live ``torch.nn.Module`` all there is to know is found by following it
(:mod:`fastlstm.sources.live`). Where its layers are given instead, it is turned into the record a
checkpoint would hold of it, so there is one description of both. Nothing here imports torch: a
module in hand brings its own classes, and they are recognised by their import paths.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastlstm.sources.pytorch.blocks import Known
from fastlstm.sources.pytorch.checkpoint import StoredModule
from fastlstm.sources.pytorch.classes import CLASSES, NN, UnknownSettingError
from fastlstm.sources.pytorch.kinds import KINDS
from fastlstm.sources.pytorch.rebuild import is_setting
from fastlstm.sources.pytorch.sequential import Order, eps_of
from fastlstm.sources.pytorch.words import Word

__all__ = [
    "SHELLS",
    "Silent",
    "Told",
    "called",
    "can_follow",
    "class_path",
    "is_module",
    "is_torchs",
    "record",
    "tell",
    "word_of",
]

_BASE = f"{NN}module.Module"
_SEQUENTIAL = f"{NN}container.Sequential"

# Classes that run the one module inside them, and where they keep it.
SHELLS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
}


@dataclass(frozen=True, slots=True)
class Silent:
    """A module that computes something, without weights that would tell so.

    Parameters
    ----------
    path : str
    called : str
        For messages.
    words : tuple of Word
        What takes it; a parameter that the file does not keep, or a word, is ``"?"``.
    checked : bool
        Whether words that leave it out are refused.
    """

    path: str
    called: str
    words: tuple[Word, ...]
    checked: bool = True


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
    silent : tuple of Silent
        In file order.
    unverified : tuple of str
        What is taken without a check.
    """

    known: dict[str, Known]
    words: tuple[Word, ...] | None
    unsaid: str
    notes: tuple[str, ...]
    silent: tuple[Silent, ...] = ()
    unverified: tuple[str, ...] = ()


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
        f"{called(path, records[path])} has forward hooks, which are not run"
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
    return path.startswith(NN) and not path.endswith(" with a forward of its own")


def word_of(module: Any) -> str:
    """The word of ``layers=`` for a module with weights; "" if there is none."""
    found = CLASSES.get(class_path(module))
    return found.word if found is not None and KINDS[found.word].weights else ""


def _settings(module: Any) -> dict[str, object]:
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and is_setting(value)
    }


def tell(
    modules: Mapping[str, StoredModule], root: str, row: tuple[int, ...], input_size: int | None
) -> Told:
    """Describe the modules of a model.

    Parameters
    ----------
    modules : mapping of str to StoredModule
        By path.
    root : str
        The path of the module that is the whole model, if there is one there.
    row : tuple of int
        What a step of the input is said to be; () if nothing is said.
    input_size : int, optional
        Numbers of a step, if they are said.
    """
    modules = {path: module for path, module in modules.items() if module.class_name}
    known = {path: _known(path, module) for path, module in modules.items()}
    words: tuple[Word, ...] | None = None
    unsaid = ""
    notes = [note for path, module in modules.items() for note in _notes(path, module)]
    if root in modules:
        order = Order(row, input_size)
        _walk(root, modules[root], order)
        order.finish()
        words, unsaid = tuple(order.words), "; ".join(order.reasons[:10])
    if words is None or unsaid:
        silent = tuple(_silent(modules))
        own = [
            called(path, module)
            for path, module in modules.items()
            if not module
            and (module.class_name not in CLASSES or CLASSES[module.class_name].word in _SHAPING)
        ]
        own += [one.called for one in silent if not one.checked and one.words[0].kind == "?"]
        named = ", ".join(own[:20]) + (", ..." if len(own) > 20 else "")
        unverified = (f"what these modules compute, which layers= does not say: {named}",)
        return Told(known, None, unsaid, tuple(notes), silent, unverified if own else ())
    for position, word in enumerate(words):
        if word.kind in ("dropout", "identity"):
            notes.append(
                f"{called(word.path or '', modules[word.path or ''])} has no effect at inference "
                f"and was left out"
            )
        elif word.kind in ("lstm", "gru", "rnn") and position < len(words) - 1:
            notes.append(
                f"{called(word.path or '', modules[word.path or ''])} passes its output, without "
                f"its state, to the next layer"
            )
    return Told(known, words, "", (*notes, *order.notes))


def _known(path: str, module: StoredModule) -> Known:
    found = CLASSES.get(module.class_name)
    name = called(path, module)
    if found is None:
        return Known(
            None,
            refusal=f"{name} holds weights, and layers= has no word for its class; if it computes "
            f"what one of torch's layers does, convert the module's state_dict() with the word of "
            f"that layer, or a live module without layers=, whose forward is then followed",
        )
    if module.settings.get("max_norm") is not None:
        return Known(
            None,
            refusal=f"{name} has max_norm={module.settings['max_norm']}, which scales rows when "
            f"they are looked up; scale the rows of its weight once and set max_norm=None",
        )
    mode = module.settings.get("nonlinearity") or module.settings.get("mode")
    nonlinearity = str(mode).lower().removeprefix("rnn_") if found.word == "rnn" and mode else None
    try:
        parameters = found.parameters(module.settings)
    except UnknownSettingError as error:
        if "in its code" not in str(error):
            return Known(None, refusal=f"{name} {error}")
        parameters = {}  # the word says them
    if parameters.get("eps", 0) is None:
        parameters = {k: v for k, v in parameters.items() if k != "eps"} | eps_of(module)
    return Known(found.word, nonlinearity, parameters=parameters)


def _walk(path: str, module: StoredModule, order: Order) -> None:
    """Go through a module whose order is known, else say why it is not."""
    name = module.class_name
    if name == _SEQUENTIAL or name in SHELLS:
        for key, child in module.items():
            if isinstance(child, StoredModule) and key == SHELLS.get(name, key):
                _walk(f"{path}.{key}".removeprefix("."), child, order)
    elif name not in CLASSES:
        order.reasons.append(f"{called(path, module)} runs code of its own")
    else:
        order.take(path, called(path, module), module)


# Words of modules that several others may stand for: a kernel has padding of its own.
_SHAPING = ("reduce", "reshape", "pad")


def _silent(modules: Mapping[str, StoredModule]) -> Iterator[Silent]:
    """The modules that compute something and have no weights."""
    for path, module in modules.items():
        found, name = CLASSES.get(module.class_name), called(path, module)
        if found is None or found.word in ("dropout", "identity", *_SHAPING):
            continue
        if KINDS[found.word].weights and module:
            continue
        checked = found.word != "flatten"  # sizes tell where that is
        try:
            words = found.made(module.settings)
        except UnknownSettingError as error:
            words = [Word(found.word, None, tuple((name, "?") for name in found.settings))]
            if "in its code" not in str(error):
                words, name = [Word("?", path)], f"{name} {error}"
            elif found.words is not None:  # which of several words is not known
                words, checked = [Word("?", path)], False
        yield Silent(path, name, tuple(words), checked)


def _notes(path: str, module: StoredModule) -> Iterator[str]:
    found = CLASSES.get(module.class_name)
    if found is not None and found.word in ("lstm", "gru", "rnn"):
        if module.settings.get("batch_first"):
            yield f"{called(path, module)}: batch_first changes no weight and is not stored"
        if module.settings.get("dropout"):
            yield f"{called(path, module)}: dropout has no effect at inference"


def called(path: str, module: StoredModule) -> str:
    """A module, for a message."""
    kind = module.class_name.rpartition(".")[2] or "scripted"
    return f"{path!r:.200} ({kind:.100})" if path else f"the module ({kind:.100})"
