"""A module in somebody's own Python file, with the weights of a checkpoint.

That imports the file and runs what is in it, as its owner does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastlstm import format

__all__ = ["open_module"]

DEPTH = 6  # of mappings within each other, in a checkpoint


def open_module(where: str, checkpoint: str | None) -> Any:
    """The module that ``FILE.py:NAME`` is or makes, with the weights of a checkpoint.

    Parameters
    ----------
    where : str
        NAME is a module, a class of one or a function that returns one, called without arguments.
    checkpoint : str, optional
        Weights that are loaded into it, all of them and no others; it keeps its own without.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If there is no torch, no such name, or the weights are not the module's.
    """
    path, _, name = where.rpartition(":")
    if not path or not name:
        raise ValueError(f"{where!r:.200} names no module; expected FILE.py:CLASS")
    try:
        import torch
    except ImportError:
        raise ValueError(
            "running a module needs torch; install it with: pip install torch"
        ) from None
    with open(path, "rb"):
        pass  # the message for a missing file is the system's
    made = _made(path, name)
    if not isinstance(made, torch.nn.Module):
        raise ValueError(
            f"{where!r:.200} gives a {type(made).__name__}; expected a torch.nn.Module"
        )
    if checkpoint is not None:
        _load(made, checkpoint, path)
    return made.eval()


def _made(path: str, name: str) -> Any:
    import torch

    file = Path(path).resolve()
    found = importlib.util.spec_from_file_location(file.stem, file)
    if found is None or found.loader is None:
        raise ValueError(f"{path!r:.200} is no Python file; expected FILE.py:CLASS")
    code = importlib.util.module_from_spec(found)
    sys.path.insert(0, str(file.parent))  # for what stands beside it
    sys.modules.setdefault(file.stem, code)
    try:
        found.loader.exec_module(code)
        if not hasattr(code, name):
            names = [n for n, what in vars(code).items() if isinstance(what, type)]
            raise ValueError(
                f"{path!r:.200} has no {name!r:.80}; it has the classes "
                f"{', '.join(names[:20]) or 'none'}"
            )
        what = getattr(code, name)
        return what if isinstance(what, torch.nn.Module) or not callable(what) else what()
    except (ValueError, OSError):
        raise
    except Exception as error:  # of code that is the user's own
        raise ValueError(
            f"{path}:{name} fails: {type(error).__name__}: {error}. What needs arguments can be "
            f"made by a function in that file: def ready(): return {name}(...), given as "
            f"{path}:ready"
        ) from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(file.parent))


def _load(module: Any, checkpoint: str, path: str) -> None:
    wanted = list(module.state_dict())
    fitting = {}
    for place, mapping in _mappings(_read(checkpoint, path)):
        for key in mapping:
            if wanted and key.endswith(wanted[0]):
                prefix = key[: len(key) - len(wanted[0])]
                if all(prefix + name in mapping for name in wanted):
                    inside = {
                        n[len(prefix) :]: t for n, t in mapping.items() if n.startswith(prefix)
                    }
                    fitting[f"{place}{prefix}" or "the names themselves"] = inside
    if len(fitting) != 1:
        found = f"several sets of them: {', '.join(fitting)}" if fitting else "none such"
        raise ValueError(
            f"the module has the weights {', '.join([*wanted[:6], *['...'] * bool(wanted[6:])])}, "
            f"and {checkpoint!r:.200} holds {found}; load them as you do in a function of your "
            f"file, which returns the module, and give {path}:FUNCTION without --against"
        )
    (weights,) = fitting.values()
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"the weights of {checkpoint!r:.200} are not the module's: {error}"
        ) from None


def _read(checkpoint: str, path: str) -> Any:
    import torch

    ending = Path(checkpoint).suffix.lower()
    if ending == ".safetensors":
        stored = format.read_tensors(checkpoint)
        return {name: torch.from_numpy(np.array(array)) for name, (array, _) in stored.items()}
    if ending == ".npz":
        with np.load(checkpoint, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    try:
        return torch.load(os.fspath(checkpoint), map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of whatever the file is instead
        first = f"{error}".strip().partition("\n")[0]
        raise ValueError(
            f"torch does not load {checkpoint!r:.200} as weights only: {first:.300}. If you trust "
            f"it, load it in a function of your file, which returns the module, and give "
            f"{path}:FUNCTION without --against"
        ) from None


def _mappings(
    tree: Any, place: str = "", depth: int = 0
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The mappings of names to tensors in a checkpoint, with their places."""
    import torch

    if not isinstance(tree, Mapping) or depth > DEPTH:
        return
    tensors = {n: t for n, t in tree.items() if isinstance(n, str) and isinstance(t, torch.Tensor)}
    if tensors:
        yield place, tensors
    for name, inside in tree.items():
        yield from _mappings(inside, f"{place}{name}: ", depth + 1)
